"""The report of a run: everything that its receipts, scores and logs say, as a page and as JSON.

No model is needed, so a report can be written at any time. What does not exist yet is null in the
JSON, and the page says so.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import provenance
from pipeline.core.receipt import Receipt, verify
from pipeline.core.stage import Inputs, RunConfig
from pipeline.evaluate import memorization, metrics
from pipeline.evaluate.contamination import overlap
from pipeline.evaluate.contamination.ngrams import NGRAM_TOKENS
from pipeline.evaluate.facts import sample_facts
from pipeline.evaluate.stage import samples_item
from pipeline.report import page
from pipeline.report.findings import findings, verdict
from pipeline.report.history import cost, progress, stragglers, timeline
from pipeline.report.history.progress import RunProgress
from pipeline.report.history.training_curve import Curve, read_curve
from pipeline.report.results import MODELS, Results, precisions, read_results
from pipeline.report.settings_diff import describe_settings
from pipeline.report.suggestions import suggestions
from pipeline.tokenize.facts import seal_facts
from pipeline.train.metrics_log import METRICS_FILE

_DEFINITIONS = {
    "split": "by a hash of the text, or of the field that dataset.split_by names; equal texts "
    "count once",
    "documents": "those with the lowest text hashes of each split, at most "
    "evaluate.max_documents; with evaluate.max_tokens those that still fit, which favours short "
    "ones",
    "bits_ci95": "ci95 of bits_per_byte",
    "context": "tokens that the model sees at once; in longer documents a window moves by stride "
    "tokens",
    "precision": "the setting train.precision, auto resolved",
    "weights": "the format of the base model's weights; adapters are fp32",
    "compute": "the format in which layers compute: bf16 with weights in nf4, else that of "
    "autocast, or without it (precision fp32) that of weights in 16 or 32 bits",
    "loss": "the format of the softmax and of each token's loss; sums are float64",
    "copied": f"{memorization.DEFINITIONS['copied']}; null if evaluate.new_tokens is less",
    "provenance": "code, hosts: of the computations, from the receipts; reported_by, packages, "
    "hardware: of the machine that wrote this report",
}


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    `report`: the content of `report.json`. `curve`: of the training, finished or not. `results`: of
    the evaluation, as far as it is finished.
    """

    report: dict[str, Any]
    curve: Curve | None
    results: Results


