"""Scoring compared with a plain loop: speed, memory, and equal perplexity.

    make bench-score [ARGS="--quick --documents=200"]

The plain loop runs Hugging Face's model on one document at a time, in fp32, with the whole
preceding document as context of each token. Gristmill scores the same documents with the same
weights. The two run alternately on one core, each time on half of the documents; loading is not
timed. Then both score the longest documents with a sliding window. Finally Gristmill scores splits
of growing size to measure its memory.
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
from bench.data import DATA, README, log
from bench.lockstep import peak_bytes
from bench.measure import measure

SYSTEMS = ("gristmill", "plain")
HALVES = 2
SLIDING_DOCUMENTS = 20  # the longest ones
SLIDING_WINDOW = (256, 128)  # context and stride in tokens
MAX_RELATIVE_ERROR = 5e-5  # four digits agree
MAX_MEMORY_RATIO = 1.1  # peak memory of the largest split / that of the smallest
ARRAY_FILES = ("ids.npy", "offsets.npy")
SPLIT_SIZES = (100, 300, 1_000)


def documents(model: Path, count: int) -> tuple[list[Any], int]:
    """Token ids of `count` texts, and their bytes: the NIH sample, then texts of similar length."""
    import numpy as np

    from pipeline.tokenize.encoder import ReferenceEncoder

    texts = list(text.nih())[:count]
    if len(texts) < count:
        source = corpora.documents("nih", corpora.cached(DATA))
        texts += [next(source) for _ in range(count - len(texts))]
    ids, offsets = ReferenceEncoder(model).encode(texts)
    documents: list[Any] = np.split(ids, offsets[1:-1])
    return documents, sum(len(text.encode()) for text in texts)


def score_plainly(
    folder: Path, texts: list[Any], prefix: int, context: int, stride: int
) -> tuple[list[float], float]:
    """Score documents with a plain loop; returns nats of each document, and CPU seconds.

    The first window of `context` input tokens (with the prefix) predicts the first `context` tokens
    of a document. Each further window ends `stride` tokens later, the last one at the end of the
    document. A window counts only tokens that no earlier window has scored.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start, nats = time.process_time(), []
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
    return nats, time.process_time() - start


def score_with_product(
    folder: Path, texts: list[Any], prefix: int, context: int, stride: int
) -> tuple[list[float], float]:
    """Score documents with Gristmill; returns nats of each document, and CPU seconds."""
    import torch

    from pipeline.modeling.loading import load_base
    from pipeline.modeling.scoring import SlidingWindows, score

    device = torch.device("cpu")
    model = load_base(folder, "fp32", device)
    start = time.process_time()
    nats, _ = score(model, texts, SlidingWindows(context, stride, prefix), device, "fp32")
    return nats.tolist(), time.process_time() - start


def answer(path: Path) -> None:
    """Score in this process: reads the request from a file and overwrites it with the result."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    request = json.loads(path.read_text())
    ids, offsets = (np.load(path.with_name(name), mmap_mode="r") for name in ARRAY_FILES)
    texts = [ids[begin:end] for begin, end in pairwise(offsets)]
    score = {"plain": score_plainly, "gristmill": score_with_product}[request["system"]]
    nats, cpu = score(Path(request["model"]), texts, request["prefix"], *request["windows"])
    path.write_text(json.dumps({"nats": nats, "cpu": cpu, "peak": peak_bytes()}))


def score_in_process(
    system: str,
    model: Path,
    texts: list[Any],
    prefix: int,
    core: int,
    windows: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Score texts in a new process; returns nats of each text, CPU seconds, peak bytes.

    Args:
        system: `gristmill` or `plain`.
        model: The model folder.
        texts: Token ids of each text.
        prefix: The token id put before each text.
        core: The core to which the process is bound.
        windows: Context and stride; None: a window that holds the longest text.
    """
    import numpy as np

    arrays = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.json"
        for file, array in zip(ARRAY_FILES, arrays, strict=True):
            np.save(path.with_name(file), array)
        longest = 1 + max(map(len, texts))
        request: dict[str, Any] = {"system": system, "model": str(model), "prefix": prefix}
        request["windows"] = windows or (longest, longest)
        path.write_text(json.dumps(request))
        measure(
            [sys.executable, "-m", "bench.scoring", "--answer", str(path)],
            core=core,
            environment={"OMP_NUM_THREADS": "1"},
        )
        result: dict[str, Any] = json.loads(path.read_text())
    return result


