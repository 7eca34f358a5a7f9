"""A plan, queued on SLURM through submitit: one array a step, each waiting for those it needs.

The queue is looked at before the receipts, and nobody else submits meanwhile, so that a second
`make pipeline` finds the jobs of the first and submits nothing twice. When this returns nothing of
it stays alive here.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.cluster import slurm_cli as slurm
from jobs.cluster.allocation import process_gone, process_label
from jobs.cluster.profile import Profile, Resources
from jobs.core.environment import TASK_ENVIRONMENT, THREAD_VARIABLES
from jobs.monitoring.history import note_plan
from jobs.monitoring.progress_file import logs_folder
from jobs.planning import snapshot
from jobs.planning.plan import Array, Plan, job_name
from jobs.planning.planner import make_plan
from jobs.planning.queue import Queue, look
from jobs.running.stage_job import StageJob
from pipeline.config import Config
from pipeline.core.errors import Busy, InputError, UserError
from pipeline.core.lease import Lease

ENDLESS = 1_000_000  # time-outs; what ends an endless job is the count of starts without progress
WAIT = 120.0


@dataclass(frozen=True)
class Submission:
    """What was submitted: the plan, job ids by step, and how long it took."""

    plan: Plan
    jobs: dict[str, str]
    seconds: float

    def told(self) -> Iterator[str]:
        """Lines that say what was queued."""
        name = self.plan.name
        if not self.jobs and not self.plan.live:
            yield f"{name}: everything is done"
            return
        for step, jobs in self.plan.live.items():
            yield f"  {step:<18} in the queue already: {_few(jobs)}"
        for array in self.plan.arrays:
            tasks = f" ({len(array.elements)} tasks)" if len(array.elements) > 1 else ""
            waits = _few([*array.needs, *array.after])
            after = f" after {waits}" if waits else ""
            yield f"  {array.step:<18} job {self.jobs[array.step]}{tasks}{after}"
        yield f"{name}: {len(self.jobs)} jobs queued in {self.seconds:.1f} s, and nothing left here"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def queue_plan(config: Config, root: Path, profile: Profile) -> Submission:
    """Submit what of a run is not done and not being done.

    Raises:
        UserError: SLURM refuses what the profile asks for; what was queued before stays.
        InputError: SLURM does not answer.
    """
    started = time.monotonic()
    run = root / "runs" / config.name
    if odd := sorted(set("%\\\n") & set(str(run))):
        raise UserError(
            f"{str(run)!r} has {odd[0]!r} in it, which SLURM takes for a pattern in names of logs",
            "choose another RUNS or NAME",
        )
    jobs: dict[str, str] = {}
    with _one_submitter(root) as lease, slurm.outside_of_a_job():
        queue = _settled(root)
        plan = make_plan(config, root, queue, slurm.longest_array())
        if plan.arrays:
            plan = replace(plan, code=str(snapshot.take(run)))
            path = plan.write()
            note_plan(plan, run / "logs")
            for array in plan.arrays:
                waits = [jobs[need] for need in array.needs] + list(array.after)
                lease.confirm()
                jobs[array.step] = _submit(plan, path, array, waits, profile, jobs)
            lease.confirm()
            _replace(plan, jobs, queue)
    return Submission(plan, jobs, time.monotonic() - started)


def _replace(plan: Plan, jobs: Mapping[str, str], queue: Queue) -> None:
    """Take out jobs that wait in vain; other runs that wait for them get the new ones instead."""
    new = {old: jobs[array.step] for array in plan.arrays for old in array.replaces}
    for job, needed in queue.waiting_for(new, but=new.keys()).items():
        slurm.wait_for_others(job, list(dict.fromkeys(new.get(name, name) for name in needed)))
    slurm.cancel(list(new))


def _settled(root: Path) -> Queue:
    """The queue, once no job of this root is just ending: it might be requeued, or have failed.

    Raises:
        InputError: One does not come to its end.
    """
    end, told = time.monotonic() + WAIT, False
    while True:
        queue = look(root)
        planned = [live.job for lives in queue.planned.values() for live in lives]
        ending = [job.id for job in planned if job.state == slurm.ENDING]
        if not ending:
            return queue
        if time.monotonic() > end:
            raise InputError(f"job {ending[0]} has been ending for two minutes", "try again later")
        if not told:
            print(f"waiting for the end of {_few(ending)}", flush=True)
            told = True
        time.sleep(2.0)


def _submit(
    plan: Plan,
    path: Path,
    array: Array,
    waits: list[str],
    profile: Profile,
    before: Mapping[str, str],
) -> str:
    """Queue one array, after those in `before`; returns its job id."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    resources = profile.resources(array.step)
    folder = logs_folder(Path(plan.root), plan.name) / array.step
    executor = submitit.SlurmExecutor(folder, max_num_timeout=ENDLESS, python=_python())
    executor.update_parameters(
        job_name=job_name(array.step, plan),
        time=resources.time,
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        cpus_per_task=resources.cpus,
        array_parallelism=resources.parallel,
        signal_delay_s=profile.signal_seconds,
        stderr_to_stdout=True,
        wckey=None,
        # whatever sbatch was told to leave out (SBATCH_EXPORT=NONE), the task needs what we set;
        # and where one of several tasks fails, the others would wait for it
        srun_args=["--export=ALL", "--kill-on-bad-exit=1"],
        setup=_setup(plan, resources),
        **_asked_for(resources),
        additional_parameters=_more(resources, waits, profile.kill_on_invalid_dep),
    )
    limits = resources.time, profile.signal_seconds
    tasks = [StageJob(str(path), array.step, element, *limits) for element in array.elements]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit says what it raises, too
            if len(tasks) == 1:
                return str(executor.submit(tasks[0]).job_id)
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        return str(jobs[0].job_id).partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        said = next((x for x in str(error).splitlines() if "error:" in x), str(error))
        queued = f" ({_few([f'{step} {job}' for step, job in before.items()])})" if before else ""
        raise UserError(
            f"sbatch refuses {array.step}: {said.strip().rstrip('.')}",
            f"Change jobs.{array.step} or jobs.{array.stage} in the profile; what was queued stays"
            f"{queued}, and make pipeline goes on from there",
        ) from None


