"""The facts that the receipts of chunks hold: decompress writes them, tokenize reads them."""

from __future__ import annotations

from typing import Any, TypedDict, cast

from pipeline.core.receipt import Receipt


class ChunkFacts(TypedDict):
    """Facts of a chunk.

    `lines`, `bytes`: size of its text. `first_line`, `offset`: lines and bytes of the part before
    it. `xxh3`: xxh3-128 (hex) of the file. `text`: digest (hex) of the text. `seconds`: time taken.
    """

    lines: int
    bytes: int
    first_line: int
    offset: int
    xxh3: str
    text: str
    seconds: float


class PartFacts(TypedDict):
    """Facts of a part of the corpus, which lists its chunks.

    `lines`, `bytes`: size of its text. `files`: the raw files that begin in it, each with the
    number of lines before it. `first_lines`: `first_line` of each chunk.
    """

    lines: int
    bytes: int
    files: dict[str, int]
    first_lines: dict[str, int]


def chunk_facts(receipt: Receipt) -> ChunkFacts:
    """The facts of a chunk."""
    return cast("ChunkFacts", receipt.facts)


def part_facts(receipt: Receipt) -> PartFacts:
    """The facts of a part."""
    return cast("PartFacts", receipt.facts)


def as_facts(facts: ChunkFacts | PartFacts) -> dict[str, Any]:
    """Facts as a receipt holds them."""
    return dict(facts)
