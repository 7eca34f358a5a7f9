"""Train: adapt the base model to the train split, choosing by loss on the validation split.

Checkpoints are units `step-…`; the product is the unit `best`. Metrics and samples grow beside;
a step that a restart repeats appears again, the last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.errors import UserError
from pipeline.core.settings import Section, free, nearest
from pipeline.core.stage import Context, Inputs, Item, Step
from pipeline.modeling import attention as attentions
from pipeline.modeling import loading as load
from pipeline.tokenize.stage import what_is_read
from pipeline.train import optimizer as optimizers
from pipeline.train import schedule as schedules

if TYPE_CHECKING:
    from pipeline.config import Config

LONGEST = 1024
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """How the model learns.

    `method`: adapters, or all weights. `weights`: how the frozen base is kept. `threshold`, `keep`:
    outlier threshold of LLM.int8, and modules left unquantized. `rank`, `alpha`, `dropout`,
    `targets`: of LoRA, but under method full `dropout` is the model's; targets are module names, or
    all-linear.

    `lr`: peak; `floor`: share of it at the end; `warmup`: share of the steps; `cycles`: how often
    a cyclic rate falls. `decay`: of matrices.

    `spike`: a step whose perplexity or gradient norm is that many times its running median is
    skipped, as is one that is not finite; null lets it pass. After more than `patience` in a row
    training goes back to the last good checkpoint, `rollbacks` times at most, each time with
    `rollback_rate` of the learning rate.

    `length`: slots of a window; None is the model's context, at most 1,024. `batch`: windows of an
    optimizer step; `micro_batch`: of a forward pass. At most one of `tokens`, `epochs`, `steps`
    sets the length of the training; without any it is one epoch, at most 500 M tokens.

    `attention`, `compile` (by torch): how the model is computed; as with `micro_batch` and the kind
    of GPU, results agree to rounding.

    `stop_after`: end after so many validations in a row without a better loss; null: never.
    `validate_every`, `checkpoint_every`: in steps. `validation_documents`: lowest text hash first,
    those that fit into `validation_tokens`. `sample_tokens`: written on at each validation.
    `tensorboard`: whether that package, which is optional, is to show what metrics.jsonl holds.
    """

    method: Literal["lora", "full"] = "lora"
    weights: load.Weights = "int8"
    threshold: float = Field(6.0, ge=0)
    keep: tuple[str, ...] = ()
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    optimizer: optimizers.Kind = "adamw"
    lr: float = Field(2e-4, gt=0)
    floor: float = Field(0.1, ge=0, le=1)
    warmup: float = Field(0.03, ge=0, lt=1)
    schedule: schedules.Kind = "cosine"
    cycles: int = Field(4, ge=1)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    spike: float | None = Field(10.0, gt=1)
    patience: int = Field(5, ge=0)
    rollbacks: int = Field(2, ge=0)
    rollback_rate: float = Field(0.5, gt=0, lt=1)

    length: int | None = Field(None, ge=8)
    packing: Literal["best-fit", "pad"] = "best-fit"
    batch: int = Field(64, ge=1)
    micro_batch: int = free(8, ge=1)
    tokens: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = free(True)
    seed: int = Field(0, ge=0, lt=2**63)

    attention: attentions.Wanted = free("auto")
    compile: bool = free(False)

    validate_every: int = Field(100, ge=1)
    stop_after: int | None = Field(None, ge=1)
    validation_documents: int = Field(200, ge=1)
    validation_tokens: int | None = Field(None, ge=1)
    sample_tokens: int = free(40, ge=1)
    checkpoint_every: int = free(50, ge=1)
    keep_checkpoints: int = free(2, ge=1)
    tensorboard: bool = free(False)

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.method == "full" and self.weights in ("int8", "nf4"):
            raise ValueError(
                f"train.method=full cannot train weights={self.weights}; use fp32, or method=lora"
            )
        if self.method == "full" and self.weights == "bf16":
            raise ValueError(
                "train.method=full with weights=bf16 would lose what is learned: a step is mostly "
                "smaller than the 8 bits of a bf16 weight can show, and no fp32 copy is kept; use "
                "train.weights=fp32, which computes in bf16, too (train.precision)"
            )
        if self.attention == "flash" and self.precision == "fp32":
            raise ValueError(
                "train.attention=flash computes in bf16 or fp16 only; use train.precision=auto, or "
                "attention=sdpa"
            )
        if [self.tokens, self.epochs, self.steps].count(None) < 2:
            raise ValueError("set at most one of train.tokens, train.epochs, train.steps")
        if self.micro_batch > self.batch:
            raise ValueError(
                f"train.micro_batch={self.micro_batch} is more than train.batch={self.batch}, the "
                "windows of a whole optimizer step"
            )
        return self

    def window(self, context: int | None) -> int:
        """Slots of a window for a model of that context (None: no limit).

        Raises:
            UserError: `length` is more than that.
        """
        if self.length and context and self.length > context:
            raise UserError(
                f"train.length={self.length} is longer than the model's context of {context}",
                f'use ARGS="train.length={context}"',
            )
        return self.length or min(LONGEST, context or LONGEST)

    def aim(self, modules: Sequence[str]) -> None:
        """Compare `targets` with the modules of a model, if any are known.

        Args:
            modules: Their names, or the last parts of these.

        Raises:
            UserError: There is no such module.
        """
        wanted = () if isinstance(self.targets, str) or self.method == "full" else self.targets
        for name in wanted if modules else ():
            if not any(f".{m}".endswith(f".{name}") or name.endswith(f".{m}") for m in modules):
                raise UserError(
                    f"train.targets: the model has no module {name} for adapters to go into",
                    nearest(name, sorted({module.rpartition(".")[2] for module in modules})),
                )


def items(config: Config, inputs: Inputs) -> list[Item]:
    """One item: the training."""
    return [Item("best", what_is_read(inputs))]


def run(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Train to the end, from the newest good checkpoint.

    Raises:
        Interrupted: A stop was asked for; a checkpoint was written.
        UserError: The settings do not fit the model or the device, or training diverged.
        CorruptInput: A shard or the base model is damaged.
    """
    from pipeline.train.run import train

    train(config, item, inputs, ctx)


STEPS = (
    Step(
        stage="train",
        name="train.train",
        version=2,
        uses=("train",),
        reads=("name", "model", "evaluate"),
        needs=("tokenize.shards", "tokenize.seal", "download.model"),
        folder=lambda config, keys: f"runs/{config.name}/train-{keys['train.train']}",
        items=items,
        run=run,
        exclusive=True,
        ranked=True,
    ),
)
