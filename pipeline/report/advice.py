"""What a run's numbers give cause for: things to know before one believes it, and what to try next.

Rules over the content of `report.json`, each with the figures it rests on. A rule that does not
apply says nothing.
"""

from __future__ import annotations

from typing import Any

from pipeline.evaluate.contamination.overlap import QUOTED
from pipeline.evaluate.memorization import LONG
from pipeline.report.verdict import FEW, duration, number, signed

Told = dict[str, str]
"""`what` it is about, in a word; `text`; `try`: words to type, or nothing."""

READ = 0.5
"""Share of the training text below which a sample of it says little of what was learned."""
RISE = 0.002
"""Share by which a loss has to rise over its lowest to be called a rise."""


def findings(report: dict[str, Any]) -> list[Told]:
    """What a reader has to know: overfitting, near-copies, text learned by heart, wild steps."""
    rules = (_overfitting, _gap, _near, _recited, _copied, _unseen, _skipped)
    return [told for rule in rules if (told := rule(report))]


def suggestions(report: dict[str, Any]) -> list[Told]:
    """What to try next, the most promising first."""
    rules = (_longer, _shorter, _gentler, _more_documents, _split_by, _more_rank, _checkpoints)
    return [told for rule in rules if (told := rule(report))]


def rose(report: dict[str, Any]) -> bool:
    """Whether validation loss rose again after the checkpoint that was kept."""
    training = report["training"]
    last = training and training.get("last_loss")
    return bool(last and last > training["best_loss"] * (1 + RISE))


def _overfitting(report: dict[str, Any]) -> Told | None:
    if not rose(report):
        return None
    training = report["training"]
    return {
        "what": "overfitting",
        "text": f"Validation loss rose again after step {training['best_step']:,}, from "
        f"{number(training['best_loss'])} to {number(training['last_loss'])} nats per token: from "
        "there on the model learned its texts and not their kind. The product is the checkpoint of "
        f"step {training['best_step']:,}.",
        "try": "",
    }


def _gap(report: dict[str, Any]) -> Told | None:
    gap = report["gap"]
    if not gap or gap["ci95"][0] <= 0:
        return None
    low, high = gap["ci95"]
    return {
        "what": "gap",
        "text": f"It gained {number(gap['difference'], 3)} nats per token more on training "
        f"documents than on test documents (95 % interval {number(low, 3)} to {number(high, 3)}): "
        "so much of what it learned is of those texts only.",
        "try": "",
    }


def _near(report: dict[str, Any]) -> Told | None:
    found = (report["overlap"] or {}).get("test")
    if not found or not found["near_duplicates"]:
        return None
    near, documents = found["near_duplicates"], found["documents"]
    text = (
        f"{near:,} of {documents:,} test documents ({100 * near / documents:.1f} %) "
        f"{'is' if near == 1 else 'are'} nearly the same as a training document, or quoted in "
        f"training documents to {100 * QUOTED:.0f} % and more."
    )
    clean = report["evaluation"].get("test", {}).get("without_near_duplicates")
    if clean:
        change = signed(clean["paired"]["perplexity_change_percent"])
        low, high = map(signed, clean["paired"]["ci95_percent"])
        text += (
            f" Without them perplexity changes by {change} % (95 % interval {low} to {high} %), "
            f"from {number(clean['base'])} to {number(clean['tuned'])}."
        )
    return {"what": "near-copies", "text": text, "try": ""}


