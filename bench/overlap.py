"""What looking for held-out documents among training documents costs: CPU a token, and memory.

    .venv/bin/python -m bench.overlap [--tokens 1e6,4e6,16e6] [--held 2000] [--footer 0.5]

Documents are drawn from a Zipf-like vocabulary, so that short runs of tokens come again as in texts;
a share of them ends with the same footer, and one in a thousand is a held-out document, edited. Each
size is a process of its own: its memory is the peak above what it had with texts and corpus in it.
The corpus is a file that is mapped, as in a run; its pages count for nobody.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.data.copies import longest_copies
from pipeline.data.corpus import Corpus
from pipeline.data.overlap import find_overlap

LENGTH = 480
VOCABULARY = 50_000


def main() -> None:
    """Print a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", default="1e6,4e6,16e6")
    parser.add_argument("--held", type=int, default=2000)
    parser.add_argument("--footer", type=float, default=0.5)
    given = parser.parse_args()
    head = ("tokens", "documents", "overlap ns/token", "copies ns/token", "peak MB", "near")
    print(" | ".join(head))
    for size in (int(float(word)) for word in given.tokens.split(",")):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(" | ".join(pool.apply(measure, (size, given.held, given.footer))), flush=True)


def measure(size: int, held: int, footer: float) -> list[str]:
    """One row."""
    generator = np.random.default_rng(size)
    texts = [words(generator, LENGTH) for _ in range(held)]
    ending = words(generator, 60)
    for text in texts[::2]:
        text[-60:] = ending
    with tempfile.TemporaryDirectory() as folder:
        train = corpus(generator, Path(folder), size // LENGTH, texts, ending, footer)
        find_overlap(texts[:1], Corpus(train.ids[:0], train.offsets[:1], *[train.bytes] * 2, ""))
        before = resident()
        reset_peak()
        times = [time.process_time()]
        found = find_overlap(texts, train)
        times.append(time.process_time())
        longest_copies(texts[:50], train)
        times.append(time.process_time())
        peak = resident("VmHWM") - mapped() - before
    each = [f"{1e9 * spent / size:.1f}" for spent in np.diff(times)]
    return [f"{size:,}", f"{len(train):,}", *each, f"{peak / 1e6:.0f}", f"{found.near.sum():,}"]