def write_report_files(
    config: RunConfig,
    inputs: Inputs,
    folder: Path,
    logs: Path | None = None,
    run_progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Write `report.json`, `report.md`, `report.html` and the figures into `folder`.

    Args:
        config: The run.
        inputs: What is finished, by step; any step or item may be missing.
        folder: The folder to write into.
        logs: The folder of the run's task logs.
        run_progress: How far the run is; None if it is finished.

    Returns:
        The content of `report.json`.

    Raises:
        CorruptInput: A score or a sample is damaged.
    """
    data = collect(config, inputs, logs, run_progress)
    text = json.dumps(data.report, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text, encoding="utf-8")
    page.write_report(data.report, data.curve, data.results, _samples(config, inputs), folder)
    return data.report


def collect(
    config: RunConfig,
    inputs: Inputs,
    logs: Path | None = None,
    run_progress: RunProgress | None = None,
) -> ReportData:
    """Read everything a report shows; arguments and errors are those of `build`."""
    curve = _curve(inputs, run_progress)
    results = read_results(config, inputs)
    unfinished = (
        progress.describe_progress(run_progress, curve, "train.train" in inputs)
        if run_progress
        else None
    )
    report: dict[str, Any] = {
        "run": config.name,
        "dataset": {"id": config.dataset.id, "licence": config.dataset.licence},
        "model": {"id": config.model.id},
        "verdict": progress.headline(unfinished)
        if unfinished
        else verdict(results.evaluation.get("test")),
        "progress": unfinished,
        "corpus": _corpus(inputs),
        "evaluation": results.evaluation,
        "gap": results.gap,
        "overlap": results.overlap,
        "written": _written(config, inputs),
        "training": _training(config, inputs, curve),
        "stages": _stages(inputs),
        "cost": cost.cost(inputs, curve, logs),
        "timeline": timeline.timeline(logs, _complete_steps(inputs, run_progress), curve),
        "definitions": {
            **metrics.DEFINITIONS,
            **overlap.DEFINITIONS,
            **memorization.DEFINITIONS,
            **_DEFINITIONS,
            **cost.DEFINITIONS,
            **stragglers.DEFINITIONS,
            **timeline.DEFINITIONS,
        },
        "settings": describe_settings(config),
        "provenance": _provenance(inputs),
    }
    report |= {"findings": findings(report), "next": suggestions(report)}
    if unfinished:
        report["provenance"]["finished"] = "not yet"
    return ReportData(report, curve, results)


def _complete_steps(inputs: Inputs, run_progress: RunProgress | None) -> Inputs:
    """The steps that are complete."""
    if run_progress is None:
        return inputs
    done = {step.step for step in run_progress.steps if step.state == "done"}
    return {name: finished_step for name, finished_step in inputs.items() if name in done}


def _receipt(inputs: Inputs, step: str, item: str | None = None) -> Receipt | None:
    """The receipt of an item; without a name, of the only item of the step."""
    if step not in inputs:
        return None
    return inputs[step].receipts.get(item) if item else inputs[step].one()[1]


def _corpus(inputs: Inputs) -> dict[str, Any] | None:
    seal = _receipt(inputs, "tokenize.seal")
    if seal is None:
        return None
    facts, corpus = seal_facts(seal), _receipt(inputs, "download.corpus")
    splits = facts["splits"]
    return {
        "documents": sum(split["documents"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "tokens": sum(split["tokens"] for split in splits.values()),
        "duplicates": sum(facts["duplicates"].values()),
        "quarantined": facts["quarantined"],
        "empty": facts["empty"],
        "passed_over": corpus.facts.get("passed_over", 0) if corpus else 0,
        "encoder": facts.get("encoder"),  # not in seals of earlier versions
        "splits": splits,
    }


_TRAINED = (
    *("method", "steps", "tokens", "tokens_per_second", "best_step", "best_loss", "skipped"),
    *("precision", "trainable", "parameters", "seconds"),
)


def _training(config: RunConfig, inputs: Inputs, curve: Curve | None) -> dict[str, Any] | None:
    receipt = _receipt(inputs, "train.train")
    if receipt is None:
        return None
    facts = {name: receipt.facts.get(name) for name in _TRAINED}
    facts |= precisions(config.train.weights, receipt.facts["precision"])
    last = curve.validation[-1][1] if curve and curve.validation else None
    restarts = len(curve.restarts) if curve else receipt.facts["attempts"] - 1
    return {**facts, "interruptions": restarts, "last_loss": last}


def _curve(inputs: Inputs, run_progress: RunProgress | None) -> Curve | None:
    if "train.train" in inputs:
        return read_curve(inputs["train.train"].folder / "best" / METRICS_FILE)
    if run_progress and run_progress.training:
        return read_curve(run_progress.training / METRICS_FILE)
    return None


def _written(config: RunConfig, inputs: Inputs) -> dict[str, Any] | None:
    """Figures of the generated texts, by model and kind of text.

    None where texts are too short for a figure.
    """
    min_tokens = {
        "copied_longest": NGRAM_TOKENS,
        "copied_mean": NGRAM_TOKENS,
        "copied_long": memorization.LONG_COPY_TOKENS,
    }
    unknown = dict.fromkeys(
        name for name, tokens in min_tokens.items() if config.evaluate.new_tokens < tokens
    )
    metrics_by_model = {}
    for model in MODELS:
        receipt = _receipt(inputs, f"evaluate.{model}", samples_item(config))
        if receipt:
            kinds = sample_facts(receipt)["written"]
            metrics_by_model[model] = {kind: {**m, **unknown} for kind, m in kinds.items()}
    return metrics_by_model or None


def _samples(config: RunConfig, inputs: Inputs) -> dict[str, list[dict[str, Any]]]:
    """By kind of prompt: prompt and reference, and what each model generated."""
    written = {}
    for model in MODELS:
        receipt = _receipt(inputs, f"evaluate.{model}", samples_item(config))
        if receipt is None:
            return {"held_out": [], "learned": []}
        unit = inputs[f"evaluate.{model}"].folder / samples_item(config)
        path = verify(unit, "samples.json", receipt)
        written[model] = json.loads(path.read_text(encoding="utf-8"))
    return {
        kind: [
            {"prompt": base["prompt"], "reference": base["reference"], "base": base, "tuned": tuned}
            for base, tuned in zip(written["base"][kind], written["tuned"][kind], strict=True)
        ]
        for kind in written["base"]
    }


def _stages(inputs: Inputs) -> dict[str, Any]:
    slowest = stragglers.slowest(inputs)
    return {name: {**sums, "slowest": slowest[name]} for name, sums in cost.stages(inputs).items()}


def _provenance(inputs: Inputs) -> dict[str, Any]:
    receipts = [
        receipt for finished_step in inputs.values() for receipt in cost.units(finished_step)
    ]
    written = max((receipt.written for receipt in receipts), default=0.0)
    return {
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written)),
        "code": sorted({receipt.code for receipt in receipts if receipt.code}),
        "hosts": sorted({receipt.host for receipt in receipts if receipt.host}),
        "reported_by": provenance.code_version(),
        "packages": provenance.packages(),
        "hardware": provenance.hardware(),
        "steps": {
            step: {
                "key": next(iter(finished_step.receipts.values())).key,
                "digest": finished_step.digest,
                "items": len(finished_step.receipts),
            }
            for step, finished_step in inputs.items()
        },
    }
