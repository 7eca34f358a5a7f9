"""Scoring beside a plain loop: speed, memory, and the same perplexity.

    make bench-score [ARGS="--quick --documents=200"]

The plain loop is what one writes by hand: Hugging Face's model, a document at a time, in fp32, each
token with all of its document before it. Ours takes the same documents through the same weights.
Both run alone on one core, in turns, half of the documents each time; loading is not timed. Then
the longest documents once more with a window that slides, a window at a time in the plain loop; and
ours on splits of growing size, for its memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import corpora, setup, table, text
from bench.data import DATA, README, say
from bench.lockstep import peak
from bench.measure import measure

HALVES = 2
LONGEST = 20
SLIDING = (256, 128)  # context and stride of the longest documents
DIGITS = 5e-5  # of a value: four digits agree
FLAT = 1.1  # peak memory of the largest split, of that of the smallest
ARRAYS = ("ids.npy", "offsets.npy")
GROWTH = (100, 300, 1_000)


def documents(model: Path, count: int) -> tuple[list[Any], int]:
    """Token ids of so many texts, and their bytes: the NIH sample, then what has its lengths."""
    import numpy as np

    from pipeline.tokenize.encoder import ReferenceEncoder

    texts = list(text.nih())[:count]
    if len(texts) < count:
        source = corpora.documents("nih", corpora.cached(DATA))
        texts += [next(source) for _ in range(count - len(texts))]
    ids, offsets = ReferenceEncoder(model).encode(texts)
    found: list[Any] = np.split(ids, offsets[1:-1])
    return found, sum(len(text.encode()) for text in texts)


def plainly(
    folder: Path, texts: list[Any], prefix: int, context: int, stride: int
) -> tuple[list[float], float]:
    """Nats of each document, and CPU seconds, by a plain loop.

    A window of `context` tokens, the prefix among them, ends after the first `context` tokens that
    are predicted, then every `stride` further ones, and where the document does; what no window
    before it has scored counts.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    began, nats = time.process_time(), []
    with torch.no_grad():
        for ids in texts:
            row = torch.tensor([[prefix, *ids.tolist()]])
            ends = [*range(context, len(ids), stride), len(ids)]
            total, scored = 0.0, 0
            for end in ends:
                window = row[:, max(0, end - context) : end + 1].clone()
                labels = window.clone()
                labels[:, : -(end - scored)] = -100
                total += float(model(input_ids=window, labels=labels).loss) * (end - scored)
                scored = end
            nats.append(total)
    return nats, time.process_time() - began


def ours(
    folder: Path, texts: list[Any], prefix: int, context: int, stride: int
) -> tuple[list[float], float]:
    """Nats of each document, and CPU seconds, by the product."""
    import torch

    from pipeline.modeling.loading import load_base
    from pipeline.modeling.scoring import SlidingWindows, score

    device = torch.device("cpu")
    model = load_base(folder, "fp32", device)
    began = time.process_time()
    nats, _ = score(model, texts, SlidingWindows(context, stride, prefix), device, "fp32")
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
    nats, cpu = run(Path(asked["model"]), texts, asked["prefix"], *asked["windows"])
    path.write_text(json.dumps({"nats": nats, "cpu": cpu, "peak": peak()}))