def run(options: argparse.Namespace) -> str:
    """Run the benchmark and return its tables."""
    import numpy as np

    core = sorted(os.sched_getaffinity(0))[0]
    prepared = setup.prepare(DATA, 2.0, options.quick)
    texts, size = documents(prepared.model, options.documents)
    prefix = int(np.load(prepared.train)["ends"][0])
    halves = [texts[n::HALVES] for n in range(HALVES)]
    runs: dict[str, list[dict[str, Any]]] = {"gristmill": [], "plain": []}
    for number, half in enumerate(halves):
        for system in SYSTEMS if number % 2 else reversed(SYSTEMS):
            runs[system].append(score_in_process(system, prepared.model, half, prefix, core))
            log(f"{system}, half {number + 1}: {runs[system][-1]['cpu']:.1f} CPU s")
    longest = sorted(texts, key=len)[-SLIDING_DOCUMENTS:]
    sliding = {
        system: [score_in_process(system, prepared.model, longest, prefix, core, SLIDING_WINDOW)]
        for system in SYSTEMS
    }
    tiny = setup.tiny_llama(DATA)
    peaks = {
        count: score_in_process("gristmill", tiny, documents(tiny, count)[0], prefix, core)["peak"]
        for count in (SPLIT_SIZES if not options.quick else SPLIT_SIZES[:2])
    }
    tokens = sum(map(len, texts))
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {table.machine()}; "
        f"{prepared.base if not options.quick else 'two layers'}, fp32, one core, {len(texts)} "
        f"documents of {tokens:,} tokens.",
        "",
        "| system | tokens / CPU s | CPU s | peak MB | perplexity | bits per byte |",
        "|---|---:|---:|---:|---:|---:|",
        _row("plain loop with Hugging Face's model", runs["plain"], tokens, size),
        _row("Gristmill", runs["gristmill"], tokens, size),
        "",
        "| goal | limit | measured | met |",
        "|---|---|---:|---|",
    ]
    cpu = {system: sum(run["cpu"] for run in halves) for system, halves in runs.items()}
    window = f"window {SLIDING_WINDOW[0]}, stride {SLIDING_WINDOW[1]}, {len(longest)} documents"
    most, fewest = max(peaks), min(peaks)
    for name, limit, value in (
        ("CPU time / plain loop", 1.0, cpu["gristmill"] / cpu["plain"]),
        ("relative difference of perplexity to the plain loop", MAX_RELATIVE_ERROR,
         _relative_difference(runs, tokens)),
        (f"the same with {window}", MAX_RELATIVE_ERROR,
         _relative_difference(sliding, sum(map(len, longest)))),
        (f"peak memory of {most:,} documents / {fewest:,} documents", MAX_MEMORY_RATIO,
         peaks[most] / peaks[fewest]),
    ):  # fmt: skip
        lines.append(
            f"| {name} | ≤ {limit:g} | {value:.3g} | {'yes' if value <= limit else '**no**'} |"
        )
    memory = ", ".join(f"{count:,} documents {peak / 1e6:,.0f} MB" for count, peak in peaks.items())
    largest_difference = max(
        abs(ours / plain - 1)
        for each in (runs, sliding)
        for one, other in zip(each["gristmill"], each["plain"], strict=True)
        for ours, plain in zip(one["nats"], other["nats"], strict=True)
    )
    lines += [
        "",
        f"The nats of a document differ by at most {largest_difference:.1e} of their value. Peak "
        f"memory by size of the split, with a model of two layers: {memory}.",
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


def _relative_difference(runs: dict[str, list[dict[str, Any]]], tokens: int) -> float:
    """Relative difference of our perplexity to that of the plain loop."""
    return abs(math.expm1((_nats(runs["gristmill"]) - _nats(runs["plain"])) / tokens))


def main() -> None:
    """Run the benchmark, print its tables and save them unless --quick is given."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make bench-score ARGS=")
    parser.add_argument(
        "--quick", action="store_true", help="a short trial with a tiny model; not saved"
    )
    parser.add_argument(
        "--documents", type=int, default=200, help="documents to score (default 200)"
    )
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options.answer)
        return
    text = run(options)
    print(text)
    if not options.quick:
        README.write_text(table.replace(README.read_text("utf-8"), "score", text), "utf-8")


if __name__ == "__main__":
    main()
