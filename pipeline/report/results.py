"""Summaries of a run's scores: by split, by document length and by position in the document.

Base and adapted model scored the same documents, so changes are paired, with an interval that is
bootstrapped over documents.
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
from pipeline.evaluate.facts import score_facts
from pipeline.modeling.device import Precision, WeightFormat, compute_precision
from pipeline.modeling.loss import LOSS_PRECISION
from pipeline.tokenize.facts import SPLITS, seal_facts

MODELS = ("base", "tuned")
"""`tuned` is the adapted model."""
LENGTH_EDGES = (64, 128, 256, 512, 1024, 2048)
"""Bounds, in tokens, of the groups of documents by length."""
MIN_GROUP_DOCUMENTS = 10
"""A group needs that many documents."""
MIN_GROUP_TOKENS = 1000
"""A group by position needs that many tokens."""
_SCORED = ("documents", "of_documents", "tokens", "bytes", "words", "context", "stride")
_MEASURED = ("perplexity", "bits_per_byte", "word_perplexity")


@dataclass(frozen=True)
class Results:
    """What evaluation found so far.

    `evaluation`: by split, for `report.json`. `changes`: by split, the change of each document in
    nats per token. `lengths`: tokens of each scored training document. `gap`, `overlap`: for
    `report.json`; None if not known yet.
    """

    evaluation: dict[str, Any]
    changes: dict[str, Any]
    lengths: Any
    gap: dict[str, Any] | None
    overlap: dict[str, Any] | None


def read_results(config: RunConfig, inputs: Inputs) -> Results:
    """Read the scores of a run, as far as they are finished.

    Raises:
        CorruptInput: A score is damaged.
    """
    resamples = config.evaluate.resamples
    evaluation: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    differences: dict[str, tuple[Any, Any]] = {}
    lengths = None
    for split in SPLITS:
        tables = _tables(inputs, split)
        if not tables:
            continue
        scores = evaluation[split] = _totals(inputs, split, tables, resamples)
        first = next(iter(tables.values()))
        tokens = first["tokens"].to_numpy()
        lengths = tokens if split == "train" else lengths
        if len(tables) < len(MODELS):
            continue
        base, tuned = (tables[model]["nll"].to_numpy() for model in MODELS)
        differences[split] = tuned - base, tokens
        changes[split] = (tuned - base) / tokens
        scores["paired"] = paired(base, tuned, tokens, resamples)
        scores["by_length"] = _by_length(base, tuned, tokens, resamples)
        scores["by_position"] = _by_position(inputs, split)
        if (near := _near_duplicates(inputs, split, first)) is not None:
            scores["without_near_duplicates"] = _without(base, tuned, tokens, near, resamples)
    gap = None
    if {"train", "test"} <= differences.keys():
        value, ci95 = metrics.gap(differences["train"], differences["test"], resamples)
        gap = {"difference": value, "ci95": ci95, "seen": _share_read(inputs)}
    return Results(evaluation, changes, lengths, gap, _overlap(inputs))


def _tables(inputs: Inputs, split: str) -> dict[str, pa.Table]:
    """By model, a table with a row per document."""
    tables = {}
    for model in MODELS:
        finished_step = inputs.get(f"evaluate.{model}")
        if finished_step and (receipt := finished_step.receipts.get(split)):
            tables[model] = pq.read_table(
                verify(finished_step.folder / split, "scores.parquet", receipt)
            )
    same = [table.select(["hash", "tokens"]) for table in tables.values()]
    if len(same) == len(MODELS) and not same[0].equals(same[1]):
        raise CorruptInput(f"base and adapted model were scored on different {split} documents")
    return tables


def _totals(
    inputs: Inputs, split: str, tables: dict[str, pa.Table], resamples: int
) -> dict[str, Any]:
    """What was scored, and by model the metrics.

    Metrics are as recorded in the receipt; their intervals are computed here from the table.
    """
    totals: dict[str, Any] = {}
    for model, table in tables.items():
        facts = inputs[f"evaluate.{model}"].receipts[split].facts
        totals |= {name: facts[name] for name in _SCORED if name not in totals}
        nll, tokens, size = (table[name].to_numpy() for name in ("nll", "tokens", "bytes"))
        totals[model] = {
            **{name: facts[name] for name in _MEASURED},
            "ci95": list(metrics.interval(nll, tokens, resamples)),
            "precision": facts["precision"],
            **precisions(facts["weights"], facts["precision"]),
            "bits_ci95": [math.log2(end) for end in metrics.interval(nll, size, resamples)],
        }
    return totals


def precisions(weights: WeightFormat, precision: Precision) -> dict[str, str]:
    """The formats of weights, compute and loss, for `report.json`.

    Args:
        weights: Setting of the run.
        precision: Setting of the run, as resolved.
    """
    return {
        "weights": weights,
        "compute": compute_precision(weights, precision),
        "loss": LOSS_PRECISION,
    }


def paired(base: Any, tuned: Any, tokens: Any, resamples: int) -> dict[str, Any]:
    """The paired change for `report.json`; nats and tokens are (documents,)."""
    result = metrics.change(base, tuned, tokens, resamples)
    return {
        "difference": result.difference,
        "ci95": result.ci95,
        "perplexity_change_percent": result.percent,
        "ci95_percent": result.ci95_percent,
        "improved_documents": float(np.mean(tuned < base)),
    }


def _perplexities(base: Any, tuned: Any, tokens: Any) -> dict[str, Any]:
    values = (metrics.perplexity(nll, tokens) for nll in (base, tuned))
    return dict(zip(MODELS, values, strict=True))


def _by_length(base: Any, tuned: Any, tokens: Any, resamples: int) -> list[dict[str, Any]]:
    groups = np.searchsorted(LENGTH_EDGES, tokens, side="right")
    rows = []
    for group in range(len(LENGTH_EDGES) + 1):
        chosen = groups == group
        if (documents := int(chosen.sum())) < MIN_GROUP_DOCUMENTS:
            continue
        scores = base[chosen], tuned[chosen], tokens[chosen]
        rows.append(
            {
                "from": ([0, *LENGTH_EDGES])[group],
                "below": ([*LENGTH_EDGES, None])[group],
                "documents": documents,
                **_perplexities(*scores),
                "paired": paired(*scores, resamples),
            }
        )
    return rows


def _by_position(inputs: Inputs, split: str) -> list[dict[str, Any]]:
    """Perplexity of tokens by the number of tokens before them."""
    receipts = [inputs[f"evaluate.{model}"].receipts[split] for model in MODELS]
    sums = [np.array(score_facts(receipt)["by_position"]) for receipt in receipts]
    rows = []
    for bucket, (base, tuned) in enumerate(zip(*sums, strict=True)):
        if base[1] < MIN_GROUP_TOKENS:
            continue
        perplexities = (float(np.exp(nats / count)) for nats, count in (base, tuned))
        rows.append(
            {
                "from": 2**bucket - 1,
                "below": 2 ** (bucket + 1) - 1,
                "tokens": int(base[1]),
                **dict(zip(MODELS, perplexities, strict=True)),
            }
        )
    return rows


def _near_duplicates(inputs: Inputs, split: str, scored: pa.Table) -> Any:
    """Whether each scored document is near a training document, (documents,); None if unknown."""
    finished_step = inputs.get("evaluate.overlap")
    if finished_step is None or split == "train":
        return None
    unit, receipt = finished_step.one()
    table = pq.read_table(verify(unit, f"{split}.parquet", receipt))
    if not table["hash"].equals(scored["hash"]):
        raise CorruptInput(f"scores and overlap are of different {split} documents")
    return table["near"].to_numpy()


def _without(
    base: Any, tuned: Any, tokens: Any, near: Any, resamples: int
) -> dict[str, Any] | None:
    """The metrics without near-duplicates of training documents."""
    kept = ~near
    if kept.sum() < MIN_GROUP_DOCUMENTS:
        return None
    scores = base[kept], tuned[kept], tokens[kept]
    return {
        "documents": int(kept.sum()),
        "left_out": int(near.sum()),
        **_perplexities(*scores),
        "paired": paired(*scores, resamples),
    }


def _overlap(inputs: Inputs) -> dict[str, Any] | None:
    if "evaluate.overlap" not in inputs:
        return None
    facts = inputs["evaluate.overlap"].one()[1].facts
    return {name: facts[name] for name in facts if name not in ("seconds", "cpus", "gpus")}


def _share_read(inputs: Inputs) -> float | None:
    """Share of the training tokens that the kept checkpoint was trained on."""
    if "train.train" not in inputs or "tokenize.seal" not in inputs:
        return None
    facts = inputs["train.train"].one()[1].facts
    train = seal_facts(inputs["tokenize.seal"].one()[1])["splits"]["train"]
    read = facts["tokens"] * facts["best_step"] / max(1, facts["steps"])
    return min(1.0, read / (train["tokens"] + train["documents"]))