def _written(report: dict[str, Any], who: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = ((report["written"] or {}).get(who) or {}).get(kind) or {}
    return found


def _recited(report: dict[str, Any]) -> Told | None:
    base, tuned = (_written(report, who, "learned") for who in ("base", "tuned"))
    if not tuned or tuned["recited"] <= base.get("recited", 0.0):
        return None
    count = round(tuned["recited"] * tuned["texts"])
    return {
        "what": "learned by heart",
        "text": f"Given the opening of a training document, the adapted model went on word for "
        f"word in {count:,} of {tuned['texts']:,} cases (the base model in "
        f"{round(base.get('recited', 0.0) * base.get('texts', 0)):,}). It can give away what it "
        "was trained on.",
        "try": "",
    }


def _copied(report: dict[str, Any]) -> Told | None:
    for kind, how in (("greedy", "the likeliest"), ("sampled", "drawn")):
        base, tuned = (_written(report, who, kind) for who in ("base", "tuned"))
        before = base.get("copied_long") or 0.0
        if (tuned.get("copied_long") or 0.0) > before:
            return {
                "what": "copying",
                "text": f"After openings of test documents, {100 * tuned['copied_long']:.0f} % of "
                f"the adapted model's texts ({how} tokens) hold {LONG} tokens or more that stand "
                "word for word in the training text (base: "
                f"{100 * before:.0f} %); the longest such span is "
                f"{tuned['copied_longest']:,} tokens.",
                "try": "",
            }
    return None


def _unseen(report: dict[str, Any]) -> Told | None:
    gap = report["gap"]
    if not gap or gap["seen"] is None or gap["seen"] >= READ:
        return None
    return {
        "what": "little was read",
        "text": f"The kept checkpoint had read {100 * gap['seen']:.1f} % of the training text, and "
        "the training documents that are scored and gone on with here are drawn from all of it: "
        "what it knows by heart of the part that it read shows by so much less.",
        "try": "",
    }


def _skipped(report: dict[str, Any]) -> Told | None:
    training = report["training"]
    if not training or not training.get("skipped"):
        return None
    share = 100 * training["skipped"] / max(1, training["steps"])
    return {
        "what": "skipped steps",
        "text": f"{training['skipped']:,} steps were skipped, whose loss or gradient was not "
        f"finite or out of bounds ({share:.1f} % of {training['steps']:,}).",
        "try": "",
    }


def _longer(report: dict[str, Any]) -> Told | None:
    training = report["training"]
    if not training or rose(report) or training["best_step"] < training["steps"]:
        return None
    return {
        "what": "train longer",
        "text": "The last checkpoint was the best one: validation loss was still falling.",
        "try": _length(report, 2.0),
    }


def _shorter(report: dict[str, Any]) -> Told | None:
    if not rose(report):
        return None
    if not report["training"]["best_step"]:
        rate = report["settings"]["values"]["train"]["lr"]
        return {
            "what": "a lower learning rate",
            "text": "No checkpoint was better than the base model.",
            "try": f"train.lr={rate / 4:g}",
        }
    return {
        "what": "stop in time",
        "text": "Steps after the best checkpoint were spent in vain; a new schedule that ends "
        "there also lets the learning rate fall in time.",
        "try": _length(report, report["training"]["best_step"] / report["training"]["steps"]),
    }


def _length(report: dict[str, Any], times: float) -> str:
    """The words for a training that many times as long, in the unit it was given in."""
    train = report["settings"]["values"]["train"]
    if train["epochs"]:
        return f"train.epochs={train['epochs'] * times:.3g}"
    if train["tokens"]:
        return f"train.tokens={round(train['tokens'] * times)}"
    return f"train.steps={max(1, round(report['training']['steps'] * times))}"


def _gentler(report: dict[str, Any]) -> Told | None:
    training = report["training"]
    if not training or (training.get("skipped") or 0) < max(2, 0.01 * training["steps"]):
        return None
    rate = report["settings"]["values"]["train"]["lr"]
    return {
        "what": "a lower learning rate",
        "text": "More than one step in a hundred was out of bounds.",
        "try": f"train.lr={rate / 2:g}",
    }


def _more_documents(report: dict[str, Any]) -> Told | None:
    test = report["evaluation"].get("test")
    if not test or report["verdict"]["outcome"] != "undecided":
        return None
    values, more = report["settings"]["values"]["evaluate"], ""
    if test["documents"] < test["of_documents"]:
        name = "max_tokens" if values["max_tokens"] else "max_documents"
        how = f"evaluate.{name}={4 * values[name]}"
    else:
        corpus = report["corpus"]
        share = corpus["splits"]["test"]["documents"] / corpus["documents"]
        how, more = (
            f"tokenize.test={min(0.4, 4 * share):.2g}",
            " It is another split, so a new run.",
        )
    few = "so few" if test["documents"] < FEW else "these"
    return {
        "what": "more test documents",
        "text": f"On {few} documents no difference could be shown; four times as many halve the "
        f"interval.{more}",
        "try": how,
    }


def _split_by(report: dict[str, Any]) -> Told | None:
    found = (report["overlap"] or {}).get("test")
    if not found or found["near_duplicates"] < 0.02 * found["documents"]:
        return None
    if report["settings"]["values"]["dataset"].get("split_by"):
        return None
    return {
        "what": "keep near-copies together",
        "text": "Texts that are nearly the same were parted between training and test. If a field "
        "of the records names what they share, such as a case or a project, name it as "
        "dataset.split_by.",
        "try": "",
    }


def _more_rank(report: dict[str, Any]) -> Told | None:
    training = report["training"]
    if not training or training["method"] != "lora" or rose(report):
        return None
    if report["verdict"]["outcome"] not in ("better", "undecided"):
        return None
    values = report["settings"]["values"]["train"]
    words = (
        f"train.lora_rank={2 * values['lora_rank']} train.lora_alpha={2 * values['lora_alpha']:g}"
    )
    return {
        "what": "more weights that learn",
        "text": f"Only {100 * training['trainable'] / training['parameters']:.1f} % of the weights "
        "learn, and nothing points to overfitting.",
        "try": words,
    }


def _checkpoints(report: dict[str, Any]) -> Told | None:
    training, lost = report["training"], report["cost"]["lost_hours"]
    if not training or not lost or lost * 3600 < 0.05 * (training["seconds"] or 0):
        return None
    return {
        "what": "save more often",
        "text": f"{duration(3600 * lost)} of steps were computed twice after interruptions: a "
        "lower train.checkpoint_every loses less.",
        "try": "",
    }
