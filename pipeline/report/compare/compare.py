"""Several runs side by side: their settings, learning curves, scores and costs.

Differences between two runs are paired by document if both were scored on the same documents: per
token if the tokens are the same, otherwise per byte, which does not depend on the tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.receipt import verify
from pipeline.core.redaction import redact_all
from pipeline.core.stage import Inputs, RunConfig
from pipeline.evaluate import metrics
from pipeline.evaluate.contamination import overlap
from pipeline.report import SECTIONS, page
from pipeline.report.build import ReportData, collect
from pipeline.report.compare import ranking
from pipeline.report.figures import overlay
from pipeline.report.history import cost
from pipeline.report.history.progress import RunProgress
from pipeline.tokenize.facts import HELD_OUT_SPLITS

LETTERS = "ABCDEFGH"
_DEFINITIONS = {
    "against": "paired difference, a run minus the first one on the same documents, with the 95 % "
    "interval of a bootstrap over documents: perplexity in percent if the tokens are the same, "
    "otherwise bits per byte; below zero is better",
    "ranking": "the best run has the fewest bits per byte on validation, so that the choice does "
    "not bias its test score; each interval is for a single comparison: among many runs, one will "
    "look better by chance",
}


@dataclass(frozen=True)
class ComparedRun:
    """A run to compare: its configuration, finished steps, progress and task logs."""

    config: RunConfig
    inputs: Inputs
    run_progress: RunProgress
    logs: Path | None = None


def compare(runs: Sequence[ComparedRun], folder: Path) -> dict[str, Any]:
    """Write `compare.json`, `compare.md`, `compare.html` and the figures into `folder`.

    Args:
        runs: Up to eight; the others are compared with the first.
        folder: The folder to write into.

    Returns:
        The content of `compare.json`.

    Raises:
        CorruptInput: A score is damaged.
    """
    report_data = [collect(run.config, run.inputs, run.logs, run.run_progress) for run in runs]
    scores = {split: [_scores(run, split) for run in runs] for split in HELD_OUT_SPLITS}
    rows = [_row(*row) for row in zip(LETTERS, runs, report_data, strict=False)]
    evaluation = {
        split: _evaluation(runs, report_data, scores[split], split) for split in HELD_OUT_SPLITS
    }
    content: dict[str, Any] = {
        "verdict": ranking.verdict(rows, evaluation, _pairs(runs, rows, scores, evaluation)),
        "runs": rows,
        "differences": _differences(runs, deciding=True),
        "circumstances": _differences(runs, deciding=False),
        "evaluation": {
            split: scored for split, scored in evaluation.items() if any(scored["runs"])
        },
        "definitions": {
            **metrics.DEFINITIONS,
            **overlap.DEFINITIONS,
            **cost.DEFINITIONS,
            **_DEFINITIONS,
        },
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / "compare.json").write_text(text, encoding="utf-8")
    notes = _notes(rows, evaluation)
    drawn = overlay.draw(content, [data.curve for data in report_data], folder)
    page.write_page("compare", content | drawn | notes, folder / "compare")
    return content


def _notes(rows: Sequence[dict[str, Any]], evaluation: dict[str, Any]) -> dict[str, bool]:
    """What makes numbers on the page less comparable than they look."""
    scored = [one for split in evaluation.values() for one in split["runs"] if one]
    under = {(row["compute"], row["weights"]) for row in rows if row["compute"]}
    models = {row["model"] for row in rows}
    return {
        "mixed": len(under) > 1,
        "windows": len({(one["context"], one["stride"]) for one in scored}) > 1,
        "tokens_differ": len(models) > 1
        and not all(split["tokens"] for split in evaluation.values()),
        "unfinished": any(row["training"] and not row["training"]["finished"] for row in rows),
    }


_TRAINED = ("method", "steps", "tokens", "seconds", "tokens_per_second", "best_step", "best_loss")


def _row(letter: str, run: ComparedRun, data: ReportData) -> dict[str, Any]:
    """Name, model, state, training and cost of a run."""
    report = data.report
    trained, unfinished = report["training"], report["progress"]["training"]
    under = report["evaluation"].get("test", {}).get("tuned") or {}
    if trained and under:
        state = "evaluated"
    elif trained:
        state = "trained, not evaluated yet"
    elif unfinished:
        state = f"training, step {unfinished['step']:,}" + (
            f" of {unfinished['of']:,}" if unfinished["of"] else ""
        )
    else:
        state = "not trained yet"
    training = None
    if trained or unfinished:
        training = {name: (trained or unfinished).get(name) for name in _TRAINED}
        training["steps"] = trained["steps"] if trained else unfinished["step"]
        training["finished"] = bool(trained)
        training["interruptions"] = trained["interruptions"] if trained else unfinished["restarts"]
    return {
        "letter": letter,
        "name": run.config.name,
        "dataset": run.config.dataset.id,
        "model": run.config.model.id,
        "state": state,
        **{name: under.get(name) for name in ("precision", "weights", "compute", "loss")},
        "training": training,
        "cost": report["cost"],
        "stages": {name: stage["seconds"] for name, stage in report["stages"].items()},
    }


def _differences(runs: Sequence[ComparedRun], deciding: bool) -> dict[str, list[Any]]:
    """The settings in which the runs differ: by dotted name, the value of each run.

    Args:
        runs: The runs.
        deciding: Settings that affect results; otherwise those that do not.
    """
    flat = [redact_all(_flat(run.config, deciding)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    values = {name: [settings.get(name) for settings in flat] for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def _flat(config: RunConfig, deciding: bool) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section in SECTIONS:
        keyed = getattr(config, section).hashed_values()
        values = getattr(config, section).model_dump(mode="json")
        chosen = keyed if deciding else {n: v for n, v in values.items() if n not in keyed}
        flat |= {f"{section}.{name}": value for name, value in chosen.items()}
    return flat


def _scores(run: ComparedRun, split: str) -> pa.Table | None:
    """Scores of the adapted model, a row per document; None if there are none."""
    finished_step = run.inputs.get("evaluate.tuned")
    receipt = finished_step.receipts.get(split) if finished_step else None
    if finished_step is None or receipt is None:
        return None
    path = verify(finished_step.folder / split, "scores.parquet", receipt)
    return pq.read_table(path, columns=["hash", "nll", "tokens", "bytes"])


def _evaluation(
    runs: Sequence[ComparedRun],
    report_data: Sequence[ReportData],
    scores: Sequence[pa.Table | None],
    split: str,
) -> dict[str, Any]:
    """The scores of each run on a split, and how each but the first compares with the first.

    `documents`, `tokens`: whether all runs were scored on the same ones.
    """
    rows: list[dict[str, Any] | None] = []
    present = [table for table in scores if table is not None]
    for number, (data, table) in enumerate(zip(report_data, scores, strict=True)):
        scored = data.report["evaluation"].get(split)
        if table is None or scored is None:
            rows.append(None)
            continue
        names = ("documents", "of_documents", "context", "stride")
        row = {name: scored[name] for name in names}
        row |= {model: scored[model] for model in ("base", "tuned") if model in scored}
        row |= {name: scored.get(name) for name in ("paired", "without_near_duplicates")}
        row["against"] = None
        if number and scores[0] is not None:
            resamples = runs[number].config.evaluate.resamples
            row["against"] = compare_scores(scores[0], table, resamples)
        rows.append(row)
    same = [
        bool(table["tokens"].equals(present[0]["tokens"]))
        for table in present
        if _same_documents(present[0], table)
    ]
    return {
        "runs": rows,
        "documents": len(same) == len(present),
        "tokens": all(same) and len(same) == len(present),
    }


def _same_documents(one: pa.Table, other: pa.Table) -> bool:
    """Whether both were scored on the same documents."""
    return bool(one["hash"].equals(other["hash"]) and one["bytes"].equals(other["bytes"]))


def compare_scores(one: pa.Table, other: pa.Table, resamples: int) -> dict[str, Any] | None:
    """The paired difference, other minus one.

    Args:
        one: Scores, a row per document: hash, nll (nats), tokens, bytes.
        other: The scores of another run.
        resamples: Of the bootstrap.

    Returns:
        `unit`: "token", with `percent` of perplexity, or "byte", with `bits` per byte; and `ci95`.
        None if the documents are not the same.
    """
    if not _same_documents(one, other):
        return None
    by_token = one["tokens"].equals(other["tokens"])
    nll = one["nll"].to_numpy(), other["nll"].to_numpy()
    result = metrics.change(*nll, one["tokens" if by_token else "bytes"].to_numpy(), resamples)
    if by_token:
        return {"unit": "token", "percent": result.percent, "ci95": list(result.ci95_percent)}
    low, high = (value / math.log(2) for value in result.ci95)
    return {"unit": "byte", "bits": result.difference / math.log(2), "ci95": [low, high]}


def _pairs(
    runs: Sequence[ComparedRun],
    rows: Sequence[dict[str, Any]],
    scores: dict[str, list[pa.Table | None]],
    evaluation: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """By letter, how the best run compares with each other run on test."""
    best = ranking.best_run(rows, evaluation)
    if best is None:
        return {}
    best_scores = scores["test"][best]
    assert best_scores is not None
    pairs: dict[str, dict[str, Any]] = {}
    for index, (row, table) in enumerate(zip(rows, scores["test"], strict=True)):
        if index != best and table is not None:
            pair = compare_scores(table, best_scores, runs[best].config.evaluate.resamples)
            pairs |= {row["letter"]: pair} if pair else {}
    return pairs
