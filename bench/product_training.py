"""Gristmill's own training stage, in lockstep with other systems (`bench.lockstep`).

    python -m bench.product_training JOB.json

The training loop runs unchanged; two of its callbacks are wrapped, one that fetches the first
batch and one that logs a step. After each step the same batches, prepared beforehand, go through
forward and backward alone: the difference in cost is the overhead of the loop.
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench.job import Job, read
from bench.lockstep import Lockstep
from bench.setup import SPLIT_SETTINGS

UNLIMITED_STEPS = 1_000_000


class LockstepEnded(BaseException):
    """The measuring side wants no more steps; a BaseException, so that nothing catches it."""


def overrides(job: Job) -> list[str]:
    """Gristmill's settings for a job."""
    targets = ",".join(job.lora_targets)
    return [
        *SPLIT_SETTINGS,
        "train.method=lora",
        f"train.weights={job.weights}",
        f"train.precision={'bf16' if job.autocast else 'fp32'}",
        f"train.lora_rank={job.lora_rank}",
        f"train.lora_alpha={job.lora_alpha}",
        f"train.lora_targets=[{targets}]",
        f"train.optimizer={job.optimizer}",
        f"train.lr={job.lr}",
        "train.schedule=constant",
        "train.warmup_ratio=0",
        f"train.betas=[{job.betas[0]},{job.betas[1]}]",
        f"train.weight_decay={job.weight_decay}",
        f"train.max_grad_norm={job.max_grad_norm}",
        f"train.sequence_length={job.sequence_length}",
        f"train.micro_batch_size={job.packed_windows}",
        f"train.batch_size={job.packed_windows * job.accumulate}",
        f"train.gradient_checkpointing={str(job.checkpointing).lower()}",
        f"train.seed={job.seed}",
        # neither validation nor checkpoints during the measurement
        f"train.steps={UNLIMITED_STEPS}",
        f"train.validate_every={UNLIMITED_STEPS}",
        f"train.checkpoint_every={UNLIMITED_STEPS}",
        "train.validation_documents=1",
        "train.sample_tokens=1",
    ]


def forward_backward_seconds(step_runner: Any, batches: list[Any]) -> float:
    """CPU seconds of forward and backward alone on prepared batches; clears the gradients."""
    from pipeline.modeling.device import autocast
    from pipeline.modeling.loading import body_and_head
    from pipeline.modeling.loss import token_losses
    from pipeline.modeling.packed_batch import IGNORE_INDEX

    prepared = [batch.masked_inputs() for batch in batches]
    tokens = sum(int((targets != IGNORE_INDEX).sum()) for _, targets in prepared)
    body, head = body_and_head(step_runner.model)
    start = time.process_time()
    for arguments, targets in prepared:
        with autocast(step_runner.device, step_runner.precision):
            hidden = body(**arguments, use_cache=False).last_hidden_state
            losses = token_losses(hidden.flatten(0, 1), head, targets)
        (losses.sum() / tokens).backward()
    cpu = time.process_time() - start
    step_runner.optimizer.zero_grad(set_to_none=True)
    return cpu


def main() -> None:
    """Run the job on the command line."""
    lockstep, job = Lockstep(), read(sys.argv[1])
    from pipeline.config import resolve
    from pipeline.core.stage import Context, run_item
    from pipeline.dag import find
    from pipeline.dataset.packing import make_batch
    from pipeline.modeling.packed_batch import IGNORE_INDEX
    from pipeline.train import run

    config = resolve(job.dataset, job.base, "lora", overrides(job), name=job.kind)
    fit = run.fit

    def fit_in_lockstep(
        step_runner: Any, state: Any, schedule: Any, callbacks: Any, stop: Any
    ) -> None:
        started = False
        data = callbacks.data
        # targets in all batches of an epoch
        batches_of_epoch = (
            make_batch(data.train, data.packing, [w], 0, 0) for w in range(len(data.packing))
        )
        epoch_tokens = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches_of_epoch)

        def batches(step: int, micro_batch_size: int) -> Any:
            nonlocal started
            if not started:
                started = True
                lockstep.begin()
            return callbacks.batches(step, micro_batch_size)

        def log(row: dict[str, Any]) -> None:
            callbacks.log(row)
            if row["kind"] != "step":
                return
            slots = job.packed_windows * job.accumulate * job.sequence_length
            cost = lockstep.measure_step(row["tokens"], slots, row["loss"])
            same_batches = list(callbacks.batches(row["step"] - 1, schedule.micro_batch_size))
            bare = forward_backward_seconds(step_runner, same_batches)
            if not lockstep.report(cost, bare=bare, seen=epoch_tokens):
                step_runner.model.save_pretrained(job.out)
                raise LockstepEnded

        wrapped = copy.copy(callbacks)
        wrapped.batches, wrapped.log = batches, log
        fit(step_runner, state, schedule, wrapped, stop)

    run.fit = fit_in_lockstep
    node = find(config, Path(job.root), "train.train")
    shutil.rmtree(node.work.folder, ignore_errors=True)
    assert node.items, "the data stages have not run"
    try:
        run_item(node.work, node.items[0], Context(cpus=1))
    except LockstepEnded:
        return
    raise AssertionError("training ended by itself")


if __name__ == "__main__":
    main()
