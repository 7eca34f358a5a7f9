"""The model card: what the model is, how well it does, and what was not evaluated.

It begins with the YAML metadata of the Hugging Face hub, with the metrics as `model-index`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.core.redaction import redact
from pipeline.core.stage import RunConfig
from pipeline.report.findings import verdict
from pipeline.report.formatting import count, number, signed
from pipeline.report.results import precisions
from pipeline.tokenize.facts import HELD_OUT_SPLITS

if TYPE_CHECKING:
    from pipeline.core.registry import BaseModel, Dataset

CARD_METRICS = {"perplexity": "Perplexity", "bits_per_byte": "Bits per byte"}
DEFINED = ("perplexity", "bits_per_byte", "ci95", "paired", "split", "documents", "context")
USAGE = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```
"""


def write_card(
    config: RunConfig, trained: dict[str, Any], report: dict[str, Any] | None, precision: str
) -> str:
    """The text of the model card.

    Args:
        config: The run.
        trained: Facts of the training's receipt.
        report: Content of `report.json`; None if the run is not evaluated yet.
        precision: Of the exported weights.
    """
    parts = [
        f"---\n{yaml.safe_dump(_head(config, report), sort_keys=False, allow_unicode=True)}---",
        f"# {config.name}",
        _opening(config, trained, report),
        "## Use" + "\n" + USAGE.rstrip(),
        "## Training\n\n" + _table(_training(config, trained, precision)),
        "## Data\n\n" + "\n".join(_data(config.dataset, report)),
        "## Evaluation\n\n" + "\n".join(_evaluation(report)),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(config, report)),
    ]
    if report:
        definitions = report["definitions"]
        lines = [f"- **{name}**: {definitions[name]}" for name in DEFINED if name in definitions]
        parts.append("## Definitions\n\n" + "\n".join(lines))
        parts.append("## Provenance\n\n" + _provenance(report["provenance"]))
    return redact("\n\n".join(parts) + "\n")


def _head(config: RunConfig, report: dict[str, Any] | None) -> dict[str, Any]:
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if config.dataset.language:
        head["language"] = config.dataset.language
    if config.model.repo:
        head["base_model"] = config.model.repo
    corpus = _hub_name(config.dataset)
    if corpus:
        head["datasets"] = [corpus]
    head["tags"] = ["gristmill", "domain-adaptation"]
    results = [
        {
            "task": {"type": "text-generation", "name": "Language modelling"},
            "dataset": {"type": corpus or config.dataset.id, "name": config.dataset.id}
            | {"split": split},
            "metrics": [
                {"type": name, "name": title, "value": round(scores["tuned"][name], 6)}
                for name, title in CARD_METRICS.items()
            ],
        }
        for split, scores in _scored(report)
    ]
    if results:
        head["model-index"] = [{"name": config.name, "results": results}]
    return head


