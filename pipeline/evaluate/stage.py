"""The stage `evaluate`: what adaptation changed, on documents that were held out from training.

Base and adapted model score the same documents in the same precision, and continue the same
prompts. A sample of training documents is scored as well, to measure memorization. The base
model's scores are stored with the corpus and shared by all runs. So is the overlap of held-out
documents with the training documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import model_validator

from pipeline.core.errors import UserError
from pipeline.core.settings import Section, hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.evaluate.disk_estimate import estimate_overlap, estimate_scores
from pipeline.tokenize.facts import SPLITS
from pipeline.tokenize.stage import downstream_inputs

SAMPLES = "samples"
DEFAULT_MAX_CONTEXT_TOKENS = 1024


class EvaluateConfig(Section):
    """What is scored, and which prompts are continued.

    `max_documents`: documents per split, lowest text hash first. `max_tokens`: limit on the total
    tokens of these documents. In order of text hash, a document that exceeds the remaining budget
    is skipped; if none fits, the first one is used. None: no limit. `context`: tokens per window;
    None: the model's context, at most 1,024. `stride`: how far the window moves in longer
    documents; None: half the context. `prompts`: test documents whose first `prompt_tokens` are
    continued by `new_tokens`, and as many training documents. `resamples`: of the bootstrap.
    `batch_tokens`: tokens per batch; it affects scores by about 1/1000, because LLM.int8() looks
    for outliers in the whole batch.
    """

    max_documents: int = hashed(2000, neutral=2000, ge=1)
    max_tokens: int | None = hashed(None, neutral=None, ge=1)
    context: int | None = hashed(None, neutral=None, ge=2)
    stride: int | None = hashed(None, neutral=None, ge=1)
    prompts: int = hashed(16, neutral=16, ge=0)
    prompt_tokens: int = hashed(32, neutral=32, ge=1)
    new_tokens: int = hashed(64, neutral=64, ge=1)
    resamples: int = hashed(2000, neutral=2000, ge=100)
    batch_tokens: int = hashed(4096, neutral=4096, ge=1)

    @model_validator(mode="after")
    def _check_window(self) -> EvaluateConfig:
        if self.context:
            self.check_context(self.context)
        return self

    def check_context(self, context: int) -> None:
        """Raise `UserError` if the window does not fit a model of that context."""
        self.window_and_stride(context)

    def window_and_stride(self, context: int) -> tuple[int, int]:
        """Tokens seen at once, and how far a window moves, for a model of that context.

        Raises:
            UserError: `context` or `stride` is more than that.
        """
        width = self.context or min(DEFAULT_MAX_CONTEXT_TOKENS, context)
        stride = self.stride or width // 2
        if width > context:
            raise UserError(
                f"evaluate.context={width} is longer than the model's context of {context}",
                f'Use ARGS="evaluate.context={context}"',
            )
        if stride > width:
            raise UserError(
                f"evaluate.stride={stride} is more than the {width} tokens that are seen at once: "
                "tokens would be left out",
                f'Use ARGS="evaluate.stride={width}", or less',
            )
        return width, stride


def samples_item(config: RunConfig) -> str:
    """The name of the item of generated texts; runs with other prompts share a folder."""
    settings = config.evaluate
    return f"{SAMPLES}-{settings.prompts}x{settings.prompt_tokens}+{settings.new_tokens}"


def base_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """An item for each split, and one for the generated texts."""
    return [Item(name, downstream_inputs(inputs)) for name in (*SPLITS, samples_item(config))]


def tuned_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """The items of the base model, in the precision and on the device of its scores."""
    items = []
    for name, base in inputs["evaluate.base"].receipts.items():
        how = {name: base.facts[name] for name in ("precision", "device")}
        read = downstream_inputs(inputs) | {"train.train": inputs["train.train"].digest} | how
        items.append(Item(name, read, how))
    return items


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Score a split or generate texts, with the adapted model if the training is among the inputs.

    Raises:
        Interrupted: A stop was requested; scored batches are kept.
        UserError: The device cannot compute in the precision of the base model's scores.
        CorruptInput: The corpus or the model is damaged.
    """
    from pipeline.evaluate import run as evaluation

    # an item is a split, or the generated texts
    compute = evaluation.score_split if item.name in SPLITS else evaluation.write_samples
    compute(config, item, inputs, ctx)


def overlap_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item: both held-out splits are compared with the training split in one pass."""
    return [Item("overlap", downstream_inputs(inputs))]


def overlap(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Compare each scored document of the held-out splits with the training split.

    Raises:
        Interrupted: A stop was requested; nothing is kept.
        CorruptInput: The corpus is damaged.
    """
    from pipeline.evaluate.contamination.contamination import measure_overlap

    measure_overlap(config, item, inputs, ctx)


def _base_folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/scores-{config.model.id}-{keys['evaluate.base']}"


def _tuned_folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"runs/{config.name}/evaluate-{keys['evaluate.tuned']}"


def _overlap_folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/overlap-{config.model.id}-{keys['evaluate.overlap']}"


_NEEDS = ("tokenize.shards", "tokenize.seal", "download.model")
_BASE = Step(
    stage="evaluate",
    name="evaluate.base",
    version=3,
    uses=(
        "evaluate.max_documents",
        "evaluate.max_tokens",
        "evaluate.context",
        "evaluate.stride",
        "evaluate.batch_tokens",
        "train.weights",
        "train.precision",
        "train.int8_threshold",
        "train.unquantized_modules",
    ),
    # only the samples depend on these, and their item is named by them
    reads=(
        "evaluate.prompts",
        "evaluate.prompt_tokens",
        "evaluate.new_tokens",
    ),
    needs=_NEEDS,
    folder=_base_folder,
    items=base_items,
    run=run,
    leased=True,
    estimate=estimate_scores,
)
_TUNED = replace(
    _BASE,
    name="evaluate.tuned",
    needs=(*_NEEDS, "train.train", "evaluate.base"),
    folder=_tuned_folder,
    items=tuned_items,
)
_OVERLAP = Step(
    stage="evaluate",
    name="evaluate.overlap",
    version=2,
    uses=("evaluate.max_documents", "evaluate.max_tokens"),
    needs=_NEEDS,
    folder=_overlap_folder,
    items=overlap_items,
    run=overlap,
    estimate=estimate_overlap,
)
STEPS = (_BASE, _TUNED, _OVERLAP)
