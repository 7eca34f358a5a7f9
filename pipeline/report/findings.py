"""The verdict of a report, and the findings that a reader needs before trusting it.

Each rule reads the content of `report.json` and returns nothing where it does not apply.
"""

from __future__ import annotations

from typing import Any

from pipeline.evaluate.contamination.overlap import QUOTED_SHARE
from pipeline.evaluate.memorization import LONG_COPY_TOKENS
from pipeline.report.formatting import number, signed

Finding = dict[str, str]
"""`what`: a title of a few words. `text`: sentences. `try`: settings to type, or ""."""

MIN_DOCUMENTS = 10
"""With fewer test documents a bootstrap interval means little: no verdict, and no finding."""
MIN_LOSS_RISE = 0.002
"""Relative rise of validation loss over its minimum that counts as a rise."""
MIN_READ_SHARE = 0.5
"""Share of the training data that a checkpoint must have read for its memorization to show."""


def verdict(test: dict[str, Any] | None) -> dict[str, str]:
    """The verdict on the test split: better, worse or undecided.

    It depends on whether the 95 % interval of the change includes zero.

    Args:
        test: `evaluation.test` of a report.

    Returns:
        `outcome`: better, worse, undecided (the interval includes zero, or there are too few
        documents) or open (not evaluated yet). `figures`: "perplexity before → after".
        `words`: the verdict as a sentence; it starts in lower case if there are `figures`.
    """
    if not test or "paired" not in test:
        return {"outcome": "open", "figures": "", "words": "Not evaluated yet."}
    paired, count = test["paired"], test["documents"]
    percent = paired["perplexity_change_percent"]
    low, high = paired["ci95_percent"]
    documents = f"{count:,} test document{'' if count == 1 else 's'}"
    if count < MIN_DOCUMENTS:
        outcome = "undecided"
        sentence = (
            f"no verdict: the perplexity of {documents} changed by {signed(percent)} %, but a "
            f"verdict needs at least {MIN_DOCUMENTS} documents."
        )
    elif low <= 0 <= high:
        outcome = "undecided"
        sentence = (
            f"no significant difference: the perplexity of {documents} changed by "
            f"{signed(percent)} %, and the 95 % interval ({signed(low)} to {signed(high)} %) "
            "includes zero."
        )
    elif high < 0:
        outcome = "better"
        sentence = (
            f"adaptation lowered the perplexity of {documents} by {-percent:.1f} % "
            f"(95 % interval {-high:.1f} to {-low:.1f} %)."
        )
    else:
        outcome = "worse"
        sentence = (
            f"the adapted model is worse: the perplexity of {documents} rose by {percent:.1f} % "
            f"(95 % interval {low:.1f} to {high:.1f} %)."
        )
    before, after = (number(test[model]["perplexity"]) for model in ("base", "tuned"))
    return {"outcome": outcome, "figures": f"{before} → {after}", "words": sentence}


def findings(report: dict[str, Any]) -> list[Finding]:
    """Overfitting, near-duplicates, memorization and skipped steps, as far as they occurred."""
    rules = (_overfitting, _gap, _near_duplicates, _recited, _copied, _little_read, _skipped)
    return [finding for rule in rules if (finding := rule(report))]


def overfitted(report: dict[str, Any]) -> bool:
    """Whether validation loss rose after the checkpoint that was kept."""
    training = report["training"]
    last = training and training.get("last_loss")
    return bool(last and last > training["best_loss"] * (1 + MIN_LOSS_RISE))


def _overfitting(report: dict[str, Any]) -> Finding | None:
    if not overfitted(report):
        return None
    training = report["training"]
    return {
        "what": "overfitting",
        "text": f"Validation loss rose after step {training['best_step']:,}, from "
        f"{number(training['best_loss'])} to {number(training['last_loss'])} nats per token: the "
        f"model began to overfit. The checkpoint of step {training['best_step']:,} was kept.",
        "try": "",
    }


def enough(documents: int) -> bool:
    """Whether that many test documents support a finding."""
    return documents >= MIN_DOCUMENTS


