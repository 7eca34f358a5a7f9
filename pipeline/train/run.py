"""Train from the newest checkpoint to the best weights."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.receipt import Receipt
from pipeline.core.stage import Context, Inputs, Item, RunConfig
from pipeline.core.stop import Stop
from pipeline.dataset.packing import Packing
from pipeline.modeling.attention import attention_support, pick_attention
from pipeline.modeling.compatibility import adaptable_modules, check_document_isolation, check_head
from pipeline.modeling.device import (
    Precision,
    compute_precision,
    pick_device,
    pick_precision,
)
from pipeline.modeling.loading import add_lora, body_and_head, load_base
from pipeline.train import checkpoint
from pipeline.train.callbacks import TrainerCallbacks
from pipeline.train.checkpoint import TrainState
from pipeline.train.data import TrainingData, load_data
from pipeline.train.distributed import Ranks, join
from pipeline.train.optimizer import make_optimizer
from pipeline.train.result import commit_best
from pipeline.train.schedule import learning_rate
from pipeline.train.stability import SpikeGuard
from pipeline.train.step_runner import StepRunner
from pipeline.train.trainer import TrainSchedule, fit

if TYPE_CHECKING:
    import torch

    from pipeline.train.stage import TrainConfig

DEFAULT_TOKENS = 500_000_000


@dataclass(frozen=True)
class TrainingSetup:
    """What all parts of training need. `base`: folder of the base model."""

    config: RunConfig
    ctx: Context
    device: torch.device
    ranks: Ranks
    base: Path
    base_receipt: Receipt

    @property
    def settings(self) -> TrainConfig:
        """The settings of the section `train`."""
        return self.config.train


def train(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Train to the end, from the newest good checkpoint.

    Raises:
        Interrupted: A stop was requested; a checkpoint was written.
        UserError: The settings do not fit the model or the device, or training diverged.
        CorruptInput: A shard or the base model is damaged.
    """
    import torch

    torch.set_num_threads(ctx.cpus)
    device = pick_device(ctx.gpus, ctx.local_rank)
    ranks = join(ctx, device, lambda: ctx.has(item.name) is not None)
    if ranks is None:  # rank 0 found the training finished
        return
    run = TrainingSetup(config, ctx, device, ranks, *inputs["download.model"].one())
    _check_batch_size(run)
    ranks.run_on_rank0(lambda: run.base_receipt.verify(run.base))
    data = _load_data(run, inputs)
    unit, state = _find_checkpoint(run, _total_steps(config.train, data.packing))
    step_runner = _make_step_runner(run, data, state)
    _resume(step_runner, state, unit)
    callbacks = TrainerCallbacks(config, ctx, run.base, data, step_runner, state)
    _log_start(run, data, step_runner, state)
    fit(step_runner, state, _make_schedule(config.train, state.total), callbacks, ctx.stop)
    _log_early_stop(ctx, state)
    method, model = config.train.method, step_runner.model
    ranks.run_on_rank0(
        lambda: commit_best(ctx, item.name, model, state, method, run.base, config.model)
    )
    ranks.close()


def _check_batch_size(run: TrainingSetup) -> None:
    """Raise `UserError` if some ranks would have no window of a step."""
    world_size, batch_size = run.ranks.world_size, run.settings.batch_size
    if world_size > batch_size:
        raise UserError(
            f"{world_size} ranks cannot share the {batch_size} windows of a step",
            f"Use a larger train.batch_size, or at most {batch_size} GPUs",
        )


def _load_data(run: TrainingSetup, inputs: Inputs) -> TrainingData:
    """Load the data on rank 0, which may build the token caches, then on the others."""
    # only rank 0 checks the stop flag until the loop starts; the others follow it
    ctx = replace(run.ctx, stop=Stop()) if run.ctx.rank else run.ctx
    return run.ranks.rank0_first(lambda: load_data(run.config, inputs, run.base_receipt, ctx))


def _total_steps(settings: TrainConfig, packing: Packing) -> int:
    """Optimizer steps of the whole schedule."""
    if settings.steps:
        return settings.steps
    tokens = settings.tokens or min(packing.pairs, DEFAULT_TOKENS)
    windows = len(packing) * (settings.epochs or tokens / packing.pairs)
    return max(1, math.ceil(round(windows / settings.batch_size, 6)))


