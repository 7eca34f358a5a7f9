"""Ours as it is: the stage's own training, which takes a step when it is told.

    python -m bench.product_training JOB.json

Nothing of it is replaced; its loop is only looked at from outside, at the begin of a step and when
it notes one. After each step the same batches go through bare forward and backward, made ready
before: what the step cost beyond that is the loop's.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.job import Job, read
from bench.lockstep import Turns
from bench.setup import SPLITS

STEPS = 1_000_000


class Ended(BaseException):
    """No more turns; not an error, so nothing on the way may catch it."""


def overrides(job: Job) -> list[str]:
    """The product's settings for a job."""
    targets = ",".join(job.targets)
    return [
        *SPLITS,
        "train.method=lora",
        f"train.weights={job.weights}",
        f"train.precision={'bf16' if job.autocast else 'fp32'}",
        f"train.lora_rank={job.rank}",
        f"train.lora_alpha={job.alpha}",
        f"train.lora_targets=[{targets}]",
        f"train.optimizer={job.optimizer}",
        f"train.lr={job.lr}",
        "train.schedule=constant",
        "train.warmup_ratio=0",
        f"train.betas=[{job.betas[0]},{job.betas[1]}]",
        f"train.weight_decay={job.decay}",
        f"train.max_grad_norm={job.clip}",
        f"train.sequence_length={job.length}",
        f"train.micro_batch_size={job.packed}",
        f"train.batch_size={job.packed * job.accumulate}",
        f"train.gradient_checkpointing={str(job.checkpointing).lower()}",
        f"train.seed={job.seed}",
        # neither validation nor checkpoints within what is measured
        f"train.steps={STEPS}",
        f"train.validate_every={STEPS}",
        f"train.checkpoint_every={STEPS}",
        "train.validation_documents=1",
        "train.sample_tokens=1",
    ]


def bare(learner: Any, batches: list[Any]) -> float:
    """CPU seconds of forward and backward alone, of batches that are ready.

    What it leaves in the gradients is removed.
    """
    from pipeline.dataset.packing import IGNORE_INDEX
    from pipeline.modeling.device import autocast
    from pipeline.modeling.loading import backbone
    from pipeline.modeling.loss import token_losses

    ready = [batch.masked_inputs() for batch in batches]
    tokens = sum(int((targets != IGNORE_INDEX).sum()) for _, targets in ready)
    body, head = backbone(learner.model)
    since = time.process_time()
    for arguments, targets in ready:
        with autocast(learner.device, learner.precision):
            hidden = body(**arguments, use_cache=False).last_hidden_state
            losses = token_losses(hidden.flatten(0, 1), head, targets)
        (losses.sum() / tokens).backward()
    used = time.process_time() - since
    learner.optimizer.zero_grad(set_to_none=True)
    return used


def main() -> None:
    """Train as the job says."""
    turns, job = Turns(), read(sys.argv[1])
    from pipeline.config import resolve
    from pipeline.core.stage import Context, run_item
    from pipeline.dag import find
    from pipeline.dataset.packing import IGNORE_INDEX, make_batch
    from pipeline.train import trainer as loop

    config = resolve(job.dataset, job.base, "lora", overrides(job), name=job.kind)
    fit = loop.fit

    def watched(learner: Any, state: Any, plan: Any, hooks: Any, stop: Any) -> None:
        begun = False
        data = hooks.batches.__self__
        # what an epoch gives to learn from, counted off its batches
        parts = (make_batch(data.train, data.packing, [w], 0, 0) for w in range(len(data.packing)))
        seen = sum(int((part.targets != IGNORE_INDEX).sum()) for part in parts)

        def batches(step: int, micro_batch: int) -> Any:
            nonlocal begun
            if not begun:
                begun = True
                turns.begin()
            return hooks.batches(step, micro_batch)

        def log(row: dict[str, Any]) -> None:
            hooks.log(row)
            if row["kind"] != "step":
                return
            slots = job.packed * job.accumulate * job.length
            counted = turns.account(row["tokens"], slots, row["loss"])
            again = hooks.batches(row["step"] - 1, plan.micro_batch)
            if not turns.next(counted, bare=bare(learner, list(again)), seen=seen):
                learner.model.save_pretrained(job.out)
                raise Ended

        fit(learner, state, plan, replace(hooks, batches=batches, log=log), stop)

    loop.fit = watched
    node = find(config, Path(job.root), "train.train")
    shutil.rmtree(node.work.folder, ignore_errors=True)
    assert node.items, "the stages before it were not run"
    try:
        run_item(node.work, node.items[0], Context(cpus=1))
    except Ended:
        return
    raise AssertionError("it ended by itself")


if __name__ == "__main__":
    main()
