"""One training, from the newest checkpoint to the best weights: what the stage `train` computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.choose import choose
from pipeline.data.corpus import Corpus
from pipeline.data.encoder import Reference
from pipeline.data.order import Order
from pipeline.data.packing import Batch, Packing, make_batch, pack
from pipeline.data.seal import open_sealed
from pipeline.model import checkpoint, load, loop
from pipeline.model import optimizer as optimizers
from pipeline.model import schedule as schedules
from pipeline.model.attention import pick_attention
from pipeline.model.checkpoint import State
from pipeline.model.guard import Guard
from pipeline.model.journal import Journal
from pipeline.model.publish import publish
from pipeline.model.score import Windows, score
from pipeline.model.write import write
from pipeline.receipt import Receipt
from pipeline.stage import Context, Inputs, Item

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.stages.train import TrainConfig

DEFAULT_TOKENS = 500_000_000
PROMPT = 24


@dataclass(frozen=True)
class Data:
    """What is learned from and judged by: both splits, the packing, the order, the token ids."""

    train: Corpus
    packing: Packing
    order: Order
    micro_batch: int
    validation: Corpus
    chosen: list[int]
    prefix: int
    end: int

    def batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches of a step."""
        windows = self.order.windows(step)
        for start in range(0, len(windows), self.micro_batch):
            part = windows[start : start + self.micro_batch]
            yield make_batch(self.train, self.packing, part, self.prefix, self.end)


def train(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Train to the end, from the newest good checkpoint.

    Raises:
        Interrupted: A stop was asked for; a checkpoint was written.
        UserError: The settings do not fit the model or the device, or training diverged.
        CorruptInput: A shard or the base model is damaged.
    """
    import torch

    torch.set_num_threads(ctx.cpus)
    settings = config.train
    base, base_receipt = inputs["download.model"].one()
    base_receipt.verify(base)
    device = load.pick_device(ctx.gpus, ctx.local_rank)
    data = _data(config, inputs, base_receipt, ctx)
    unit = checkpoint.newest(ctx)
    state = checkpoint.read(unit) if unit else State(precision=settings.precision)
    # what the first step resolved binds those after it, on whatever device they come to run
    precision = load.pick_precision(state.precision, device)
    model = _model(config, base, device, pick_attention(settings.attention, device, precision))
    optimizer = optimizers.make_optimizer(
        model, settings.optimizer, settings.betas, settings.eps, settings.decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    torch.manual_seed(settings.seed)
    if unit:
        checkpoint.restore(unit, model, optimizer, scaler)
    state.precision, state.attempts = precision, state.attempts + 1
    journal, encoder = Journal(ctx.folder, state.step, state.attempts), Reference(base)
    total = _steps(settings, data.packing)
    ctx.log(
        f"{total} steps of {settings.batch} × {data.packing.length} slots, from step {state.step}; "
        f"{sum(p.numel() for p in checkpoint.trainable(model).values()):,} weights learn; "
        f"{settings.weights} weights, {state.precision} on {device}"
    )
    judges = settings.clip, Guard(settings.patience)
    compiled = torch.compile(load.backbone(model)[0]) if settings.compile else None
    learner = loop.Learner(model, optimizer, scaler, device, precision, *judges, compiled)
    warmup = math.ceil(settings.warmup * total)

    def rate(step: int) -> float:
        shape = settings.floor, warmup, settings.schedule, settings.cycles
        return schedules.rate(step, total, settings.lr, *shape)

    def log(row: dict[str, Any]) -> None:
        journal.add(row)
        loss = {"validation" if row["kind"] == "validation" else "loss": round(row["loss"], 4)}
        ctx.progress(state.step, total, "steps", **loss)
        if row["kind"] == "validation" or state.step % 10 == 0:
            ctx.log(
                f"step {state.step} of {total}: " + " ".join(f"{k} {v}" for k, v in loss.items())
            )

    def save(state: State) -> None:
        name = checkpoint.name(state.step)
        if ctx.has(name) is None:
            with ctx.commit(name) as draft:
                checkpoint.save(draft.path, model, optimizer, scaler, state)
        checkpoint.retire(ctx, state.best_step, settings.keep_checkpoints)

    windows = Windows(data.packing.length, data.packing.length, data.prefix)

    def validate(state: State) -> float:
        documents = [data.validation.document(i) for i in data.chosen]
        nll, tokens = score(model, documents, windows, device, learner.precision, stop=ctx.stop)
        opening = documents[0][:PROMPT].tolist()
        ends, length = (data.prefix, data.end), settings.sample_tokens
        (text,) = write(model, [opening], length, *ends, device, learner.precision, stop=ctx.stop)
        journal.sample(state.step, encoder.decode(opening), encoder.decode(text))
        return float(nll.sum() / tokens.sum())

    loop.fit(
        learner,
        state,
        loop.Plan(total, settings.validate_every, settings.checkpoint_every, rate),
        batches=data.batches,
        validate=validate,
        save=save,
        log=log,
        stop=ctx.stop,
    )
    publish(ctx, item.name, model, state, settings.method, base, config.model)


def _data(config: Config, inputs: Inputs, base: Receipt, ctx: Context) -> Data:
    settings = config.train
    train = open_sealed(inputs, "train", ctx)
    validation = open_sealed(inputs, "validation", ctx)
    length = settings.window(base.facts["context"])
    packing = pack(train.offsets, length, settings.packing)
    return Data(
        train,
        packing,
        Order(len(packing), settings.batch, settings.seed),
        settings.micro_batch,
        validation,
        choose(validation, settings.validation_documents, settings.validation_tokens),
        base.facts["prefix_id"],
        base.facts["end_id"],
    )


def _model(config: Config, base: Path, device: Any, attention: str) -> Any:
    settings = config.train
    lora = settings.method == "lora"
    how = settings.weights, device, settings.threshold, settings.keep
    dropout = 0.0 if lora else settings.dropout
    model = load.load_base(base, *how, dropout=dropout, attention=attention)
    if settings.gradient_checkpointing:
        # the reentrant kind cuts the graph of a frozen base: nothing would learn
        model.activation_checkpointing_enable({"use_reentrant": False})
    if lora:
        adapters = settings.rank, settings.alpha, settings.dropout, settings.targets
        return load.add_lora(model, *adapters, seed=settings.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _steps(settings: TrainConfig, packing: Packing) -> int:
    """Optimizer steps of the whole training."""
    if settings.steps:
        return settings.steps
    tokens = settings.tokens or min(packing.pairs, DEFAULT_TOKENS)
    windows = len(packing) * (settings.epochs or tokens / packing.pairs)
    return max(1, math.ceil(round(windows / settings.batch, 6)))
