"""The splits, the facts in the receipts of shards and seal, and the content of `seal.json`."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, cast

from pipeline.core.receipt import Receipt

HELD_OUT_SPLITS = ("validation", "test")
SPLITS = ("train", *HELD_OUT_SPLITS)


class SplitCounts(TypedDict):
    """Size of a split. `bytes`: UTF-8 bytes of the texts."""

    documents: int
    tokens: int
    bytes: int


class MalformedLine(TypedDict):
    """A malformed line. `line` counts from 1; `missing`: a `MissingField` as a dict."""

    file: str
    line: int
    reason: str
    text: str
    missing: dict[str, str] | None


class ShardFacts(TypedDict):
    """Facts of a unit of `tokenize.shards`.

    `splits`: size of each shard. `quarantined`: number of malformed lines. `first_bad`: the first
    malformed line. `empty`: number of blank lines and records without text. `grouped`: number of
    documents with a `split_by` value. `encoder`: package and version. `vocabulary`: the largest
    token id + 1. `mismatch`: how the ids of the fast encoder differed, if they did.
    """

    splits: dict[str, SplitCounts]
    quarantined: int
    first_bad: MalformedLine | None
    empty: int
    grouped: int
    encoder: str
    vocabulary: int
    mismatch: NotRequired[str | None]


class SealFacts(TypedDict):
    """Facts of the seal.

    `splits`: size of each split without duplicates. `duplicates`: duplicate rows in each.
    `quarantined`, `empty`: sums over all shards. `encoder`: packages and versions.
    """

    splits: dict[str, SplitCounts]
    duplicates: dict[str, int]
    quarantined: int
    empty: int
    encoder: NotRequired[str]


class SealContent(SealFacts):
    """Content of `seal.json`.

    `shards`: names of the shard units (`chunk-…`), each with one Parquet file per split. `kept`: by
    split, [documents, tokens] of each shard unit, duplicates not counted. `vocabulary`: as in
    `ShardFacts`.
    """

    shards: list[str]
    kept: dict[str, list[list[int]]]
    vocabulary: int


def shard_facts(receipt: Receipt) -> ShardFacts:
    """The facts of a unit of `tokenize.shards`."""
    return cast("ShardFacts", receipt.facts)


def seal_facts(receipt: Receipt) -> SealFacts:
    """The facts of the seal."""
    return cast("SealFacts", receipt.facts)


def as_facts(facts: ShardFacts | SealFacts) -> dict[str, Any]:
    """Facts as a receipt holds them."""
    return dict(facts)