def _gap(report: dict[str, Any]) -> Finding | None:
    gap = report["gap"]
    if not gap or gap["ci95"][0] <= 0 or not enough(test_documents(report)):
        return None
    low, high = gap["ci95"]
    return {
        "what": "gap",
        "text": f"The loss fell by {number(gap['difference'], 3)} nats per token more on training "
        f"documents than on test documents (95 % interval {number(low, 3)} to {number(high, 3)}). "
        "That part of the gain does not generalize.",
        "try": "",
    }


def test_documents(report: dict[str, Any]) -> int:
    """Number of scored test documents."""
    return int(report["evaluation"].get("test", {}).get("documents", 0))


def _near_duplicates(report: dict[str, Any]) -> Finding | None:
    overlap = (report["overlap"] or {}).get("test")
    if not overlap or not overlap["near_duplicates"] or not enough(overlap["documents"]):
        return None
    near, documents = overlap["near_duplicates"], overlap["documents"]
    one = near == 1
    text = (
        f"{near:,} of {documents:,} test documents ({100 * near / documents:.1f} %) "
        f"{'is a near-duplicate' if one else 'are near-duplicates'} of a training document, or "
        f"{100 * QUOTED_SHARE:.0f} % or more of {'its' if one else 'their'} tokens are quoted in "
        "training documents."
    )
    clean = report["evaluation"].get("test", {}).get("without_near_duplicates")
    if clean:
        change = signed(clean["paired"]["perplexity_change_percent"])
        low, high = map(signed, clean["paired"]["ci95_percent"])
        text += (
            f" Without {'it' if one else 'them'}, perplexity changes by {change} % (95 % interval "
            f"{low} to {high} %), from {number(clean['base'])} to {number(clean['tuned'])}."
        )
    return {"what": "near-duplicates", "text": text, "try": ""}


def _generated(report: dict[str, Any], model: str, kind: str) -> dict[str, Any]:
    """Metrics of the texts of one kind that a model wrote; empty if there are none."""
    metrics: dict[str, Any] = ((report["written"] or {}).get(model) or {}).get(kind) or {}
    return metrics


def _recited(report: dict[str, Any]) -> Finding | None:
    base, tuned = (_generated(report, model, "learned") for model in ("base", "tuned"))
    if not tuned or tuned["recited"] <= base.get("recited", 0.0):
        return None
    count = round(tuned["recited"] * tuned["texts"])
    return {
        "what": "memorization",
        "text": "Given the start of a training document, the adapted model continued it word for "
        f"word in {count:,} of {tuned['texts']:,} cases (the base model in "
        f"{round(base.get('recited', 0.0) * base.get('texts', 0)):,}). It can reveal its training "
        "data.",
        "try": "",
    }


def _copied(report: dict[str, Any]) -> Finding | None:
    for kind, decoding in (("greedy", "greedy decoding"), ("sampled", "sampling")):
        base, tuned = (_generated(report, model, kind) for model in ("base", "tuned"))
        before = base.get("copied_long") or 0.0
        # each text continues another test document
        if enough(tuned.get("texts", 0)) and (tuned.get("copied_long") or 0.0) > before:
            return {
                "what": "copying",
                "text": f"With prompts from test documents and {decoding}, "
                f"{100 * tuned['copied_long']:.0f} % of the adapted model's texts contain "
                f"{LONG_COPY_TOKENS} or more tokens in a row that are in the training data, too "
                f"(base model: {100 * before:.0f} %). The longest such span has "
                f"{tuned['copied_longest']:,} tokens.",
                "try": "",
            }
    return None


def _little_read(report: dict[str, Any]) -> Finding | None:
    gap = report["gap"]
    if not gap or gap["seen"] is None or gap["seen"] >= MIN_READ_SHARE:
        return None
    return {
        "what": "little of the corpus was read",
        "text": f"The kept checkpoint had read {100 * gap['seen']:.1f} % of the training data. The "
        "training documents used for scoring and generation are sampled from all of it, so "
        "memorization of the part that was read is underestimated to the same degree.",
        "try": "",
    }


def _skipped(report: dict[str, Any]) -> Finding | None:
    training = report["training"]
    if not training or not training.get("skipped"):
        return None
    share = 100 * training["skipped"] / max(1, training["steps"])
    return {
        "what": "skipped steps",
        "text": f"{training['skipped']:,} of {training['steps']:,} steps ({share:.1f} %) were "
        "skipped because their loss or gradient norm was not finite or too large.",
        "try": "",
    }
