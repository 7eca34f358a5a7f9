"""Queue a plan on SLURM through submitit: one array for each step, after those it needs.

The queue is read before the receipts, and only one process submits at a time, so a second
`make pipeline` recognizes the jobs of the first and submits nothing twice. Nothing keeps running on
this machine afterwards.
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

from jobs.cluster import slurm_cli
from jobs.cluster.allocation import process_gone, process_label
from jobs.cluster.profile import Profile, Resources
from jobs.core.environment import TASK_ENVIRONMENT, THREAD_VARIABLES
from jobs.monitoring.history import record_plan
from jobs.monitoring.progress_file import logs_folder
from jobs.planning import snapshot
from jobs.planning.plan import Array, Plan, job_name
from jobs.planning.planner import make_plan
from jobs.planning.queue import Queue, read_queue
from jobs.running.stage_job import StageJob
from pipeline.config import Config
from pipeline.core.errors import Busy, InputError, UserError
from pipeline.core.lease import Lease

MAX_TIMEOUTS = 1_000_000  # in effect no limit: `ProgressFile.count_idle` ends an endless job
COMPLETING_WAIT_SECONDS = 120.0
SUBMITTER_WAIT_SECONDS = 240.0
MAX_IDS_SHOWN = 4


@dataclass(frozen=True)
class Submission:
    """What was submitted.

    Attributes:
        plan: The plan.
        jobs: Job ids by step.
        seconds: How long it took.
    """

    plan: Plan
    jobs: dict[str, str]
    seconds: float

    def describe(self) -> Iterator[str]:
        """Lines that say what was queued."""
        name = self.plan.name
        if not self.jobs and not self.plan.live:
            yield f"{name}: everything is done"
            return
        for step, jobs in self.plan.live.items():
            yield f"  {step:<18} in the queue already: {_first_ids(jobs)}"
        for array in self.plan.arrays:
            tasks = f" ({len(array.elements)} tasks)" if len(array.elements) > 1 else ""
            waits = _first_ids([*array.needs, *array.after])
            after = f" after {waits}" if waits else ""
            yield f"  {array.step:<18} job {self.jobs[array.step]}{tasks}{after}"
        yield f"{name}: {len(self.jobs)} jobs queued in SLURM in {self.seconds:.1f} s"


def _first_ids(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_IDS_SHOWN} more" if len(names) > MAX_IDS_SHOWN else ""
    return ", ".join(names[:MAX_IDS_SHOWN]) + more


def queue_plan(config: Config, root: Path, profile: Profile) -> Submission:
    """Submit the steps of a run that are neither finished nor queued.

    Raises:
        UserError: SLURM refuses what the profile asks for; jobs that were queued before stay.
        InputError: SLURM does not answer.
    """
    started = time.monotonic()
    run = root / "runs" / config.name
    if special := sorted(set("%\\\n") & set(str(run))):
        raise UserError(
            f"{str(run)!r} contains {special[0]!r}, which SLURM expands in the names of logs",
            "Choose another RUNS or NAME",
        )
    jobs: dict[str, str] = {}
    with _submission_lease(root) as lease, slurm_cli.without_job_variables():
        queue = _settled_queue(root)
        plan = make_plan(config, root, queue, slurm_cli.max_array_size())
        if plan.arrays:
            plan = replace(plan, code=str(snapshot.take(run)))
            path = plan.write()
            record_plan(plan, run / "logs")
            for array in plan.arrays:
                waits = [jobs[need] for need in array.needs] + list(array.after)
                lease.confirm()
                jobs[array.step] = _submit(plan, path, array, waits, profile, jobs)
            lease.confirm()
            _replace_blocked(plan, jobs, queue)
    return Submission(plan, jobs, time.monotonic() - started)


def _replace_blocked(plan: Plan, jobs: Mapping[str, str], queue: Queue) -> None:
    """Cancel jobs that can never start; jobs of other runs that wait for them get the new ones."""
    new = {old: jobs[array.step] for array in plan.arrays for old in array.replaces}
    for job, needed in queue.dependents(new, exclude=new.keys()).items():
        slurm_cli.set_dependency(job, list(dict.fromkeys(new.get(name, name) for name in needed)))
    slurm_cli.cancel(list(new))


def _settled_queue(root: Path) -> Queue:
    """The queue, read when no job of this root is completing: it may yet requeue or fail.

    Raises:
        InputError: A job stays in this state.
    """
    end, announced = time.monotonic() + COMPLETING_WAIT_SECONDS, False
    while True:
        queue = read_queue(root)
        planned = [live.job for jobs in queue.planned.values() for live in jobs]
        completing = [job.id for job in planned if job.state == slurm_cli.COMPLETING]
        if not completing:
            return queue
        if time.monotonic() > end:
            seconds = f"{COMPLETING_WAIT_SECONDS:.0f} s"
            raise InputError(
                f"job {completing[0]} has been ending for {seconds}", "Try again later"
            )
        if not announced:
            print(f"waiting for the end of {_first_ids(completing)}", flush=True)
            announced = True
        time.sleep(slurm_cli.COMPLETING_POLL_SECONDS)


def _submit(
    plan: Plan,
    path: Path,
    array: Array,
    waits: list[str],
    profile: Profile,
    earlier: Mapping[str, str],
) -> str:
    """Queue one array.

    Args:
        plan: The plan.
        path: Its file.
        array: The array.
        waits: Ids of the jobs it waits for.
        profile: The site.
        earlier: The arrays queued before, as job ids by step; named in an error.

    Returns:
        Its job id.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    resources = profile.resources(array.step)
    folder = logs_folder(Path(plan.root), plan.name) / array.step
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS, python=_python())
    executor.update_parameters(**_parameters(plan, array, waits, profile))
    limits = resources.time, profile.signal_seconds
    tasks = [StageJob(str(path), array.step, element, *limits) for element in array.elements]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints the errors it raises
            if len(tasks) == 1:
                return str(executor.submit(tasks[0]).job_id)
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        return str(jobs[0].job_id).partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        message = next((line for line in str(error).splitlines() if "error:" in line), str(error))
        names = [f"{step} {job}" for step, job in earlier.items()]
        queued = f" ({_first_ids(names)})" if names else ""
        raise UserError(
            f"sbatch refuses {array.step}: {message.strip().rstrip('.')}",
            f"Change jobs.{array.step} or jobs.{array.stage} in the profile, then run make "
            f"pipeline again; jobs already queued stay{queued}",
        ) from None


