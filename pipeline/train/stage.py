"""Train: adapt the base model to the train split, and select by loss on the validation split.

Checkpoints are units `step-…`; the result is the unit `best`. Metrics and samples are beside them.
An optimizer step that is repeated after a restart appears twice in the metrics; the last row
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.errors import UserError
from pipeline.core.settings import Section, hashed, nearest, neutral_values, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.modeling.attention import AttentionSetting
from pipeline.modeling.device import WeightFormat
from pipeline.tokenize.stage import downstream_inputs
from pipeline.train.disk_estimate import estimate_training
from pipeline.train.optimizer import OptimizerName
from pipeline.train.schedule import ScheduleName

DEFAULT_MAX_SEQUENCE_LENGTH = 1024
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """How the model learns.

    `method`: adapters, or all weights. `weights`: how the frozen base is kept. `int8_threshold`:
    outlier threshold of LLM.int8(). `unquantized_modules`: modules kept out of quantization.
    `precision`: of the arithmetic. `lora_rank`, `lora_alpha`, `lora_dropout`, `lora_targets`: the
    adapters; targets are module names, or all-linear. `model_dropout`: dropout of the model
    itself, under method full.

    `optimizer`, `betas`, `eps`: AdamW and the format of its state. `lr`: peak learning rate.
    `min_lr_ratio`: final learning rate / `lr`. `warmup_ratio`: share of the steps in which the rate
    rises. `schedule`: how it falls. `cycles`: how often a cyclic schedule falls. `weight_decay`:
    of matrices only. `max_grad_norm`: gradients are clipped to this global norm.

    `spike_factor`: a step whose perplexity or gradient norm is this many times its running median
    is skipped, as is a step that is not finite; null turns this off. After more than
    `max_skipped_in_a_row` training returns to the last good checkpoint, at most `rollbacks` times.
    `rollback_rate`: factor applied to the learning rate at each rollback.

    `sequence_length`: tokens of a window; None is the model's context, at most 1,024. `packing`:
    of documents into windows. `batch_size`: windows of an optimizer step; `micro_batch_size`:
    windows of a forward pass. At most one of `tokens`, `epochs`, `steps` sets the length of
    training; without any it is one epoch, at most 500 M tokens. `gradient_checkpointing`:
    recompute activations to save memory. `seed`: of data order, adapters and dropout.

    `attention`, `compile` (torch.compile): how the model is computed; as with `micro_batch_size`
    and the type of GPU, results agree to rounding.

    `early_stopping_patience`: stop after this many validations in a row without a better loss;
    null: never. `validate_every`, `checkpoint_every`: in optimizer steps. `keep_checkpoints`:
    recent checkpoints that are kept. `validation_documents`: number of documents, lowest text hash
    first. `validation_tokens`: limit on the total tokens of these documents, as
    `evaluate.max_tokens`; null: no limit. `sample_tokens`: generated at each validation.
    `tensorboard`: also write TensorBoard event files; needs the optional package.
    """

    method: Literal["lora", "full"] = hashed("lora", neutral="lora")
    weights: WeightFormat = hashed("int8", neutral="int8")
    int8_threshold: float = hashed(6.0, neutral=6.0, ge=0)
    unquantized_modules: tuple[str, ...] = hashed((), neutral=[])
    precision: Literal["auto", "bf16", "fp16", "fp32"] = hashed("auto", neutral="auto")
    lora_rank: int = hashed(16, neutral=16, ge=1)
    lora_alpha: float = hashed(32, neutral=32, gt=0)
    lora_dropout: float = hashed(0.0, neutral=0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] | Literal["all-linear"] = hashed(
        "all-linear", neutral="all-linear"
    )
    model_dropout: float = hashed(0.0, neutral=0.0, ge=0, lt=1)

    optimizer: OptimizerName = hashed("adamw", neutral="adamw")
    lr: float = hashed(2e-4, neutral=2e-4, gt=0)
    min_lr_ratio: float = hashed(0.1, neutral=0.1, ge=0, le=1)
    warmup_ratio: float = hashed(0.03, neutral=0.03, ge=0, lt=1)
    schedule: ScheduleName = hashed("cosine", neutral="cosine")
    cycles: int = hashed(4, neutral=4, ge=1)
    betas: tuple[Beta, Beta] = hashed((0.9, 0.95), neutral=[0.9, 0.95])
    eps: float = hashed(1e-8, neutral=1e-8, gt=0)
    weight_decay: float = hashed(0.01, neutral=0.01, ge=0)
    max_grad_norm: float = hashed(1.0, neutral=1.0, gt=0)
    spike_factor: float | None = hashed(10.0, neutral=10.0, gt=1)
    max_skipped_in_a_row: int = hashed(5, neutral=5, ge=0)
    rollbacks: int = hashed(2, neutral=2, ge=0)
    rollback_rate: float = hashed(0.5, neutral=0.5, gt=0, lt=1)

    sequence_length: int | None = hashed(None, neutral=None, ge=8)
    packing: Literal["best-fit", "pad"] = hashed("best-fit", neutral="best-fit")
    batch_size: int = hashed(64, neutral=64, ge=1)
    micro_batch_size: int = not_hashed(8, ge=1)
    tokens: int | None = hashed(None, neutral=None, ge=1)
    epochs: float | None = hashed(None, neutral=None, gt=0)
    steps: int | None = hashed(None, neutral=None, ge=1)
    gradient_checkpointing: bool = not_hashed(True)
    seed: int = hashed(0, neutral=0, ge=0, lt=2**63)

    attention: AttentionSetting = not_hashed("auto")
    compile: bool = not_hashed(False)

    validate_every: int = hashed(100, neutral=100, ge=1)
    early_stopping_patience: int | None = hashed(None, neutral=None, ge=1)
    validation_documents: int = hashed(200, neutral=200, ge=1)
    validation_tokens: int | None = hashed(None, neutral=None, ge=1)
    sample_tokens: int = not_hashed(40, ge=1)
    checkpoint_every: int = not_hashed(50, ge=1)
    keep_checkpoints: int = not_hashed(2, ge=1)
    tensorboard: bool = not_hashed(False)

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainConfig:
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
        if self.method == "full" and self.lora_dropout:
            raise ValueError(
                "train.lora_dropout is for adapters, and train.method=full has none; use "
                f"train.model_dropout={self.lora_dropout:g}"
            )
        if self.method == "lora" and self.model_dropout:
            raise ValueError(
                "train.model_dropout needs train.method=full: with adapters the model itself is "
                f"frozen; use train.lora_dropout={self.model_dropout:g}"
            )
        if self.attention == "flash" and self.precision == "fp32":
            raise ValueError(
                "train.attention=flash computes in bf16 or fp16 only; use train.precision=auto, or "
                "attention=sdpa"
            )
        if [self.tokens, self.epochs, self.steps].count(None) < 2:
            raise ValueError("set at most one of train.tokens, train.epochs, train.steps")
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"train.micro_batch_size={self.micro_batch_size} is more than "
                f"train.batch_size={self.batch_size}, the windows of a whole optimizer step"
            )
        return self

    def window_tokens(self, context: int | None) -> int:
        """Tokens of a window for a model with that context (None: no limit).

        Raises:
            UserError: `sequence_length` is longer than the context.
        """
        if self.sequence_length and context and self.sequence_length > context:
            raise UserError(
                f"train.sequence_length={self.sequence_length} is longer than the model's context "
                f"of {context}",
                f'Use ARGS="train.sequence_length={context}"',
            )
        longest = DEFAULT_MAX_SEQUENCE_LENGTH
        return self.sequence_length or min(longest, context or longest)

    def check_targets(self, modules: Sequence[str]) -> None:
        """Compare `lora_targets` with the modules of a model.

        Args:
            modules: Their names, or the last parts of these; empty: unknown, nothing is compared.

        Raises:
            UserError: The model has no such module.
        """
        if isinstance(self.lora_targets, str) or self.method == "full" or not modules:
            return
        for name in self.lora_targets:
            if not any(f".{m}".endswith(f".{name}") or name.endswith(f".{m}") for m in modules):
                raise UserError(
                    f"train.lora_targets: the model has no module {name} for an adapter",
                    nearest(name, sorted({module.rpartition(".")[2] for module in modules})),
                )


def items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item: the training job."""
    return [Item("best", downstream_inputs(inputs))]


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Train to the end, from the newest good checkpoint.

    Raises:
        Interrupted: A stop was requested; a checkpoint was written.
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
        uses=tuple(f"train.{name}" for name in neutral_values(TrainConfig)),
        reads=("name", "model", "train", "evaluate"),
        needs=("tokenize.shards", "tokenize.seal", "download.model"),
        folder=lambda config, keys: f"runs/{config.name}/train-{keys['train.train']}",
        items=items,
        run=run,
        leased=True,
        multi_process=True,
        estimate=estimate_training,
    ),
)
