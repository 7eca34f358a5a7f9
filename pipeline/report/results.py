"""What the scores of a run add up to: by split, length and position, with and without near-copies.

Base and adapted model were scored on the same documents, so each change is a paired one, with an
interval over documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import verify
from pipeline.core.stage import Inputs, RunConfig
from pipeline.evaluate import metrics
from pipeline.tokenize.facts import SPLITS, seal_facts

MODELS = ("base", "tuned")
LENGTH_EDGES = (64, 128, 256, 512, 1024, 2048)
"""Tokens at which documents are parted by length."""
MIN_GROUP_DOCUMENTS = 10
"""Documents, or a hundred times as many tokens, below which a part is not told apart."""
_SCORED = ("documents", "of_documents", "tokens", "bytes", "words", "context", "stride")
_MEASURED = ("perplexity", "bits_per_byte", "word_perplexity", "ci95", "precision", "weights")


@dataclass(frozen=True)
class Results:
    """What evaluation found.

    `evaluation`: by split, for `report.json`. `changes`: by split, the change of each document,
    nats a token. `lengths`: tokens of each training document scored. `gap`, `overlap`: for
    `report.json`; None where they are not known yet.
    """

    evaluation: dict[str, Any]
    changes: dict[str, Any]
    lengths: Any
    gap: dict[str, Any] | None
    overlap: dict[str, Any] | None


def read_results(config: RunConfig, inputs: Inputs) -> Results:
    """What the evaluation of a run has found so far.

    Raises:
        CorruptInput: A score is damaged.
    """
    evaluation: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    pairs: dict[str, tuple[Any, Any]] = {}
    lengths = None
    for split in SPLITS:
        tables = _tables(inputs, split)
        if not tables:
            continue
        found = evaluation[split] = _facts(inputs, split)
        resamples = config.evaluate.resamples
        for who, table in tables.items():
            found[who]["bits_ci95"] = _bits(table, resamples)
        first = next(iter(tables.values()))
        lengths = first["tokens"].to_numpy() if split == "train" else lengths
        if len(tables) < len(MODELS):
            continue
        base, tuned = (tables[who]["nll"].to_numpy() for who in MODELS)
        tokens = first["tokens"].to_numpy()
        pairs[split] = tuned - base, tokens
        changes[split] = (tuned - base) / tokens
        found["paired"] = paired(base, tuned, tokens, resamples)
        found["by_length"] = _by_length(base, tuned, tokens, resamples)
        found["by_position"] = _by_position(inputs, split)
        if (near := _near(inputs, split, first)) is not None:
            found["without_near_duplicates"] = _without(base, tuned, tokens, near, resamples)
    gap = None
    if {"train", "test"} <= pairs.keys():
        value, ci95 = metrics.gap(pairs["train"], pairs["test"], config.evaluate.resamples)
        gap = {"difference": value, "ci95": ci95, "seen": _seen(inputs)}
    return Results(evaluation, changes, lengths, gap, _overlap(inputs))


def _tables(inputs: Inputs, split: str) -> dict[str, pa.Table]:
    """By model, a row a document."""
    tables = {}
    for who in MODELS:
        given = inputs.get(f"evaluate.{who}")
        if given and (receipt := given.receipts.get(split)):
            tables[who] = pq.read_table(verify(given.folder / split, "scores.parquet", receipt))
    same = [table.select(["hash", "tokens"]) for table in tables.values()]
    if len(same) == len(MODELS) and not same[0].equals(same[1]):
        raise CorruptInput(f"base and adapted model were scored on different {split} documents")
    return tables


def _facts(inputs: Inputs, split: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for who in MODELS:
        given = inputs.get(f"evaluate.{who}")
        if given and (receipt := given.receipts.get(split)):
            found |= {name: receipt.facts[name] for name in _SCORED if name not in found}
            found[who] = {name: receipt.facts[name] for name in _MEASURED}
    return found


def _bits(table: pa.Table, resamples: int) -> list[float]:
    """95 % interval of bits per byte, of scores, a row a document."""
    pair = metrics.interval(table["nll"].to_numpy(), table["bytes"].to_numpy(), resamples)
    return [math.log2(value) for value in pair]


def paired(base: Any, tuned: Any, tokens: Any, resamples: int) -> dict[str, Any]:
    """The paired change of documents, all (documents,), as `report.json` has it."""
    result = metrics.change(base, tuned, tokens, resamples)
    return {
        "difference": result.difference,
        "ci95": result.ci95,
        "perplexity_change_percent": result.percent,
        "ci95_percent": result.ci95_percent,
        "improved_documents": float(np.mean(tuned < base)),
    }


def _both(base: Any, tuned: Any, tokens: Any) -> dict[str, Any]:
    perplexities = (metrics.perplexity(nll, tokens) for nll in (base, tuned))
    return dict(zip(MODELS, perplexities, strict=True))


def _by_length(base: Any, tuned: Any, tokens: Any, resamples: int) -> list[dict[str, Any]]:
    part = np.searchsorted(LENGTH_EDGES, tokens, side="right")
    rows = []
    for index in range(len(LENGTH_EDGES) + 1):
        chosen = part == index
        if (documents := int(chosen.sum())) < MIN_GROUP_DOCUMENTS:
            continue
        those = base[chosen], tuned[chosen], tokens[chosen]
        rows.append(
            {
                "from": ([0, *LENGTH_EDGES])[index],
                "below": ([*LENGTH_EDGES, None])[index],
                "documents": documents,
                **_both(*those),
                "paired": paired(*those, resamples),
            }
        )
    return rows


def _by_position(inputs: Inputs, split: str) -> list[dict[str, Any]]:
    """Perplexity of the tokens that so many others stand before."""
    sums = [np.array(inputs[f"evaluate.{who}"].receipts[split].facts["places"]) for who in MODELS]
    rows = []
    for place, (base, tuned) in enumerate(zip(*sums, strict=True)):
        if base[1] < 100 * MIN_GROUP_DOCUMENTS:
            continue
        means = (float(np.exp(nats / count)) for nats, count in (base, tuned))
        rows.append(
            {
                "from": 2**place - 1,
                "below": 2 ** (place + 1) - 1,
                "tokens": int(base[1]),
                **dict(zip(MODELS, means, strict=True)),
            }
        )
    return rows


def _near(inputs: Inputs, split: str, scored: pa.Table) -> Any:
    """Whether each scored document is a near-copy of a training document; None if not known."""
    given = inputs.get("evaluate.overlap")
    if given is None or split == "train":
        return None
    unit, receipt = given.one()
    table = pq.read_table(verify(unit, f"{split}.parquet", receipt))
    if not table["hash"].equals(scored["hash"]):
        raise CorruptInput(f"scores and overlap are of different {split} documents")
    return table["near"].to_numpy()


def _without(
    base: Any, tuned: Any, tokens: Any, near: Any, resamples: int
) -> dict[str, Any] | None:
    """The same measures without near-copies of training documents."""
    kept = ~near
    if kept.sum() < MIN_GROUP_DOCUMENTS:
        return None
    those = base[kept], tuned[kept], tokens[kept]
    return {
        "documents": int(kept.sum()),
        "left_out": int(near.sum()),
        **_both(*those),
        "paired": paired(*those, resamples),
    }


def _overlap(inputs: Inputs) -> dict[str, Any] | None:
    if "evaluate.overlap" not in inputs:
        return None
    facts = inputs["evaluate.overlap"].one()[1].facts
    return {name: facts[name] for name in facts if name not in ("seconds", "cpus", "gpus")}


def _seen(inputs: Inputs) -> float | None:
    """Share of the training tokens that the kept checkpoint had learned from."""
    if "train.train" not in inputs or "tokenize.seal" not in inputs:
        return None
    facts = inputs["train.train"].one()[1].facts
    train = seal_facts(inputs["tokenize.seal"].one()[1])["splits"]["train"]
    read = facts["tokens"] * facts["best_step"] / max(1, facts["steps"])
    return min(1.0, read / (train["tokens"] + train["documents"]))
