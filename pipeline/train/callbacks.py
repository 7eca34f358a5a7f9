"""What the training loop calls: batches, validation, checkpoints, rollbacks, logging.

Rank 0 writes files, and the other ranks wait for the outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.stage import Context, RunConfig
from pipeline.modeling.generation import generate
from pipeline.modeling.packed_batch import PackedBatch
from pipeline.modeling.scoring import SlidingWindows, score
from pipeline.tokenize.encoder import ReferenceEncoder
from pipeline.train import checkpoint
from pipeline.train.checkpoint import TrainState
from pipeline.train.data import TrainingData
from pipeline.train.metrics_log import MetricsLog
from pipeline.train.step_runner import StepRunner

PROMPT_TOKENS = 24
LOG_EVERY_STEPS = 10
NOT_ROLLED_BACK = ("skipped", "attempts", "micro_batch", "good_step")
"""Fields of the state that a rollback keeps."""


class TrainerCallbacks:
    """The `pipeline.train.trainer.Callbacks` of the train stage.

    Args:
        config: Configuration of the run.
        ctx: Context of the train step.
        base: Folder of the base model.
        data: Training and validation data.
        step_runner: The model and its optimizer.
        state: State in which training starts.
    """

    def __init__(
        self,
        config: RunConfig,
        ctx: Context,
        base: Path,
        data: TrainingData,
        step_runner: StepRunner,
        state: TrainState,
    ) -> None:
        self.settings, self.ctx, self.data = config.train, ctx, data
        self.step_runner, self.ranks = step_runner, step_runner.ranks
        self.total_steps = state.total
        if not ctx.rank:
            self.metrics_log = MetricsLog(ctx.folder, state, config.train.tensorboard)
            self.tokenizer = ReferenceEncoder(base)

    def batches(self, step: int, micro_batch_size: int) -> Iterator[PackedBatch]:
        """This rank's micro-batches of a step, of at most that many windows."""
        windows = self.ranks.part_of_rank(self.data.sampler.windows(step))
        return self.data.batches(list(windows), micro_batch_size)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and remove old ones."""
        self.ranks.run_on_rank0(lambda: self._write_checkpoint(state))

    def _write_checkpoint(self, state: TrainState) -> None:
        name, runner = checkpoint.unit_name(state.step), self.step_runner
        unit = self.ctx.folder / name
        # a checkpoint from before a rollback does not contain it
        if self.ctx.has(name) is None or checkpoint.read_state(unit).rollbacks != state.rollbacks:
            with self.ctx.commit(name) as draft:
                checkpoint.save(draft.path, runner.model, runner.optimizer, runner.scaler, state)
        checkpoint.remove_old(self.ctx, state, self.settings.keep_checkpoints)

    def roll_back(self, state: TrainState) -> None:
        """Return to the last good checkpoint, and lower the learning rate.

        Raises:
            UserError: There is no good checkpoint.
        """
        unit = self.ranks.run_on_rank0(lambda: checkpoint.remove_after(self.ctx, state.good_step))
        if unit is None:
            raise UserError(
                "training diverged, and no good checkpoint is left", "Try a lower train.lr"
            )
        checkpoint.wait_until_visible(unit)
        runner = self.step_runner
        checkpoint.restore(unit, runner.model, runner.optimizer, runner.scaler)
        kept = {name: getattr(state, name) for name in NOT_ROLLED_BACK}
        kept["rollbacks"] = state.rollbacks + 1
        kept["slowdown"] = state.slowdown * self.settings.rollback_rate
        vars(state).update(vars(checkpoint.read_state(unit)) | kept)

    def validate(self, state: TrainState) -> float:
        """The mean loss on the validation documents, nats per token; ranks share the batches."""
        data, runner, ranks = self.data, self.step_runner, self.ranks
        documents = data.validation_documents()
        nll, tokens = score(
            runner.model,
            documents,
            SlidingWindows(data.packing.length, data.packing.length, data.prefix_id),
            runner.device,
            runner.precision,
            check=lambda: ranks.check_stop(self.ctx.stop),
            rank_and_world=(ranks.rank, ranks.world_size),
        )
        # summed per document first, so the result is the same for any number of ranks
        nats, count = (np.sum(ranks.all_sum(*values.tolist())) for values in (nll, tokens))
        loss = float(nats / count)
        prompt = documents[0][:PROMPT_TOKENS].tolist()
        ranks.run_on_rank0(lambda: self._add_sample(state.step, loss, prompt))
        return loss

    def _add_sample(self, step: int, loss: float, prompt: list[int]) -> None:
        """Generate the continuation of a prompt, and log it."""
        (text,) = generate(
            self.step_runner.model,
            [prompt],
            self.settings.sample_tokens,
            self.data.prefix_id,
            self.data.end_id,
            self.step_runner.device,
            self.step_runner.precision,
            stop=self.ctx.stop,
        )
        decode = self.tokenizer.decode
        self.metrics_log.add_sample(step, loss, decode(prompt), decode(text))

    def log(self, row: dict[str, Any]) -> None:
        """Write a row to the metrics, and what matters to the log of the task."""
        if self.ctx.rank:
            return
        self.metrics_log.add(row)
        step, total = row["step"], self.total_steps
        if "loss" in row:
            name = "validation" if row["kind"] == "validation" else "loss"
            loss = round(row["loss"], 4)
            self.ctx.progress(step, total, "steps", **{name: loss})
            if name == "validation" or step % LOG_EVERY_STEPS == 0:
                self.ctx.log(f"step {step} of {total}: {name} {loss}")
        if row.get("skipped"):
            self.ctx.log(f"step {step} of {total} SKIPPED: {row['why']}")
        elif row["kind"] == "rollback":
            self.ctx.log(
                f"ROLLED BACK from step {row['of']} to step {step}; from here on the learning rate "
                f"is {row['slowdown']:g} times the scheduled one"
            )
        elif row["kind"] == "memory":
            self.ctx.log(
                f"OUT OF MEMORY at step {step}: continuing with micro-batches of "
                f"{row['micro_batch']}; the global batch is the same"
            )
