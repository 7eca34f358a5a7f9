"""Held-out loss: adapters, whoever trained them, scored by the product in fp32.

python -m bench.heldout_eval QUESTION.json ADAPTER OUT.json      (ADAPTER "": the base model)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measure import ROOT


def held_out(path: Path, tokens: int) -> tuple[list[Any], int]:
    """Test documents of so many tokens in all, in their order; and the token before each."""
    import numpy as np

    data = np.load(path)
    ids, offsets = data["ids"].astype(np.int64), data["offsets"]
    fitting = max(1, int(np.searchsorted(offsets, tokens, side="right")) - 1)
    return [ids[offsets[n] : offsets[n + 1]] for n in range(fitting)], int(data["ends"][0])


def ask(model: Path, test: Path, adapter: Path | None, tokens: int, out: Path) -> dict[str, Any]:
    """Score in a process of its own.

    Returns:
        nats and tokens of each document.
    """
    question = out.with_suffix(".question")
    question.write_text(json.dumps({"model": str(model), "test": str(test), "tokens": tokens}))
    words = [
        sys.executable,
        "-m",
        "bench.heldout_eval",
        str(question),
        str(adapter or ""),
        str(out),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Answer the question on the command line."""
    import torch

    from pipeline.modeling.loading import load_adapter, load_base
    from pipeline.modeling.scoring import SlidingWindows, score

    question, adapter, out = sys.argv[1:]
    asked = json.loads(Path(question).read_text())
    device = torch.device("cpu")
    model = load_base(Path(asked["model"]), "fp32", device)
    if adapter:
        model = load_adapter(model, Path(adapter))
    documents, prefix = held_out(Path(asked["test"]), asked["tokens"])
    context = 1 + max(map(len, documents))
    nats, tokens = score(model, documents, SlidingWindows(context, context, prefix), device, "fp32")
    Path(out).write_text(json.dumps({"nats": nats.tolist(), "tokens": tokens.tolist()}))


if __name__ == "__main__":
    main()