def _find_checkpoint(run: TrainingSetup, total_steps: int) -> tuple[Path | None, TrainState]:
    """The checkpoint to resume from and its state; None and a new state if there is none.

    Raises:
        UserError: The checkpoint belongs to a schedule of another length.
    """
    ctx = run.ctx

    def find() -> tuple[Path | None, TrainState]:
        unit = checkpoint.find_newest(ctx)
        if unit is None:
            return None, TrainState(precision=run.settings.precision, total=total_steps)
        state = checkpoint.read_state(unit)
        if state.total != total_steps:
            raise UserError(
                f"{unit} belongs to a schedule of {state.total} steps, and the schedule now has "
                f"{total_steps}",
                f"To start again, remove it: rm -r {shlex.quote(str(ctx.folder))}",
            )
        return unit, state

    return run.ranks.run_on_rank0(find)


def _make_step_runner(run: TrainingSetup, data: TrainingData, state: TrainState) -> StepRunner:
    """Load and check the model, and create its optimizer."""
    import torch

    settings, device = run.settings, run.device
    # the precision that the first attempt resolved is kept on every machine
    precision = pick_precision(state.precision, device)
    model = _load_model(run, precision)
    check_head(model, device, precision)
    check_document_isolation(model, device, precision, data.packing.length)
    optimizer = make_optimizer(
        model, settings.optimizer, settings.betas, settings.eps, settings.weight_decay
    )
    return StepRunner(
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        device=device,
        precision=precision,
        max_grad_norm=settings.max_grad_norm,
        spike_guard=SpikeGuard(settings.max_skipped_in_a_row, settings.spike_factor),
        compiled_body=torch.compile(body_and_head(model)[0]) if settings.compile else None,
        ranks=run.ranks,
        seed=settings.seed,
    )


def _load_model(run: TrainingSetup, precision: Precision) -> Any:
    """The base model, with adapters or with all weights trainable."""
    settings = run.settings
    model = load_base(
        run.base,
        settings.weights,
        run.device,
        settings.int8_threshold,
        settings.unquantized_modules,
        settings.model_dropout,
        pick_attention(
            settings.attention, run.device, precision, attention_support(run.base_receipt.facts)
        ),
    )
    if settings.gradient_checkpointing and model.supports_gradient_checkpointing:
        # the reentrant kind cuts the graph of a frozen base model: nothing would be learned
        model.activation_checkpointing_enable({"use_reentrant": False})
    elif settings.gradient_checkpointing:
        run.ctx.log(
            "train.gradient_checkpointing has no effect: models of type "
            f"{model.config.model_type} do not support it, and need more memory"
        )
    if settings.method == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model
    settings.check_targets(adaptable_modules(model))
    return add_lora(
        model,
        settings.lora_rank,
        settings.lora_alpha,
        settings.lora_dropout,
        settings.lora_targets,
        settings.seed,
    )


def _resume(step_runner: StepRunner, state: TrainState, unit: Path | None) -> None:
    """Restore the checkpoint, if there is one, and count this attempt."""
    if unit:
        parts = step_runner.model, step_runner.optimizer, step_runner.scaler
        checkpoint.restore(checkpoint.wait_until_visible(unit), *parts)
    state.precision = step_runner.precision
    state.attempts += 1


def _make_schedule(settings: TrainConfig, total_steps: int) -> TrainSchedule:
    """The schedule of the loop, as the settings have it."""
    warmup_steps = math.ceil(settings.warmup_ratio * total_steps)

    def rate(step: int) -> float:
        return learning_rate(
            step,
            total_steps,
            settings.lr,
            settings.min_lr_ratio,
            warmup_steps,
            settings.schedule,
            settings.cycles,
        )

    return TrainSchedule(
        total_steps=total_steps,
        validate_every=settings.validate_every,
        checkpoint_every=settings.checkpoint_every,
        learning_rate=rate,
        micro_batch_size=settings.micro_batch_size,
        early_stopping_patience=settings.early_stopping_patience,
        max_rollbacks=settings.rollbacks,
    )


def _log_start(
    run: TrainingSetup, data: TrainingData, step_runner: StepRunner, state: TrainState
) -> None:
    weights = checkpoint.trainable_weights(step_runner.model)
    computed = compute_precision(run.settings.weights, step_runner.precision)
    run.ctx.log(
        f"{state.total} steps of {run.settings.batch_size} × {data.packing.length} tokens, from "
        f"step {state.step}; {sum(p.numel() for p in weights.values()):,} trainable parameters; "
        f"{run.settings.weights} weights, {computed} on "
        f"{run.ranks.world_size} × {run.device}"
    )


def _log_early_stop(ctx: Context, state: TrainState) -> None:
    if state.step < state.total:
        ctx.log(
            f"stopped early at step {state.step} of {state.total}: {state.stale} validations in a "
            f"row without a better loss than at step {state.best_step}"
        )
