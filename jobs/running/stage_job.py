"""What submitit pickles and runs: names only.

All state is on disk, so the same pickle can be run again, on any node, after anything. On a stop
that leaves time (USR2, the deadline) the task saves, and then submitit's own handler requeues the
job. After a TERM it saves, too, but waits to be killed: SLURM has its own plans for the job then,
and one that ends by itself in a preemption's grace time counts as timed out.
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

from jobs.cluster.allocation import Allocation, of_slurm
from jobs.core.console import complain, say, settle
from jobs.core.permissions import follow
from jobs.planning.plan import read_plan
from jobs.running.task import run_task
from pipeline.core.error_translation import explain
from pipeline.core.errors import Busy, Failure, Interrupted
from pipeline.core.stop import Stop

TERM = signal.SIGTERM
AGAIN = 30.0
KILLED_WITHIN = 1800.0


@dataclass(frozen=True)
class StageJob:
    """One element of an array of a plan; see `jobs.planning.plan`.

    `minutes`: its time limit. `warning`: seconds before that at which SLURM tells it to save.
    """

    plan: str
    step: str
    element: int
    minutes: int
    warning: int

    def __call__(self) -> None:
        """Run it; submitit's handlers are in place."""
        requeue = signal.getsignal(signal.SIGUSR2)
        allocation = of_slurm(self.minutes, self.warning)
        stop = listen(allocation.deadline)
        done = False
        try:
            self._run(stop, allocation)
            done = True
        except Interrupted as why:
            say(f"interrupted ({why}): progress is safe")
        except Exception as error:
            failure = error if isinstance(error, Failure) else explain(error, Path(self.plan))
            if failure is None:
                raise
            complain(f"error: {failure}")
            settle()
            sys.exit(failure.exit_code)
        if runs_again(stop, allocation, done):
            if not allocation.rank:
                _requeue(requeue)
            wait_to_be_killed(None)

    def _run(self, stop: Stop, allocation: Allocation) -> None:
        """Run the element, once nobody else is at it."""
        plan = read_plan(Path(self.plan))
        config, root, of = plan.settings, Path(plan.root), plan.array(self.step).of
        follow(root / "runs" / config.name)  # whatever umask a node gives it
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
                # by hand, say; failing would take along what waits for this job
                say(f"waiting: {busy.what}")
            end = time.monotonic() + AGAIN
            while time.monotonic() < end:
                stop.check()
                time.sleep(1.0)

    def checkpoint(self) -> Any:
        """What submitit is to run next time: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def listen(deadline: float | None) -> Stop:
    """The flag, set by the signals with which SLURM announces an end."""
    stop = Stop(deadline)
    stop.on_signals(signal.SIGUSR2, TERM)
    # as it ends, Python gives signals their defaults back: a late one would kill a job that is done
    atexit.register(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
    return stop


def runs_again(stop: Stop, allocation: Allocation, done: bool) -> bool:
    """Whether a job that was told to end has to run again; waits to be killed after a TERM.

    Also one whose work was just done: if it ends by itself in a preemption's grace time it counts
    as timed out, and what waits for it never runs. At its time limit it may.
    """
    if stop.asked_by == TERM:
        wait_to_be_killed(allocation.deadline)
    if done and (stop.asked_by is None or allocation.ends_soon):
        return False
    return stop.reason is not None


def wait_to_be_killed(deadline: float | None) -> None:
    """Hold still until SLURM ends the process, which is not ours to do.

    Returns where it does not: after another signal, at the deadline, or half an hour.
    """
    say("waiting for SLURM to end this job")
    end = time.monotonic() + KILLED_WITHIN
    again = Stop(end if deadline is None else min(end, deadline))
    again.on_signals(signal.SIGUSR2)
    while not again.reason:
        time.sleep(1.0)


def _requeue(handler: Callable[[int, None], None] | Any) -> None:
    """Have submitit's handler requeue the job; it ends the process."""
    _clear_half_written()
    try:
        handler(signal.SIGUSR2, None)
    except (OSError, subprocess.SubprocessError) as error:
        # no scontrol on compute nodes, or requeueing is not allowed here
        complain(
            f"error: this job cannot be requeued ({error}). Progress is safe: run make pipeline "
            "again to go on"
        )
        sys.exit(Interrupted.exit_code)


def _clear_half_written() -> None:
    """Remove what a kill in the middle of an earlier requeue left: submitit refuses to go on."""
    from submitit import JobEnvironment

    pickle = JobEnvironment().paths.submitted_pickle
    leftover = pickle.with_suffix(pickle.suffix + ".save_tmp")
    if leftover.exists() and pickle.exists():
        os.unlink(leftover)
