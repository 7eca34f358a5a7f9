"""The report of a run: what its receipts, scores and journals say, as one page and as numbers.

Everything is read and nothing needs a model, so a report can be made at any time. What is not there
yet is null in the numbers, and said on the page.
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
from pipeline.evaluate.stage import samples_item
from pipeline.report import page
from pipeline.report.findings import findings, verdict
from pipeline.report.history import cost, progress, stragglers, timeline
from pipeline.report.history.progress import Underway
from pipeline.report.history.training_curve import Curve, read_curve
from pipeline.report.results import MODELS, Results, read_results
from pipeline.report.settings_diff import describe_settings
from pipeline.report.suggestions import suggestions
from pipeline.tokenize.facts import seal_facts
from pipeline.train.metrics_log import METRICS_FILE

_DEFINITIONS = {
    "split": "by hash of the text, or of the field dataset.split_by names; equal texts count once",
    "documents": "of each held-out split, lowest text hash first, at most evaluate.max_documents; "
    "under evaluate.max_tokens those that still fit, which favours shorter ones",
    "bits_ci95": "ci95 of bits per byte",
    "context": "tokens the model sees at once; in longer documents a window moves by stride tokens",
    "copied": f"{memorization.DEFINITIONS['copied']}; null where evaluate.new_tokens are too few",
    "provenance": "code, hosts: of what was computed, by the receipts; reported_by, packages, "
    "hardware: of the machine that wrote this report",
}


@dataclass(frozen=True)
class Gathered:
    """What is known of a run.

    `report`: the content of `report.json`. `curve`: of the training, finished or not. `results`: of
    the evaluation, as far as it is.
    """

    report: dict[str, Any]
    curve: Curve | None
    results: Results


def build(
    config: RunConfig,
    inputs: Inputs,
    folder: Path,
    logs: Path | None = None,
    underway: Underway | None = None,
) -> dict[str, Any]:
    """Write `report.json`, `report.md`, `report.html` and the figures into `folder`.

    Args:
        config: The run.
        inputs: What is finished of it, by step; any may be missing, as may any of their items.
        folder: Where to.
        logs: Where its tasks have written down when they ran.
        underway: How far it is; None for a run that is finished.

    Returns:
        The content of `report.json`.

    Raises:
        CorruptInput: A score or a sample is damaged.
    """
    found = gather(config, inputs, logs, underway)
    text = json.dumps(found.report, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text, encoding="utf-8")
    page.render(found.report, found.curve, found.results, _samples(config, inputs), folder)
    return found.report


def gather(
    config: RunConfig, inputs: Inputs, logs: Path | None = None, underway: Underway | None = None
) -> Gathered:
    """Read what is known of a run; arguments and errors are those of `build`."""
    curve = _curve(inputs, underway)
    results = read_results(config, inputs)
    far = progress.progress(underway, curve, "train.train" in inputs) if underway else None
    report: dict[str, Any] = {
        "run": config.name,
        "dataset": {"id": config.dataset.id, "licence": config.dataset.licence},
        "model": {"id": config.model.id},
        "verdict": progress.headline(far) if far else verdict(results.evaluation.get("test")),
        "progress": far,
        "corpus": _corpus(inputs),
        "evaluation": results.evaluation,
        "gap": results.gap,
        "overlap": results.overlap,
        "written": _written(config, inputs),
        "training": _training(config, inputs, curve),
        "stages": _stages(inputs),
        "cost": cost.cost(inputs, curve, logs),
        "timeline": timeline.timeline(logs, _whole(inputs, underway), curve),
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
    if far:
        report["provenance"]["finished"] = "not yet"
    return Gathered(report, curve, results)


def _whole(inputs: Inputs, underway: Underway | None) -> Inputs:
    """The steps all of which is done."""
    if underway is None:
        return inputs
    done = {step.step for step in underway.steps if step.state == "done"}
    return {name: given for name, given in inputs.items() if name in done}


def _receipt(inputs: Inputs, step: str, item: str | None = None) -> Receipt | None:
    """The receipt of an item; without a name, of the step's only one."""
    if step not in inputs:
        return None
    return inputs[step].receipts.get(item) if item else inputs[step].one()[1]


def _corpus(inputs: Inputs) -> dict[str, Any] | None:
    seal = _receipt(inputs, "tokenize.seal")
    if seal is None:
        return None
    facts = seal_facts(seal)
    splits = facts["splits"]
    return {
        "documents": sum(split["documents"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "tokens": sum(split["tokens"] for split in splits.values()),
        "duplicates": sum(facts["duplicates"].values()),
        "quarantined": facts["quarantined"],
        "empty": facts["empty"],
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
    facts["weights"] = config.train.weights
    last = curve.validation[-1][1] if curve and curve.validation else None
    restarts = len(curve.restarts) if curve else receipt.facts["attempts"] - 1
    return {**facts, "interruptions": restarts, "last_loss": last}


def _curve(inputs: Inputs, underway: Underway | None) -> Curve | None:
    if "train.train" in inputs:
        return read_curve(inputs["train.train"].folder / "best" / METRICS_FILE)
    if underway and underway.training:
        return read_curve(underway.training / METRICS_FILE)
    return None


def _written(config: RunConfig, inputs: Inputs) -> dict[str, Any] | None:
    """Figures of what the models write, by model and kind of text.

    Null is what texts of that length cannot tell.
    """
    least = {
        "copied_longest": NGRAM_TOKENS,
        "copied_mean": NGRAM_TOKENS,
        "copied_long": memorization.LONG_COPY_TOKENS,
    }
    untold = dict.fromkeys(n for n in least if config.evaluate.new_tokens < least[n])
    found = {}
    for who in MODELS:
        receipt = _receipt(inputs, f"evaluate.{who}", samples_item(config))
        if receipt:
            kinds = receipt.facts["written"]
            found[who] = {kind: {**figures, **untold} for kind, figures in kinds.items()}
    return found or None


def _samples(config: RunConfig, inputs: Inputs) -> dict[str, list[dict[str, Any]]]:
    """By kind of opening: prompt and reference, with what base and adapted model wrote."""
    written = {}
    for who in MODELS:
        receipt = _receipt(inputs, f"evaluate.{who}", samples_item(config))
        if receipt is None:
            return {"held_out": [], "learned": []}
        unit = inputs[f"evaluate.{who}"].folder / samples_item(config)
        path = verify(unit, "samples.json", receipt)
        written[who] = json.loads(path.read_text(encoding="utf-8"))
    return {
        kind: [
            {"prompt": base["prompt"], "reference": base["reference"], "base": base, "tuned": tuned}
            for base, tuned in zip(written["base"][kind], written["tuned"][kind], strict=True)
        ]
        for kind in written["base"]
    }


def _stages(inputs: Inputs) -> dict[str, Any]:
    longest = stragglers.slowest(inputs)
    return {name: {**sums, "slowest": longest[name]} for name, sums in cost.stages(inputs).items()}


def _provenance(inputs: Inputs) -> dict[str, Any]:
    every = [receipt for given in inputs.values() for receipt in cost.units(given)]
    written = max((receipt.written for receipt in every), default=0.0)
    return {
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written)),
        "code": sorted({receipt.code for receipt in every if receipt.code}),
        "hosts": sorted({receipt.host for receipt in every if receipt.host}),
        "reported_by": provenance.code_version(),
        "packages": provenance.packages(),
        "hardware": provenance.hardware(),
        "steps": {
            step: {
                "key": next(iter(given.receipts.values())).key,
                "digest": given.digest,
                "items": len(given.receipts),
            }
            for step, given in inputs.items()
        },
    }
