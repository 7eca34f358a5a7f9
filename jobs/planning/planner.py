"""Make the plan of a run from what is finished and which jobs are live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from jobs.cluster.profile import Profile
from jobs.cluster.slurm_cli import DEPENDENCY_NEVER_SATISFIED
from jobs.planning.plan import Array, Plan
from jobs.planning.queue import LiveJob, Queue
from pipeline.config import Config
from pipeline.core.settings import lookup
from pipeline.core.stage import Step
from pipeline.dag import STEPS, Node, survey


def make_plan(
    config: Config,
    root: Path,
    queue: Queue | None = None,
    max_array_size: int | None = None,
    code: str = "",
) -> Plan:
    """Plan the steps of a run that are neither finished nor queued.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        queue: The queue. Read it before the call: a job that ends in between then shows by its
            receipts.
        max_array_size: How many elements an array may have; None for no limit.
        code: The folder of the code to run.
    """
    arrays: dict[str, Array] = {}
    live: dict[str, list[str]] = {}
    for node in survey(config, root):
        if node.complete:
            continue
        step = node.work.step
        jobs = queue.jobs_on(node) if queue else []
        # A job by hand may hold any of the items: the array for the rest waits until it ends.
        by_hand = [job for job in jobs if step.tasks_setting and not job.run]
        jobs = [job for job in jobs if job not in by_hand]
        elsewhere = [*by_hand, *(queue.equivalent(node) if queue else [])]
        needs = _direct_needs(step, arrays.keys() | live.keys())
        blocked = [job for job in jobs if _never_starts(job, needs, arrays)]
        kept = [job for job in jobs if job not in blocked]
        if kept:
            live[step.name] = sorted(job.job.id for job in kept)
        of = kept[0].of if kept else task_count(step, config, node, max_array_size)
        elements = tuple(sorted(_unfinished(node, of) - {job.element for job in kept}))
        if elements:
            after = [job for need in needs for job in live.get(need, [])]
            arrays[step.name] = Array(
                stage=step.stage,
                step=step.name,
                key=node.work.key,
                folder=str(node.work.folder),
                of=of,
                elements=elements,
                needs=tuple(need for need in needs if need in arrays),
                after=(*after, *(job.job.id for job in elsewhere)),
                replaces=tuple(sorted(job.job.id for job in blocked)),
                items=None if node.items is None else len(node.items),
                todo=None if node.items is None else len(node.missing),
            )
    content = config.model_dump(mode="json")
    return Plan(config.name, str(root), tuple(arrays.values()), content, code, live)


def _never_starts(job: LiveJob, needs: list[str], arrays: Mapping[str, Array]) -> bool:
    """Whether a pending job waits for one that has failed, or that is about to be replaced."""
    failed = job.job.reason == DEPENDENCY_NEVER_SATISFIED
    return job.job.pending and (failed or any(need in arrays for need in needs))


def task_count(step: Step, config: Config, node: Node, max_array_size: int | None) -> int:
    """Among how many tasks the items of a step are divided."""
    if not step.tasks_setting:
        return 1
    limits = [
        lookup(config, step.tasks_setting),
        max_array_size,
        len(node.items) if node.items else None,
    ]
    return max(1, min(limit for limit in limits if limit is not None))


def _direct_needs(step: Step, unfinished: Set[str]) -> list[str]:
    """The unfinished needs of a step, without those that another of its needs waits for."""
    needs = [need for need in step.needs if need in unfinished]
    indirect = {earlier for need in needs for earlier in _all_needs(need)}
    return [need for need in needs if need not in indirect]


def _all_needs(name: str) -> set[str]:
    step = next(step for step in STEPS if step.name == name)
    return {*step.needs, *(earlier for need in step.needs for earlier in _all_needs(need))}


def _unfinished(node: Node, of: int) -> set[int]:
    """The elements that have missing items."""
    if node.items is None:
        return set(range(of))
    return {i % of for i, item in enumerate(node.items) if item.name not in node.done}


def describe_plan(plan: Plan, site: Profile) -> Iterator[str]:
    """A plan as lines of text."""
    yield f"{plan.name}  ·  {plan.root}"
    for array in plan.arrays:
        known = array.todo is not None
        items = f"{array.todo} of {array.items} items" if known else "items not known yet"
        tasks = f", {len(array.elements)} tasks" if len(array.elements) > 1 else ""
        slurm = site.scheduler == "slurm"
        resources = f"  ({site.resources(array.step).summary()})" if slurm else ""
        yield f"  {array.step:<18} {items}{tasks}{resources}"
    for step, jobs in plan.live.items():
        yield f"  {step:<18} in the queue: {' '.join(jobs)}"
    if not plan.arrays and not plan.live:
        yield "  nothing to do"
