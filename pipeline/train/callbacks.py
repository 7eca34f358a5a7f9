"""What a training reads and writes while its loop runs: batches, checkpoints, validations, rows.

Rank 0 writes, and the others wait for what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.stage import Context, RunConfig
from pipeline.dataset.order import WindowSampler
from pipeline.dataset.packing import PackedBatch, Packing, make_batch
from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.modeling.generation import generate
from pipeline.modeling.scoring import SlidingWindows, score
from pipeline.tokenize.encoder import ReferenceEncoder
from pipeline.train import checkpoint
from pipeline.train.checkpoint import State
from pipeline.train.distributed import Ranks
from pipeline.train.metrics_log import Journal
from pipeline.train.trainer import Hooks, Learner

PROMPT = 24
TOLD_EVERY = 10


@dataclass(frozen=True)
class Data:
    """What is learned from and judged by: both splits, the packing, the order, the token ids."""

    train: TokenizedSplit
    packing: Packing
    order: WindowSampler
    ranks: Ranks
    validation: TokenizedSplit
    chosen: list[int]
    prefix: int
    end: int

    def batches(self, step: int, micro_batch: int) -> Iterator[PackedBatch]:
        """This rank's micro-batches of a step, of at most so many windows."""
        windows = self.ranks.share(self.order.windows(step))
        for start in range(0, len(windows), micro_batch):
            part = windows[start : start + micro_batch]
            yield make_batch(self.train, self.packing, part, self.prefix, self.end)


class Clerk:
    """Does what the loop asks for.

    Args:
        config: Of the run.
        ctx: Of the training.
        base: Folder of the base model.
        data: What is learned from and judged by.
        learner: What learns.
        state: As it begins.
    """

    def __init__(
        self,
        config: RunConfig,
        ctx: Context,
        base: Path,
        data: Data,
        learner: Learner,
        state: State,
    ) -> None:
        self.settings, self.ctx, self.data, self.learner = config.train, ctx, data, learner
        self.state, self.ranks = state, data.ranks
        if not ctx.rank:
            self.journal = Journal(ctx.folder, state, config.train.tensorboard)
            self.encoder = ReferenceEncoder(base)

    def hooks(self) -> Hooks:
        """What the loop calls."""
        return Hooks(
            batches=self.data.batches,
            validate=self._validate,
            save=self._save,
            back=self._back,
            log=lambda row: None if self.ctx.rank else self._log(row),
        )

    def _save(self, state: State) -> None:
        self.ranks.lead(lambda: self._write(state))

    def _write(self, state: State) -> None:
        name, learner = checkpoint.name(state.step), self.learner
        unit = self.ctx.folder / name
        # one that was gone back to knows nothing of that
        if self.ctx.has(name) is None or checkpoint.read(unit).rollbacks != state.rollbacks:
            with self.ctx.commit(name) as draft:
                parts = learner.model, learner.optimizer, learner.scaler
                checkpoint.save(draft.path, *parts, state)
        checkpoint.retire(self.ctx, state, self.settings.keep_checkpoints)

    def _back(self, state: State) -> None:
        """The last good checkpoint again, but for what was learned about the way from it."""
        unit = self.ranks.lead(lambda: checkpoint.rewind(self.ctx, state.good_step))
        if unit is None:
            raise UserError("training diverged, and no good checkpoint is left", "try a lower lr")
        parts = self.learner.model, self.learner.optimizer, self.learner.scaler
        checkpoint.restore(checkpoint.appeared(unit), *parts)
        names = "skipped", "attempts", "micro_batch", "good_step"
        kept = {name: getattr(state, name) for name in names}
        kept["rollbacks"] = state.rollbacks + 1
        kept["slowdown"] = state.slowdown * self.settings.rollback_rate
        vars(state).update(vars(checkpoint.read(unit)) | kept)

    def _validate(self, state: State) -> float:
        """The mean loss on held-out documents, nats a token; ranks share their batches."""
        data, learner, ranks = self.data, self.learner, self.ranks
        documents = [data.validation.document(i) for i in data.chosen]
        nll, tokens = score(
            learner.model,
            documents,
            SlidingWindows(data.packing.length, data.packing.length, data.prefix),
            learner.device,
            learner.precision,
            check=lambda: ranks.check(self.ctx.stop),
            share=(ranks.rank, ranks.world),
        )
        # document by document: the sum is then the same for any number of ranks
        nats, counts = (np.sum(ranks.total(*values.tolist())) for values in (nll, tokens))
        loss = float(nats / counts)
        ranks.lead(lambda: self._sample(state.step, loss, documents[0][:PROMPT].tolist()))
        return loss

    def _sample(self, step: int, loss: float, opening: list[int]) -> None:
        """Note what the model writes after the opening of a document."""
        data, learner = self.data, self.learner
        how = data.prefix, data.end, learner.device, learner.precision
        length = self.settings.sample_tokens
        (text,) = generate(learner.model, [opening], length, *how, stop=self.ctx.stop)
        decode = self.encoder.decode
        self.journal.sample(step, loss, decode(opening), decode(text))

    def _log(self, row: dict[str, Any]) -> None:
        self.journal.add(row)
        step, total = row["step"], self.state.total
        if "loss" in row:
            name = "validation" if row["kind"] == "validation" else "loss"
            told = {name: round(row["loss"], 4)}
            self.ctx.progress(step, total, "steps", **told)
            if name == "validation" or step % TOLD_EVERY == 0:
                self.ctx.log(f"step {step} of {total}: {name} {told[name]}")
        if row.get("skipped"):
            self.ctx.log(f"step {step} of {total} SKIPPED: {row['why']}")
        elif row["kind"] == "rollback":
            self.ctx.log(
                f"WENT BACK from step {row['of']} to step {step}; from here on the learning rate "
                f"is {row['slowdown']:g} of what it was to be"
            )
        elif row["kind"] == "memory":
            self.ctx.log(
                f"OUT OF MEMORY at step {step}: going on with micro-batches of "
                f"{row['micro_batch']}, the global batch is the same"
            )