def ask(
    who: str,
    model: Path,
    texts: list[Any],
    prefix: int,
    core: int,
    windows: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Have a system score texts; nats of each, CPU seconds, peak bytes.

    Args:
        who: `ours` or `plain`.
        model: The folder of its model.
        texts: Token ids of each.
        prefix: The token before each.
        core: That it may use.
        windows: Context and stride; None: a window holds any of the texts.
    """
    import numpy as np

    arrays = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.json"
        for file, array in zip(ARRAYS, arrays, strict=True):
            np.save(path.with_name(file), array)
        longest = 1 + max(map(len, texts))
        asked: dict[str, Any] = {"who": who, "model": str(model), "prefix": prefix}
        asked["windows"] = windows or (longest, longest)
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
    laid = setup.lay(DATA, 2.0, options.quick)
    texts, size = documents(laid.model, options.documents)
    prefix = int(np.load(laid.train)["ends"][0])
    halves = [texts[n::HALVES] for n in range(HALVES)]
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    for number, half in enumerate(halves):
        for who in ("ours", "plain") if number % 2 else ("plain", "ours"):
            found[who].append(ask(who, laid.model, half, prefix, core))
            say(f"{who}, half {number + 1}: {found[who][-1]['cpu']:.1f} CPU s")
    longest = sorted(texts, key=len)[-LONGEST:]
    sliding = {
        who: [ask(who, laid.model, longest, prefix, core, SLIDING)] for who in ("ours", "plain")
    }
    small = setup.tiny(DATA)
    growth = {
        count: ask("ours", small, documents(small, count)[0], prefix, core)["peak"]
        for count in (GROWTH if not options.quick else GROWTH[:2])
    }
    tokens = sum(map(len, texts))
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {table.machine()}; "
        f"{laid.base if not options.quick else 'two layers'}, fp32, one core, {len(texts)} "
        f"documents of {tokens:,} tokens.",
        "",
        "| system | tokens / CPU s | CPU s | peak MB | perplexity | bits per byte |",
        "|---|---:|---:|---:|---:|---:|",
        _row("a plain loop of Hugging Face's model", found["plain"], tokens, size),
        _row("ours", found["ours"], tokens, size),
        "",
        "| goal | | measured | reached |",
        "|---|---|---:|---|",
    ]
    cpu = {who: sum(one["cpu"] for one in runs) for who, runs in found.items()}
    window = f"a window of {SLIDING[0]} that slides by {SLIDING[1]}, {len(longest)} documents"
    largest, *_, smallest = (growth[count] for count in sorted(growth, reverse=True))
    for name, limit, value in (
        ("CPU time, of the plain loop's", 1.0, cpu["ours"] / cpu["plain"]),
        ("perplexity, off the plain loop's by, of its value", DIGITS, _off(found, tokens)),
        (f"the same with {window}", DIGITS, _off(sliding, sum(map(len, longest)))),
        (f"peak memory of {max(growth):,} documents, of that of {min(growth):,}", FLAT,
         largest / smallest),
    ):  # fmt: skip
        lines.append(
            f"| {name} | ≤ {limit:g} | {value:.3g} | {'yes' if value <= limit else '**no**'} |"
        )
    peaks = ", ".join(f"{count:,} documents {size / 1e6:,.0f} MB" for count, size in growth.items())
    most = max(
        abs(mine / theirs - 1)
        for runs in (found, sliding)
        for one, other in zip(runs["ours"], runs["plain"], strict=True)
        for mine, theirs in zip(one["nats"], other["nats"], strict=True)
    )
    lines += [
        "",
        f"The nats of one document differ by {most:.1e} of their value at most. Peak memory by "
        f"size of the split, a model of two layers: {peaks}.",
    ]
    return "\n".join(lines)


def _row(title: str, runs: list[dict[str, Any]], tokens: int, size: int) -> str:
    cpu, peaks = sum(run["cpu"] for run in runs), max(run["peak"] for run in runs)
    nats = _nats(runs)
    return (
        f"| {title} | {tokens / cpu:,.0f} | {cpu:.1f} | {peaks / 1e6:,.0f} "
        f"| {math.exp(nats / tokens):.5f} | {nats / math.log(2) / size:.6f} |"
    )


def _nats(runs: list[dict[str, Any]]) -> float:
    return float(sum(sum(run["nats"]) for run in runs))


def _off(found: dict[str, list[dict[str, Any]]], tokens: int) -> float:
    """By how much of its value our perplexity differs from the plain loop's."""
    return abs(math.expm1((_nats(found["ours"]) - _nats(found["plain"])) / tokens))


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
