"""The facts in the receipts of scores, generated texts and overlap."""

from __future__ import annotations

from typing import Any, TypedDict, cast

from pipeline.core.receipt import Receipt


class ScoringConditions(TypedDict):
    """How a model was run, and what that cost.

    `weights`: their precision, as in `train.weights`. `device`: type of the device. `cpus`,
    `gpus`: granted to the task.
    """

    precision: str
    weights: str
    device: str
    cpus: int
    gpus: int


class Scores(TypedDict):
    """What a model scored on a split.

    `documents`, `tokens`, `bytes`, `words`: what was scored, of `of_documents` documents in the
    split. `by_position`: nats and tokens by position, see `ScoredBatch.by_position`. `context`,
    `stride`: the sliding window, in tokens.
    """

    perplexity: float
    bits_per_byte: float
    word_perplexity: float | None
    documents: int
    of_documents: int
    tokens: int
    bytes: int
    words: int
    by_position: list[list[float]]
    context: int
    stride: int
    batch_tokens: int


class ScoreFacts(ScoringConditions, Scores):
    """Facts of a split that a model scored."""

    seconds: float


class SampleFacts(ScoringConditions):
    """Facts of generated texts; `written`: by kind of text, see `memorization`."""

    written: dict[str, dict[str, Any]]
    seconds: float


class SplitOverlap(TypedDict):
    """How much of a held-out split occurs in the training documents.

    `near_duplicates`: documents. `any_overlap`: documents with a covered token. `covered_share`:
    of the tokens. `too_short`: documents without any n-gram.
    """

    documents: int
    near_duplicates: int
    any_overlap: int
    covered_share: float
    too_short: int


def score_facts(receipt: Receipt) -> ScoreFacts:
    """The facts of a split that a model scored."""
    return cast("ScoreFacts", receipt.facts)


def sample_facts(receipt: Receipt) -> SampleFacts:
    """The facts of generated texts."""
    return cast("SampleFacts", receipt.facts)
