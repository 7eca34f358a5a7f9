"""Held-out loss of an adapter, whichever system trained it, computed by Gristmill in fp32.

python -m bench.heldout_eval REQUEST.json ADAPTER OUT.json      (ADAPTER "": the base model)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measure import ROOT


def load_heldout(path: Path, max_tokens: int) -> tuple[list[Any], int]:
    """The first test documents with at most `max_tokens` in total, and the prefix token id."""
    import numpy as np

    data = np.load(path)
    ids, offsets = data["ids"].astype(np.int64), data["offsets"]
    count = max(1, int(np.searchsorted(offsets, max_tokens, side="right")) - 1)
    return [ids[offsets[n] : offsets[n + 1]] for n in range(count)], int(data["ends"][0])


def evaluate(
    model: Path, test: Path, adapter: Path | None, max_tokens: int, out: Path
) -> dict[str, Any]:
    """Score the held-out documents in a new process.

    Returns:
        `nats` and `tokens`, each with one number per document.
    """
    request = out.with_suffix(".request")
    request.write_text(json.dumps({"model": str(model), "test": str(test), "tokens": max_tokens}))
    arguments = [str(request), str(adapter or ""), str(out)]
    command = [sys.executable, "-m", "bench.heldout_eval", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    scores: dict[str, Any] = json.loads(out.read_text())
    return scores


def main() -> None:
    """Score the request on the command line."""
    import torch

    from pipeline.modeling.loading import load_adapter, load_base
    from pipeline.modeling.scoring import SlidingWindows, score

    path, adapter, out = sys.argv[1:]
    request = json.loads(Path(path).read_text())
    device = torch.device("cpu")
    model = load_base(Path(request["model"]), "fp32", device)
    if adapter:
        model = load_adapter(model, Path(adapter))
    documents, prefix = load_heldout(Path(request["test"]), request["tokens"])
    context = 1 + max(map(len, documents))
    nats, tokens = score(model, documents, SlidingWindows(context, context, prefix), device, "fp32")
    Path(out).write_text(json.dumps({"nats": nats.tolist(), "tokens": tokens.tolist()}))


if __name__ == "__main__":
    main()
