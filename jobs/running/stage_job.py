"""What submitit pickles and runs: names only.

All state is on disk, so the same pickle can run again, on any node, after any failure. After a
signal that leaves time (USR2, or the deadline) the task saves, and submitit's own handler requeues
the job. After a TERM the task saves as well, but waits to be killed: SLURM decides what happens to
the job then, and a job that ends by itself in a preemption's grace time counts as timed out.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.allocation import Allocation, slurm_allocation
from jobs.core.console import flush_streams, print_error, print_line
from jobs.core.permissions import apply_umask
from jobs.planning.plan import read_plan
from jobs.running.task import run_task
from pipeline.core.error_translation import translate
from pipeline.core.errors import Busy, Failure, Interrupted
from pipeline.core.stop import Stop

BUSY_RETRY_SECONDS = 30.0
MAX_WAIT_FOR_KILL_SECONDS = 1800.0


@dataclass(frozen=True)
class StageJob:
    """One element of a step's job array; see `jobs.planning.plan`.

    Attributes:
        plan: The path of the plan's file.
        step: The step's name.
        element: Which element of the step's array.
        minutes: The job's time limit.
        warning: Seconds before the time limit at which SLURM signals it to save.
    """

    plan: str
    step: str
    element: int
    minutes: int
    warning: int

    def __call__(self) -> None:
        """Run the element; submitit has installed its signal handlers before."""
        requeue_handler = signal.getsignal(signal.SIGUSR2)
        allocation = slurm_allocation(self.minutes, self.warning)
        stop = install_stop(allocation.deadline)
        done = False
        try:
            self._run(stop, allocation)
            done = True
        except Interrupted as reason:
            print_line(f"interrupted ({reason}): progress is safe")
        except Exception as error:
            failure = error if isinstance(error, Failure) else translate(error, Path(self.plan))
            if failure is None:
                raise
            print_error(f"error: {failure}")
            flush_streams()
            sys.exit(failure.exit_code)
        if wait_then_decide_requeue(stop, allocation, done):
            if not allocation.rank:
                _requeue(requeue_handler)
            wait_to_be_killed(None)

    def _run(self, stop: Stop, allocation: Allocation) -> None:
        """Run the element; while another process works on it, wait."""
        plan = read_plan(Path(self.plan))
        config, root, of = plan.settings, Path(plan.root), plan.array(self.step).of
        apply_umask(root / "runs" / config.name)  # nodes may start jobs with another umask
        while True:
            try:
                run_task(
                    *(config, root, self.step, self.element, of),
                    stop=stop,
                    allocation=allocation,
                    plan=Path(self.plan).stem,
                )
                return
            except Busy as busy:
                # for example a job by hand; a failure would cancel the jobs that wait for this one
                print_line(f"waiting: {busy.what}")
            end = time.monotonic() + BUSY_RETRY_SECONDS
            while time.monotonic() < end:
                stop.check()
                time.sleep(1.0)

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: this job again. Its signal handler calls this."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def install_stop(deadline: float | None) -> Stop:
    """A stop flag, set by the signals with which SLURM announces the end of a job."""
    stop = Stop(deadline)
    stop.on_signals(signal.SIGUSR2, signal.SIGTERM)
    # At exit Python restores the default handlers, and a late signal would kill a finished job.
    atexit.register(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
    return stop


def wait_then_decide_requeue(stop: Stop, allocation: Allocation, done: bool) -> bool:
    """After SIGTERM, wait to be killed; otherwise return whether the job has to run again.

    This holds even if its work has just finished: a job that ends by itself in a preemption's grace
    time counts as timed out, and its dependents never run. At its time limit it may end.
    """
    if stop.asked_by == signal.SIGTERM:
        wait_to_be_killed(allocation.deadline)
    if done and (stop.asked_by is None or allocation.ends_soon):
        return False
    return stop.reason is not None


def wait_to_be_killed(deadline: float | None) -> None:
    """Wait until SLURM ends the process.

    Returns if it does not: after another signal, at the deadline, or after half an hour.
    """
    print_line("waiting for SLURM to end this job")
    end = time.monotonic() + MAX_WAIT_FOR_KILL_SECONDS
    stop = Stop(end if deadline is None else min(end, deadline))
    stop.on_signals(signal.SIGUSR2)
    while not stop.reason:
        time.sleep(1.0)


def _requeue(handler: Callable[[int, None], None] | Any) -> None:
    """Let submitit's handler requeue the job; it ends the process."""
    _remove_partial_pickle()
    try:
        handler(signal.SIGUSR2, None)
    except (OSError, subprocess.SubprocessError) as error:
        # scontrol is missing on this node, or requeueing is not allowed
        print_error(
            f"error: this job cannot be requeued ({error}). Progress is safe: run make pipeline "
            "again to resume"
        )
        sys.exit(Interrupted.exit_code)


def _remove_partial_pickle() -> None:
    """Remove what a kill during an earlier requeue left; with it submitit refuses to requeue."""
    from submitit import JobEnvironment

    pickle = JobEnvironment().paths.submitted_pickle
    leftover = pickle.with_suffix(pickle.suffix + ".save_tmp")
    if leftover.exists() and pickle.exists():
        os.unlink(leftover)
