"""A stage run by hand: `python -m jobs run train`, in a shell or in one of `slurm/*.sbatch`.

The same steps, receipts and leases as in a plan, with the working tree as it is; what that has that
its commit has not is written down.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jobs.cluster.allocation import Allocation, of_slurm
from jobs.planning import snapshot
from jobs.running.stage_job import listen, runs_again
from jobs.running.task import run_task
from pipeline.config import Config
from pipeline.core.errors import Interrupted, UserError
from pipeline.core.settings import nearest
from pipeline.core.stage import Step
from pipeline.dag import STAGES, STEPS, find


def run_steps(
    config: Config,
    root: Path,
    what: str,
    element: str = "0/1",
    *,
    cpus: int = 1,
    gpus: int = 0,
    batch: bool = False,
    plan: Path | None = None,
) -> None:
    """Run a stage, or one step, in this process.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        what: A stage's name, or a step's.
        element: `r/n`: every n-th item, from the r-th on, of steps whose items can be shared.
        cpus: Cores to use.
        gpus: GPUs to use.
        batch: As a step of a batch job: cores and GPUs are those that SLURM granted, and after a
            TERM the process waits to be killed.
        plan: The file of the plan of which this is a task.

    Raises:
        UserError: There is no such stage or element, or several tasks cannot share it.
        Interrupted: A stop was asked for; progress is safe.
    """
    steps = [step for step in STEPS if what in (step.name, step.stage)]
    if not steps:
        raise UserError(
            f"there is no stage {what!r}", nearest(what, [*STAGES, *(s.name for s in STEPS)])
        )
    index, _, of = element.partition("/")
    if not (index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise UserError(f"--element={element} is not like 0/4: which element, of how many")
    allocation = of_slurm() if batch else Allocation(cpus, gpus)
    alone = [step.name for step in steps if not step.ranked]
    if allocation.world > 1 and alone:
        raise UserError(
            f"{alone[0]} is not shared by the tasks of a job, and this one has {allocation.world}",
            "only train is; for tokenize use --array",
        )
    run = root / "runs" / config.name
    if not allocation.rank:
        snapshot.record(run)
        if batch:
            _show_log(run / "logs", what)
    stop = listen(allocation.deadline)
    stop.on_signals(signal.SIGINT)
    try:
        for step in steps:
            if int(of) > 1 and _waits_for_others(config, root, step):
                print(f"{step.name} is left to the element that ends last", flush=True)
                break
            share = (int(index), int(of)) if step.tasks else (0, 1)
            run_task(
                *(config, root, step.name, *share),
                stop=stop,
                allocation=allocation,
                plan=plan.stem if plan else "",
            )
    except Interrupted:
        if batch:
            runs_again(stop, allocation, done=False)
        raise
    if batch and runs_again(stop, allocation, done=True):
        raise Interrupted(stop.reason)


def _waits_for_others(config: Config, root: Path, step: Step) -> bool:
    """Whether a step's inputs are still being made by other elements of the same array."""
    return not step.tasks and find(config, root, step.name).items is None


def _show_log(folder: Path, what: str) -> None:
    """Let `logs` find what SLURM writes for the batch script."""
    log, job = os.environ.get("GRISTMILL_LOG", ""), os.environ.get("SLURM_JOB_ID", "")
    if Path(log).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / f"{what}-by-hand-{job}.log"
        link.unlink(missing_ok=True)
        link.symlink_to(log)
