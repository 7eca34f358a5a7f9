"""Cost of sealing many documents: CPU time, wall time and memory.

    python -m bench.sealing [--documents=500000,5000000]

The documents are short; every hundredth repeats an earlier one. All stages run as usual, with
chunks of 16 MB; only the seal is measured.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import corpora, model, product_cli
from bench.data import DATA, log
from pipeline.core.receipt import load

DUPLICATE_EVERY = 100
HEAD = """| distinct documents | repeated | shards | CPU s | wall s | peak MB |
|---:|---:|---:|---:|---:|---:|"""


def texts(count: int) -> Iterator[str]:
    """Yield `count` texts."""
    for number in range(count):
        is_duplicate = number % DUPLICATE_EVERY == DUPLICATE_EVERY - 1
        document = number - DUPLICATE_EVERY // 2 if is_duplicate else number
        yield f"document {document} of a corpus"


def row(count: int, scratch: Path, base: Path) -> str:
    """Measure one corpus; returns a row of the table."""
    corpus = corpora.write(f"short-{count}", scratch, lambda: texts(count), float("inf"))
    run = product_cli.prepare(corpus, base, scratch, "decompress.chunk_bytes=16000000")
    for stage in ("decompress", "tokenize.shards"):
        run.stage(stage)
    usage = run.stage("tokenize.seal")
    (folder,) = run.data_folder.glob("shards-*/seal")
    receipt = load(folder)
    assert receipt
    distinct = sum(split["documents"] for split in receipt.facts["splits"].values())
    repeated = sum(receipt.facts["duplicates"].values())
    assert distinct + repeated == count, receipt.facts
    return (
        f"| {distinct:,} | {repeated:,} | {len(run.shards())} | {usage.cpu:.1f} | {usage.wall:.1f} "
        f"| {usage.process / 1e6:,.0f} |"
    )


def main() -> None:
    """Measure each count on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--documents", default="500000,5000000", help="numbers of documents, comma-separated"
    )
    counts = [int(count) for count in parser.parse_args().documents.split(",")]
    base = model.make(DATA / "model", functools.partial(corpora.cached, DATA))
    print(HEAD)
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        for count in counts:
            log(f"{count:,} documents")
            print(row(count, Path(name), base), flush=True)


if __name__ == "__main__":
    main()
