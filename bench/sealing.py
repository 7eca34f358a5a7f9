"""The seal of many documents: time and memory, as they become more.

    python -m bench.sealing [--documents=500000,5000000]

Short texts, every hundredth of which has been there before. They take the ordinary way, in chunks
of 16 MB; only the seal is looked at.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import corpora, model, product_cli
from bench.data import DATA, say
from pipeline.core.receipt import load

AGAIN = 100
HEAD = """| distinct documents | repeated | shards | CPU s | wall s | peak MB |
|---:|---:|---:|---:|---:|---:|"""


def texts(count: int) -> Iterator[str]:
    """So many texts."""
    for number in range(count):
        told = number - AGAIN // 2 if number % AGAIN == AGAIN - 1 else number
        yield f"document {told} of a corpus"


def row(count: int, scratch: Path, base: Path) -> str:
    """A line of the table."""
    corpus = corpora.write(f"short-{count}", scratch, lambda: texts(count), float("inf"))
    run = product_cli.prepare(corpus, base, scratch, "decompress.chunk_bytes=16000000")
    for stage in ("decompress", "tokenize.shards"):
        run.stage(stage)
    used = run.stage("tokenize.seal")
    (folder,) = run.home.glob("shards-*/seal")
    receipt = load(folder)
    assert receipt
    found = sum(split["documents"] for split in receipt.facts["splits"].values())
    twice = sum(receipt.facts["duplicates"].values())
    assert found + twice == count, receipt.facts
    return (
        f"| {found:,} | {twice:,} | {len(run.shards())} | {used.cpu:.1f} | {used.wall:.1f} "
        f"| {used.process / 1e6:,.0f} |"
    )


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", default="500000,5000000", help="how many, one after another")
    counts = [int(count) for count in parser.parse_args().documents.split(",")]
    base = model.make(DATA / "model", functools.partial(corpora.cached, DATA))
    print(HEAD)
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        for count in counts:
            say(f"{count:,} documents")
            print(row(count, Path(name), base), flush=True)


if __name__ == "__main__":
    main()