def _python() -> str:
    """The command that starts Python, ignoring USR2 until submitit handles it.

    By default the signal would kill the process.
    """
    return f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""


def _parameters(plan: Plan, array: Array, waits: list[str], profile: Profile) -> dict[str, Any]:
    """What submitit passes to sbatch and srun."""
    resources = profile.resources(array.step)
    return {
        "job_name": job_name(array.step, plan),
        "time": resources.time,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "array_parallelism": resources.parallel,
        "signal_delay_s": profile.signal_seconds,
        "stderr_to_stdout": True,
        "wckey": None,
        # The task needs our variables even if the user's SBATCH_EXPORT is NONE. And if one of
        # several tasks fails, the others would wait for it.
        "srun_args": ["--export=ALL", "--kill-on-bad-exit=1"],
        "setup": _setup_lines(plan, resources),
        **_site_options(resources),
        "additional_parameters": _other_options(resources, waits, profile.kill_on_invalid_dep),
    }


def _site_options(resources: Resources) -> dict[str, Any]:
    """The resources under submitit's names, without those that are None."""
    names = ("partition", "account", "qos", "constraint", "exclude", "mem", "mem_per_cpu", "gres")
    options = {name: getattr(resources, name) for name in names}
    options["gpus_per_node"] = resources.gpus or None
    return {name: value for name, value in options.items() if value is not None}


def _other_options(resources: Resources, waits: list[str], kill: bool) -> dict[str, Any]:
    """The options of sbatch that submitit has no name for."""
    options: dict[str, Any] = {"requeue": True}
    if waits:
        options["dependency"] = "afterok:" + ":".join(waits)
        if kill:
            options["kill-on-invalid-dep"] = "yes"
    return options | dict(resources.sbatch)


def _setup_lines(plan: Plan, resources: Resources) -> list[str]:
    """Shell lines at the start of a job: the site's, then the paths of the code and the threads."""
    return [
        *resources.setup,
        # without it the folder that `make` was run in would come before the snapshot
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={shlex.quote(snapshot.python_path(plan.code))}",
        # since SLURM 22.05 srun does not inherit it from sbatch
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        *(f"export {name}=$SLURM_CPUS_PER_TASK" for name in THREAD_VARIABLES),
        *(f"export {name}=${{{name}:-{value}}}" for name, value in TASK_ENVIRONMENT.items()),
    ]


@contextmanager
def _submission_lease(root: Path) -> Iterator[Lease]:
    """Hold the lease for submitting to this root; waits for another submitter on any host.

    Raises:
        Busy: The other one takes too long.
    """
    root.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + SUBMITTER_WAIT_SECONDS
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
