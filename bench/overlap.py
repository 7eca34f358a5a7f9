"""Cost of comparing held-out documents with the training documents: CPU per token, memory.

    .venv/bin/python -m bench.overlap [--tokens=4e6,16e6,64e6] [--held=4000] [--footer=0.5]

Tokens are sampled with a skewed distribution like that of words, so that short n-grams repeat
often. A share of the documents ends with the same footer of 60 tokens, and one in a thousand is a
held-out document with every twentieth token replaced. Memory is the peak allocation of a second
pass. The corpus is a memory-mapped file, as in a run.
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

DOCUMENT_TOKENS, FOOTER_TOKENS, VOCABULARY = 480, 60, 50_000
GENERATED_TEXTS = 64
HEAD = "| tokens | documents | overlap, ns/token | peak MB | near-copies | copies, ns/token |"


def main() -> None:
    """Print one row per corpus size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tokens", default="4e6,16e6,64e6", help="sizes of the corpus, comma-separated"
    )
    parser.add_argument("--held", type=int, default=4000, help="number of held-out documents")
    parser.add_argument(
        "--footer", type=float, default=0.5, help="share of documents that end with the footer"
    )
    options = parser.parse_args()
    print(f"{HEAD}\n|{6 * '---:|'}")
    for size in (int(float(word)) for word in options.tokens.split(",")):
        print(f"| {' | '.join(measure(size, options.held, options.footer))} |", flush=True)


def measure(corpus_tokens: int, held: int, footer: float) -> list[str]:
    """Measure one corpus size; returns a row of the table."""
    generator = np.random.default_rng(corpus_tokens)
    heldout = sample_documents(generator, held, footer)
    with tempfile.TemporaryDirectory() as folder:
        count = corpus_tokens // DOCUMENT_TOKENS
        train = make_corpus(Path(folder), generator, count, heldout, footer)
        find_overlap(heldout[:2], train)  # warm-up: load the libraries and the file
        start = time.process_time()
        overlap = find_overlap(heldout, train)
        middle = time.process_time()
        longest_copies(heldout[:GENERATED_TEXTS], train)
        end = time.process_time()
        tracemalloc.start()
        find_overlap(heldout, train)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    tokens = len(train.ids)
    return [
        f"{tokens:,}",
        f"{len(train):,}",
        f"{1e9 * (middle - start) / tokens:.1f}",
        f"{peak / 1e6:.0f}",
        f"{overlap.near.sum():,}",
        f"{1e9 * (end - middle) / tokens:.1f}",
    ]


def sample_documents(generator: np.random.Generator, count: int, footer: float) -> np.ndarray:
    """Random documents, (count, DOCUMENT_TOKENS)."""
    documents = (VOCABULARY ** generator.random((count, DOCUMENT_TOKENS))).astype(np.uint16)
    documents[generator.random(count) < footer, -FOOTER_TOKENS:] = np.arange(FOOTER_TOKENS)
    return documents


def make_corpus(
    folder: Path, generator: np.random.Generator, count: int, heldout: np.ndarray, footer: float
) -> TokenizedSplit:
    """A memory-mapped corpus; one document in a thousand is an edited held-out document."""
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.uint16, (count * DOCUMENT_TOKENS,))
    for begin in range(0, count, 10_000):
        block = sample_documents(generator, min(10_000, count - begin), footer)
        edited = heldout[generator.integers(0, len(heldout), len(block[::1000]))].copy()
        edited[:, ::20] = VOCABULARY
        block[::1000] = edited
        ids[begin * DOCUMENT_TOKENS : (begin + len(block)) * DOCUMENT_TOKENS] = block.ravel()
    ids.flush()
    offsets = np.arange(count + 1, dtype=np.int64) * DOCUMENT_TOKENS
    mapped = np.load(folder / "ids.npy", mmap_mode="r")
    return TokenizedSplit(mapped, offsets, np.diff(offsets), np.zeros(count, "V16"), "")


if __name__ == "__main__":
    main()
