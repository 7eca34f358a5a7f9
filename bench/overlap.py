"""What it costs to look for held-out documents among training documents: CPU a token, and memory.

    .venv/bin/python -m bench.overlap [--tokens=4e6,16e6,64e6] [--held=4000] [--footer=0.5]

Tokens are drawn as words are, a few of them all the time, so that short runs come again and again;
a share of the documents ends with one footer of 60 tokens, and one in a thousand is a held-out
document with every twentieth token replaced. Memory is the most that is allocated at a time, from a
second pass; the corpus is a file that is mapped, as in a run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.copies import longest_copies
from pipeline.evaluate.contamination.overlap import find_overlap

LENGTH, FOOTER, VOCABULARY = 480, 60, 50_000
GENERATED = 64
HEAD = "| tokens | documents | overlap, ns a token | peak MB | near | copies, ns a token |"


def main() -> None:
    """Print a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", default="4e6,16e6,64e6", help="sizes of the corpus")
    parser.add_argument("--held", type=int, default=4000, help="documents looked for")
    parser.add_argument("--footer", type=float, default=0.5, help="share of documents that have it")
    given = parser.parse_args()
    print(f"{HEAD}\n|{6 * '---:|'}")
    for size in (int(float(word)) for word in given.tokens.split(",")):
        print(f"| {' | '.join(measure(size, given.held, given.footer))} |", flush=True)


def measure(size: int, held: int, footer: float) -> list[str]:
    """One row."""
    generator = np.random.default_rng(size)
    texts = draw(generator, held, footer)
    with tempfile.TemporaryDirectory() as folder:
        train = corpus(Path(folder), generator, size // LENGTH, texts, footer)
        find_overlap(texts[:2], train)  # the libraries are loaded, the file is in memory
        begin = time.process_time()
        found = find_overlap(texts, train)
        between = time.process_time()
        longest_copies(texts[:GENERATED], train)
        end = time.process_time()
        tracemalloc.start()
        find_overlap(texts, train)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    whole = len(train.ids)
    return [
        f"{whole:,}",
        f"{len(train):,}",
        f"{1e9 * (between - begin) / whole:.1f}",
        f"{peak / 1e6:.0f}",
        f"{found.near.sum():,}",
        f"{1e9 * (end - between) / whole:.1f}",
    ]


def draw(generator: np.random.Generator, count: int, footer: float) -> np.ndarray:
    """Documents, (count, LENGTH)."""
    drawn = (VOCABULARY ** generator.random((count, LENGTH))).astype(np.uint16)
    drawn[generator.random(count) < footer, -FOOTER:] = np.arange(FOOTER)
    return drawn


def corpus(
    folder: Path, generator: np.random.Generator, count: int, texts: np.ndarray, footer: float
) -> TokenizedSplit:
    """A mapped file of so many documents, one in a thousand of them a text that was edited."""
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.uint16, (count * LENGTH,))
    for begin in range(0, count, 10_000):
        part = draw(generator, min(10_000, count - begin), footer)
        edited = texts[generator.integers(0, len(texts), len(part[::1000]))].copy()
        edited[:, ::20] = VOCABULARY
        part[::1000] = edited
        ids[begin * LENGTH : (begin + len(part)) * LENGTH] = part.ravel()
    ids.flush()
    offsets = np.arange(count + 1, dtype=np.int64) * LENGTH
    mapped = np.load(folder / "ids.npy", mmap_mode="r")
    return TokenizedSplit(mapped, offsets, np.diff(offsets), np.zeros(count, "V16"), "")


if __name__ == "__main__":
    main()