def _python() -> str:
    """The interpreter, deaf to USR2 until submitit listens: by default the signal would kill it."""
    return f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""


def _asked_for(resources: Resources) -> dict[str, Any]:
    """The resources under submitit's names; None is left out."""
    names = ("partition", "account", "qos", "constraint", "exclude", "mem", "mem_per_cpu", "gres")
    asked = {name: getattr(resources, name) for name in names}
    asked["gpus_per_node"] = resources.gpus or None
    return {name: value for name, value in asked.items() if value is not None}


def _more(resources: Resources, waits: list[str], kill: bool) -> dict[str, Any]:
    """Options that submitit has no name for."""
    more: dict[str, Any] = {"requeue": True}
    if waits:
        more["dependency"] = "afterok:" + ":".join(waits)
        if kill:
            more["kill-on-invalid-dep"] = "yes"
    return more | dict(resources.sbatch)


def _setup(plan: Plan, resources: Resources) -> list[str]:
    """Shell lines at the start of a job: the site's, then the plan's code and the cores granted."""
    return [
        *resources.setup,
        # without it the folder one submits from comes first, before the snapshot
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={shlex.quote(snapshot.python_path(plan.code))}",
        # from SLURM 22.05 on srun does not take it over from sbatch
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        *(f"export {name}=$SLURM_CPUS_PER_TASK" for name in THREAD_VARIABLES),
        *(f"export {name}=${{{name}:-{value}}}" for name, value in TASK_ENVIRONMENT.items()),
    ]


@contextmanager
def _one_submitter(root: Path) -> Iterator[Lease]:
    """Submit after whoever is submitting for this root now, from wherever."""
    root.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 2 * WAIT
    with ExitStack() as stack:
        while True:
            lease = Lease(root / ".lease-submit", process_label(), process_gone, 30.0, beat=2.0)
            try:
                stack.enter_context(lease)
                break
            except Busy:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield lease