def _scored(report: dict[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The held-out splits that the adapted model was scored on."""
    for split, scores in (report["evaluation"] if report else {}).items():
        if "tuned" in scores and split in HELD_OUT_SPLITS:
            yield split, scores


def _hub_name(dataset: Dataset) -> str | None:
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", dataset.urls[0])
    return match[1] if match else None


def _base(model: BaseModel) -> str:
    if not model.repo:
        return f"`{model.id}`"
    at = f" at revision `{model.revision}`" if model.revision else ""
    return f"[{model.repo}](https://huggingface.co/{model.repo}){at}"


def _opening(config: RunConfig, trained: dict[str, Any], report: dict[str, Any] | None) -> str:
    how = "a LoRA adapter, merged" if trained["method"] == "lora" else "all weights trained"
    result = verdict(report["evaluation"].get("test") if report else None)
    sentence = result["words"][:1].upper() + result["words"][1:]
    figures = f" Test perplexity: {result['figures']}." if result["figures"] else ""
    about = f" ({config.model.about.strip()})" if config.model.about else ""
    return (
        f"{_base(config.model)}{about}, adapted to the corpus `{config.dataset.id}`: {how}.\n\n"
        f"{sentence}{figures}"
    )


def _training(config: RunConfig, trained: dict[str, Any], precision: str) -> dict[str, str]:
    train = config.train
    lora = trained["method"] == "lora"
    targets = (
        train.lora_targets if isinstance(train.lora_targets, str) else ", ".join(train.lora_targets)
    )
    method = (
        f"LoRA: rank {train.lora_rank}, alpha {train.lora_alpha:g}, "
        f"dropout {train.lora_dropout:g}, {targets}"
    )
    fp32 = "fp32" if precision == "fp32" else f"fp32, then rounded to {precision}"
    return {
        "method": method if lora else f"all weights, dropout {train.model_dropout:g}",
        "trained weights": f"{count(trained['trainable'])} of {count(trained['parameters'])}",
        "precision of training": _precision(precisions(train.weights, trained["precision"])),
        "exported weights": f"{fp32}{', merged into the unquantized base model' * lora}",
        "length": f"{count(trained['steps'])} steps, {count(trained['tokens'])} tokens",
        "chosen checkpoint": f"step {count(trained['best_step'])}, with the lowest validation loss "
        f"({number(trained['best_loss'])} nats per token)",
        "optimizer": f"{train.optimizer}, learning rate {train.lr:g} ({train.schedule}, warm-up "
        f"{train.warmup_ratio:g} of the steps), weight decay {train.weight_decay:g}, gradient norm "
        f"clipped at {train.max_grad_norm:g}",
        "batch": f"{count(train.batch_size)} windows per step, packed ({train.packing}); tokens "
        "attend only to their own document",
        "seed": str(train.seed),
    }


def _precision(formats: dict[str, Any]) -> str:
    """The formats of weights, compute and loss, see `pipeline.report.results.precisions`."""
    return ", ".join(f"{name} {formats[name]}" for name in ("weights", "compute", "loss"))


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _data(dataset: Dataset, report: dict[str, Any] | None) -> Iterator[str]:
    about = f": {dataset.about.strip()}" if dataset.about else ""
    yield f"`{dataset.id}`{about}."
    yield ""
    yield f"- licence: {dataset.licence.strip() or 'unknown; ask the source'}"
    yield f"- language: {dataset.language or 'not recorded'}"
    # Local paths are of no use to others. Logins and signatures are redacted in `write_card`.
    remote = [url for url in dataset.urls if not url.startswith("file:")]
    if remote:
        yield f"- source: {', '.join(remote)}"
    if dataset.sha256:
        yield f"- sha256: `{dataset.sha256}`"
    corpus = report["corpus"] if report else None
    if corpus:
        splits = ", ".join(f"{s} {count(c['documents'])}" for s, c in corpus["splits"].items())
        yield (
            f"- {count(corpus['documents'])} documents ({splits}), {count(corpus['tokens'])} "
            f"tokens; {count(corpus['duplicates'])} exact duplicates were left out"
        )


def _evaluation(report: dict[str, Any] | None) -> Iterator[str]:
    scored = list(_scored(report))
    if not scored:
        yield "Not evaluated yet."
        return
    yield "| split | model | perplexity | 95 % interval | bits per byte |"
    yield "|---|---|---:|---:|---:|"
    for split, scores in scored:
        for model, name in (("base", "base"), ("tuned", "adapted")):
            if m := scores.get(model):
                low, high = map(number, m["ci95"])
                measured = f"{number(m['perplexity'])} | {low} – {high} "
                yield f"| {split} | {name} | {measured}| {number(m['bits_per_byte'])} |"
    yield ""
    for split, scores in scored:
        line = f"{split}: {count(scores['documents'])} of {count(scores['of_documents'])} documents"
        line += f", {count(scores['tokens'])} tokens, {_precision(scores['tuned'])}"
        if paired := scores.get("paired"):
            low, high = map(signed, paired["ci95_percent"])
            change = signed(paired["perplexity_change_percent"])
            line += f"; perplexity {change} % (95 % interval {low} to {high} %)"
        yield f"- {line}."


def _limits(config: RunConfig, report: dict[str, Any] | None) -> Iterator[str]:
    train = config.train
    if train.weights in ("int8", "nf4"):
        yield (
            f"The scores were measured with the adapter on the base model in {train.weights}, as "
            "it was trained. The exported weights are merged into the unquantized base model and "
            "differ by the quantization error: score them again before you quote a number for "
            "them."
        )
    yield (
        "The model continues text. This training did not teach it to follow or to refuse "
        "instructions. Its texts may be false, and may repeat the corpus, including names and "
        "errors."
    )
    yield (
        "Held-out documents come from the same corpus. The scores say how well the model predicts "
        "such text, and nothing about other text, facts or tasks."
    )
    if not config.dataset.split_by:
        yield (
            "Exact duplicates of training documents were removed from the held-out documents, "
            "near-duplicates were not; they make scores look better."
        )
    if report is None:
        yield "The model was not evaluated on held-out documents."
    yield (
        "Whoever shares the model is bound by the licences of both the base model and the corpus; "
        "therefore this card declares no licence."
    )


def _provenance(provenance: dict[str, Any]) -> str:
    code = ", ".join(f"`{commit}`" for commit in provenance["code"]) or "unknown"
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    finished = provenance["finished"]
    return f"Gristmill {code}, finished {finished}; the report was written with {packages}."
