"""A stage run by hand: `python -m jobs run train`, in a shell or in one of `slurm/*.sbatch`.

It runs the same steps with the same receipts and leases as a plan, but with the working tree as it
is; uncommitted changes are saved in the run's folder.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jobs.cluster.allocation import Allocation, slurm_allocation
from jobs.planning import snapshot
from jobs.running.stage_job import install_stop, wait_then_decide_requeue
from jobs.running.task import run_task
from pipeline.config import Config
from pipeline.core.errors import Interrupted, UserError
from pipeline.core.settings import nearest
from pipeline.core.stage import Step
from pipeline.dag import STAGES, STEPS, find


def run_steps(
    config: Config,
    root: Path,
    name: str,
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
        name: The name of a stage or a step.
        element: `r/n` runs every n-th item, starting with item r, of steps whose items can be
            divided.
        cpus: Cores to use.
        gpus: GPUs to use.
        batch: Whether this is a step of a SLURM batch job: cores and GPUs are those of the job, and
            after a TERM the process waits to be killed.
        plan: The file of the plan that this task belongs to.

    Raises:
        UserError: There is no such stage or element, or several tasks cannot share the stage.
        Interrupted: A stop was requested; progress is saved.
    """
    steps = [step for step in STEPS if name in (step.name, step.stage)]
    if not steps:
        raise UserError(
            f"there is no stage {name!r}", nearest(name, [*STAGES, *(s.name for s in STEPS)])
        )
    share = _parse_element(element)
    allocation = slurm_allocation() if batch else Allocation(cpus, gpus)
    _check_tasks(steps, allocation)
    run = root / "runs" / config.name
    if not allocation.rank:
        snapshot.record_changes(run)
        if batch:
            _link_log(run / "logs", name)
    stop = install_stop(allocation.deadline)
    stop.on_signals(signal.SIGINT)
    try:
        for step in steps:
            if share[1] > 1 and _left_to_others(config, root, step):
                print(f"skipping {step.name}: the last element to finish runs it", flush=True)
                break
            run_task(
                *(config, root, step.name),
                *(share if step.tasks_setting else (0, 1)),
                stop=stop,
                allocation=allocation,
                plan=plan.stem if plan else "",
            )
    except Interrupted:
        if batch:
            wait_then_decide_requeue(stop, allocation, done=False)
        raise
    if batch and wait_then_decide_requeue(stop, allocation, done=True):
        raise Interrupted(stop.reason)


def _parse_element(element: str) -> tuple[int, int]:
    index, _, of = element.partition("/")
    if not (index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise UserError(f"--element={element} must be which of how many tasks, as in 0/4")
    return int(index), int(of)


def _check_tasks(steps: list[Step], allocation: Allocation) -> None:
    """Refuse several tasks for a step that only one process can run."""
    single = [step.name for step in steps if not step.multi_process]
    if allocation.world > 1 and single:
        raise UserError(
            f"{single[0]} cannot be shared by the tasks of a job; this one has {allocation.world}",
            "Only train can be; for tokenize use --array",
        )


def _left_to_others(config: Config, root: Path, step: Step) -> bool:
    """Whether other elements of this array have not finished the inputs of a step."""
    return not step.tasks_setting and find(config, root, step.name).items is None


def _link_log(folder: Path, name: str) -> None:
    """Link the log of the batch script into the run's logs, so that `logs` shows it."""
    log, job = os.environ.get("GRISTMILL_LOG", ""), os.environ.get("SLURM_JOB_ID", "")
    if Path(log).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / f"{name}-by-hand-{job}.log"
        link.unlink(missing_ok=True)
        link.symlink_to(log)
