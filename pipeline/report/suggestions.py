"""What to try next, with the settings to type.

Each rule reads the content of `report.json` and returns nothing where it does not apply.
"""

from __future__ import annotations

from typing import Any

from pipeline.report.findings import Finding, enough, overfitted, test_documents
from pipeline.report.formatting import duration


def suggestions(report: dict[str, Any]) -> list[Finding]:
    """What to try next, the most promising first."""
    rules = (
        *(_train_longer, _train_shorter, _lower_rate, _more_documents, _split_by),
        *(_higher_rank, _more_checkpoints),
    )
    return [suggestion for rule in rules if (suggestion := rule(report))]


def _train_longer(report: dict[str, Any]) -> Finding | None:
    training = report["training"]
    if not training or overfitted(report) or training["best_step"] < training["steps"]:
        return None
    return {
        "what": "train longer",
        "text": "The last checkpoint is the best one: validation loss was still falling.",
        "try": _length(report, 2.0),
    }


def _train_shorter(report: dict[str, Any]) -> Finding | None:
    if not overfitted(report):
        return None
    if not report["training"]["best_step"]:
        rate = report["settings"]["values"]["train"]["lr"]
        return {
            "what": "a lower learning rate",
            "text": "No checkpoint is better than the base model.",
            "try": f"train.lr={rate / 4:g}",
        }
    return {
        "what": "train for fewer steps",
        "text": "The steps after the best checkpoint did not help. A schedule that ends there also "
        "lowers the learning rate in time.",
        "try": _length(report, report["training"]["best_step"] / report["training"]["steps"]),
    }


def _length(report: dict[str, Any], factor: float) -> str:
    """The setting that makes training `factor` times as long, in the unit that the run used."""
    train = report["settings"]["values"]["train"]
    if train["epochs"]:
        return f"train.epochs={train['epochs'] * factor:.3g}"
    if train["tokens"]:
        return f"train.tokens={round(train['tokens'] * factor)}"
    return f"train.steps={max(1, round(report['training']['steps'] * factor))}"


def _lower_rate(report: dict[str, Any]) -> Finding | None:
    training = report["training"]
    if not training or (training.get("skipped") or 0) < max(2, 0.01 * training["steps"]):
        return None
    rate = report["settings"]["values"]["train"]["lr"]
    return {
        "what": "a lower learning rate",
        "text": "At least one step in a hundred was skipped.",
        "try": f"train.lr={rate / 2:g}",
    }


def _more_documents(report: dict[str, Any]) -> Finding | None:
    test = report["evaluation"].get("test")
    if not test or report["verdict"]["outcome"] != "undecided":
        return None
    values, more = report["settings"]["values"]["evaluate"], ""
    if test["documents"] < test["of_documents"]:
        name = "max_tokens" if values["max_tokens"] else "max_documents"
        setting = f"evaluate.{name}={4 * values[name]}"
    else:
        corpus = report["corpus"]
        share = corpus["splits"]["test"]["documents"] / corpus["documents"]
        setting = f"tokenize.test={min(0.4, 4 * share):.2g}"
        more = " This changes the split, so it needs a new run."
    which = "These" if enough(test["documents"]) else "So few"
    return {
        "what": "more test documents",
        "text": f"{which} documents cannot show a difference; four times as many halve the "
        f"interval.{more}",
        "try": setting,
    }


def _split_by(report: dict[str, Any]) -> Finding | None:
    overlap = (report["overlap"] or {}).get("test")
    if not overlap or not enough(overlap["documents"]):
        return None
    if overlap["near_duplicates"] < 0.02 * overlap["documents"]:
        return None
    if report["settings"]["values"]["dataset"].get("split_by"):
        return None
    return {
        "what": "keep near-duplicates together",
        "text": "Some near-duplicates were split between training and test. If a field of the "
        "records identifies what they share, such as a case or a project, set dataset.split_by to "
        "the name of that field.",
        "try": "",
    }


def _higher_rank(report: dict[str, Any]) -> Finding | None:
    training = report["training"]
    if not training or training["method"] != "lora" or overfitted(report):
        return None
    # with too few test documents, undecided says nothing about the model
    if report["verdict"]["outcome"] not in ("better", "undecided"):
        return None
    if not enough(test_documents(report)):
        return None
    train = report["settings"]["values"]["train"]
    rank, alpha = 2 * train["lora_rank"], 2 * train["lora_alpha"]
    return {
        "what": "more trainable weights",
        "text": f"Only {100 * training['trainable'] / training['parameters']:.1f} % of the weights "
        "are trained, and there is no sign of overfitting.",
        "try": f"train.lora_rank={rank} train.lora_alpha={alpha:g}",
    }


def _more_checkpoints(report: dict[str, Any]) -> Finding | None:
    training, lost = report["training"], report["cost"]["lost_hours"]
    if not training or not lost or lost * 3600 < 0.05 * (training["seconds"] or 0):
        return None
    return {
        "what": "save more often",
        "text": f"After interruptions, {duration(3600 * lost)} of steps had to be computed again. "
        "With a lower train.checkpoint_every less is lost.",
        "try": "",
    }
