"""Scoring beside a plain loop: speed, memory, and the same perplexity.

    make bench-score [ARGS="--quick --documents=200"]

The plain loop is what one writes by hand: Hugging Face's model, a document at a time, in fp32, each
token with all of its document before it. Ours takes the same documents through the same weights.
Both run alone on one core, in turns, half of the documents each time; loading is not timed. Then
ours once more on splits of growing size, for its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import corpora, ground, table, text
from bench.data import DATA, README, say
from bench.measure import measure
from bench.turns import peak

HALVES = 2
ARRAYS = ("ids.npy", "offsets.npy")
GROWTH = (200, 2_000, 20_000)


def documents(model: Path, count: int) -> list[Any]:
    """Token ids of so many texts: of the NIH sample, then of what has its lengths."""
    import numpy as np

    from pipeline.data.encoder import Reference

    texts = list(text.nih())[:count]
    if len(texts) < count:
        source = corpora.documents("nih", corpora.cached(DATA))
        texts += [next(source) for _ in range(count - len(texts))]
    ids, offsets = Reference(model).encode(texts)
    found: list[Any] = np.split(ids, offsets[1:-1])
    return found


def plainly(folder: Path, texts: list[Any], prefix: int) -> tuple[list[float], float]:
    """Nats of each document, and CPU seconds, by a plain loop."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    began, nats = time.process_time(), []
    with torch.no_grad():
        for ids in texts:
            row = torch.tensor([[prefix, *ids.tolist()]])
            nats.append(float(model(input_ids=row, labels=row).loss) * len(ids))
    return nats, time.process_time() - began


def ours(folder: Path, texts: list[Any], prefix: int) -> tuple[list[float], float]:
    """Nats of each document, and CPU seconds, by the product."""
    import torch

    from pipeline.model import load
    from pipeline.model.score import Windows, score

    device = torch.device("cpu")
    model = load.load_base(folder, "fp32", device)
    longest = 1 + max(map(len, texts))
    began = time.process_time()
    nats, _ = score(model, texts, Windows(longest, longest, prefix), device, "fp32")
    return nats.tolist(), time.process_time() - began


def answer(path: Path) -> None:
    """One run, in a process of its own: the file holds the question, and then the answer."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    asked = json.loads(path.read_text())
    ids, offsets = (np.load(path.with_name(name), mmap_mode="r") for name in ARRAYS)
    texts = [ids[begin:end] for begin, end in pairwise(offsets)]
    run = {"plain": plainly, "ours": ours}[asked["who"]]
    nats, cpu = run(Path(asked["model"]), texts, asked["prefix"])
    path.write_text(json.dumps({"nats": nats, "cpu": cpu, "peak": peak()}))


def ask(who: str, model: Path, texts: list[Any], prefix: int, core: int) -> dict[str, Any]:
    """Have a system score texts; nats of each, CPU seconds, peak bytes."""
    import numpy as np

    arrays = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.json"
        for file, array in zip(ARRAYS, arrays, strict=True):
            np.save(path.with_name(file), array)
        asked = {"who": who, "model": str(model), "prefix": prefix}
        path.write_text(json.dumps(asked))
        measure(
            [sys.executable, "-m", "bench.scoring", "--answer", str(path)],
            core=core,
            environment={"OMP_NUM_THREADS": "1"},
        )
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(options: argparse.Namespace) -> str:
    """Measure, and say what was found."""
    import numpy as np

    core = sorted(os.sched_getaffinity(0))[0]
    laid = ground.lay(DATA, 2.0, options.quick)
    texts = documents(laid.model, options.documents)
    prefix = int(np.load(laid.train)["ends"][0])
    halves = [texts[n::HALVES] for n in range(HALVES)]
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    for number, half in enumerate(halves):
        for who in ("ours", "plain") if number % 2 else ("plain", "ours"):
            found[who].append(ask(who, laid.model, half, prefix, core))
            say(f"{who}, half {number + 1}: {found[who][-1]['cpu']:.1f} CPU s")
    small = ground.tiny(DATA)
    growth = {
        count: ask("ours", small, documents(small, count), prefix, core)["peak"]
        for count in (GROWTH if not options.quick else GROWTH[:2])
    }
    return _told(laid.base if not options.quick else "two layers", texts, found, growth)


def _told(
    model: str,
    texts: list[Any],
    found: dict[str, list[dict[str, Any]]],
    growth: dict[int, int],
) -> str:
    tokens = sum(map(len, texts))
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {table.machine()}; {model}, fp32, one core, "
        f"{len(texts)} documents of {tokens:,} tokens.",
        "",
        "| system | tokens / CPU s | CPU s | peak MB | perplexity |",
        "|---|---:|---:|---:|---:|",
    ]
    for who, title in (("plain", "a plain loop of Hugging Face's model"), ("ours", "ours")):
        cpu = sum(run["cpu"] for run in found[who])
        peaks = max(run["peak"] for run in found[who]) / 1e6
        lines.append(
            f"| {title} | {tokens / cpu:,.0f} | {cpu:.1f} | {peaks:,.0f} "
            f"| {_perplexity(found[who], tokens):.5f} |"
        )
    seconds = {who: sum(run["cpu"] for run in runs) for who, runs in found.items()}
    digits = abs(_perplexity(found["ours"], tokens) / _perplexity(found["plain"], tokens) - 1)
    most = max(
        abs(mine / theirs - 1)
        for one, other in zip(found["ours"], found["plain"], strict=True)
        for mine, theirs in zip(one["nats"], other["nats"], strict=True)
    )
    peaks = ", ".join(f"{count:,} documents {size / 1e6:,.0f} MB" for count, size in growth.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Ours takes {seconds['ours'] / seconds['plain']:.3f} of the plain loop's CPU time "
            f"(goal: at most 1). Perplexities differ by {digits:.1e} of their value (goal: 5e-5), "
            f"the nats of one document by {most:.1e} at most.",
            "",
            f"Peak memory by size of the split, a model of two layers: {peaks}.",
        ]
    )


def _perplexity(runs: list[dict[str, Any]], tokens: int) -> float:
    import math

    return math.exp(sum(sum(run["nats"]) for run in runs) / tokens)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make bench-score ARGS=")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try it; not saved")
    parser.add_argument("--documents", type=int, default=200, help="that are scored (200)")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options.answer)
        return
    found = run(options)
    print(found)
    if not options.quick:
        README.write_text(table.replace(README.read_text("utf-8"), "score", found), "utf-8")


if __name__ == "__main__":
    main()
