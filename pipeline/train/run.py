"""One training, from the newest checkpoint to the best weights: what the stage `train` computes."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.receipt import Receipt
from pipeline.core.stage import Context, Inputs, Item, RunConfig
from pipeline.core.stop import Stop
from pipeline.dataset.order import WindowSampler
from pipeline.dataset.packing import Packing, pack
from pipeline.dataset.sealed import open_sealed
from pipeline.dataset.subset import sample_documents
from pipeline.modeling.attention import AttentionImplementation, pick_attention
from pipeline.modeling.compatibility import adaptable_modules, check_document_isolation, check_head
from pipeline.modeling.device import pick_device, pick_precision
from pipeline.modeling.loading import add_lora, backbone, load_base
from pipeline.train import checkpoint
from pipeline.train import optimizer as optimizers
from pipeline.train import schedule as schedules
from pipeline.train import trainer as loop
from pipeline.train.callbacks import Clerk, Data
from pipeline.train.checkpoint import State
from pipeline.train.distributed import Ranks, join
from pipeline.train.publish import publish
from pipeline.train.stability import Guard

if TYPE_CHECKING:
    from pipeline.train.stage import TrainConfig

DEFAULT_TOKENS = 500_000_000


def train(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Train to the end, from the newest good checkpoint.

    Raises:
        Interrupted: A stop was asked for; a checkpoint was written.
        UserError: The settings do not fit the model or the device, or training diverged.
        CorruptInput: A shard or the base model is damaged.
    """
    import torch

    torch.set_num_threads(ctx.cpus)
    settings = config.train
    device = pick_device(ctx.gpus, ctx.local_rank)
    ranks = join(ctx, device, lambda: ctx.has(item.name) is not None)
    if ranks is None:
        return
    if ranks.world > settings.batch_size:
        raise UserError(
            f"{ranks.world} ranks cannot share the {settings.batch_size} windows of a step",
            f"use a larger train.batch_size, or at most {settings.batch_size} GPUs",
        )
    base, base_receipt = inputs["download.model"].one()
    ranks.lead(lambda: base_receipt.verify(base))
    # until the loop has begun rank 0 alone looks at the flag: it leads, and the others follow
    reader = replace(ctx, stop=Stop()) if ctx.rank else ctx
    data = ranks.in_turn(lambda: _data(config, inputs, base_receipt, reader, ranks))
    total = _steps(settings, data.packing)
    unit, state = ranks.lead(lambda: _newest(ctx, total, settings.precision))
    # what the first step resolved binds those after it, on whatever device they come to run
    precision = pick_precision(state.precision, device)
    attention = pick_attention(settings.attention, device, precision)
    model = _model(config, base, device, attention, data.packing.length)
    check_head(model, device, precision)
    check_document_isolation(model, device, precision, data.packing.length)
    optimizer = optimizers.make_optimizer(
        model, settings.optimizer, settings.betas, settings.eps, settings.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if unit:
        checkpoint.restore(checkpoint.appeared(unit), model, optimizer, scaler)
    state.precision, state.total, state.attempts = precision, total, state.attempts + 1
    learner = loop.Learner(
        model,
        optimizer,
        scaler,
        device,
        precision,
        settings.max_grad_norm,
        Guard(settings.max_skipped_in_a_row, settings.spike_factor),
        torch.compile(backbone(model)[0]) if settings.compile else None,
        ranks,
        settings.seed,
    )
    warmup = math.ceil(settings.warmup_ratio * total)

    def rate(step: int) -> float:
        shape = settings.min_lr_ratio, warmup, settings.schedule, settings.cycles
        return schedules.rate(step, total, settings.lr, *shape)

    plan = loop.Plan(
        total,
        settings.validate_every,
        settings.checkpoint_every,
        rate,
        settings.micro_batch_size,
        settings.early_stopping_patience,
        settings.rollbacks,
    )
    clerk = Clerk(config, ctx, base, data, learner, state)
    ctx.log(
        f"{total} steps of {settings.batch_size} × {data.packing.length} slots, from step {state.step}; "
        f"{sum(p.numel() for p in checkpoint.trainable(model).values()):,} weights learn; "
        f"{settings.weights} weights, {state.precision} on {ranks.world} × {device}"
    )
    loop.fit(learner, state, plan, clerk.hooks(), ctx.stop)
    if state.step < total:
        ctx.log(
            f"stopped early at step {state.step} of {total}: {state.stale} validations without a "
            f"better loss than that of step {state.best_step}"
        )
    ranks.lead(lambda: publish(ctx, item.name, model, state, settings.method, base, config.model))
    ranks.leave()


def _newest(ctx: Context, total: int, precision: str) -> tuple[Path | None, State]:
    """The checkpoint to go on from, and its state; a fresh one where there is none."""
    unit = checkpoint.newest(ctx)
    if unit is None:
        return None, State(precision=precision)
    state = checkpoint.read(unit)
    if state.total != total:
        raise UserError(
            f"{unit} belongs to a schedule of {state.total} steps, and now there would be {total}",
            f"to begin anew, remove it: rm -r {shlex.quote(str(ctx.folder))}",
        )
    return unit, state


def _data(config: RunConfig, inputs: Inputs, base: Receipt, ctx: Context, ranks: Ranks) -> Data:
    settings = config.train
    train = open_sealed(inputs, "train", ctx)
    validation = open_sealed(inputs, "validation", ctx)
    length = settings.window(base.facts["context"])
    config.evaluate.window(base.facts["context"])  # not to be refused when all is trained
    packing = pack(train.offsets, length, settings.packing)
    return Data(
        train,
        packing,
        WindowSampler(len(packing), settings.batch_size, settings.seed),
        ranks,
        validation,
        sample_documents(validation, settings.validation_documents, settings.validation_tokens),
        base.facts["prefix_id"],
        base.facts["end_id"],
    )


def _model(
    config: RunConfig, base: Path, device: Any, attention: AttentionImplementation, length: int
) -> Any:
    settings = config.train
    lora = settings.method == "lora"
    how = settings.weights, device, settings.int8_threshold, settings.unquantized_modules
    dropout = settings.model_dropout
    model = load_base(base, *how, dropout=dropout, attention=attention)
    if settings.gradient_checkpointing:
        # the reentrant kind cuts the graph of a frozen base: nothing would learn
        model.activation_checkpointing_enable({"use_reentrant": False})
    if lora:
        settings.check_targets(adaptable_modules(model))
        adapters = (
            settings.lora_rank,
            settings.lora_alpha,
            settings.lora_dropout,
            settings.lora_targets,
        )
        return add_lora(model, *adapters, seed=settings.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _steps(settings: TrainConfig, packing: Packing) -> int:
    """Optimizer steps of the whole training."""
    if settings.steps:
        return settings.steps
    tokens = settings.tokens or min(packing.pairs, DEFAULT_TOKENS)
    windows = len(packing) * (settings.epochs or tokens / packing.pairs)
    return max(1, math.ceil(round(windows / settings.batch_size, 6)))
