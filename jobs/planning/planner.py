"""From what is done and what is being done to what is left: the plan."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

from jobs.cluster.profile import Profile
from jobs.cluster.slurm_cli import NEVER
from jobs.planning.plan import Array, Plan
from jobs.planning.queue import Queue
from pipeline.config import Config
from pipeline.core.stage import Step, lookup
from pipeline.dag import STEPS, Node, survey


def make_plan(
    config: Config,
    root: Path,
    queue: Queue | None = None,
    longest: int | None = None,
    code: str = "",
) -> Plan:
    """What of a run is not done yet, and not being done.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        queue: Jobs that may be at it: looked at before this is called, so that what ended in
            between is seen by its receipts.
        longest: Elements that an array may have; None for no limit.
        code: Folder of the code to run.
    """
    arrays: dict[str, Array] = {}
    waiting: dict[str, list[str]] = {}
    for node in survey(config, root):
        if node.complete:
            continue
        step = node.work.step
        jobs = queue.at(node) if queue else []
        # a job by hand has some of the items, who knows which: what is left of them comes after it
        by_hand = [live for live in jobs if step.tasks and not live.run]
        jobs = [live for live in jobs if live not in by_hand]
        needs = _nearest(step, arrays.keys() | waiting.keys())
        fresh = tuple(need for need in needs if need in arrays)
        twins = [live.job.id for live in [*by_hand, *(queue.twins(node) if queue else [])]]
        lost = [j for j in jobs if j.job.pending and (fresh or j.job.reason == NEVER)]
        kept = [j for j in jobs if j not in lost]
        of = kept[0].of if kept else tasks_of(step, config, node, longest)
        elements = tuple(sorted(_wanted(node, of) - {j.element for j in kept}))
        if kept:
            waiting[step.name] = sorted(j.job.id for j in kept)
        if elements:
            arrays[step.name] = Array(
                stage=step.stage,
                step=step.name,
                key=node.work.key,
                folder=str(node.work.folder),
                of=of,
                elements=elements,
                needs=fresh,
                after=(*(job for need in needs for job in waiting.get(need, [])), *twins),
                replaces=tuple(sorted(j.job.id for j in lost)),
                items=None if node.items is None else len(node.items),
                todo=None if node.items is None else len(node.missing),
            )
    content = config.model_dump(mode="json")
    return Plan(config.name, str(root), tuple(arrays.values()), content, code, waiting)


def tasks_of(step: Step, config: Config, node: Node, longest: int | None) -> int:
    """Among how many tasks a step's items are shared."""
    if not step.tasks:
        return 1
    limits = [lookup(config, step.tasks), longest, len(node.items) if node.items else None]
    return max(1, min(limit for limit in limits if limit is not None))


def _nearest(step: Step, unfinished: Set[str]) -> list[str]:
    """Of the needs that are not finished those that no other one waits for already."""
    needs = [need for need in step.needs if need in unfinished]
    behind = {earlier for need in needs for earlier in _all_needs(need)}
    return [need for need in needs if need not in behind]


def _all_needs(name: str) -> set[str]:
    step = next(step for step in STEPS if step.name == name)
    return {*step.needs, *(earlier for need in step.needs for earlier in _all_needs(need))}


def _wanted(node: Node, of: int) -> set[int]:
    """The elements that have something to do."""
    if node.items is None:
        return set(range(of))
    return {i % of for i, item in enumerate(node.items) if item.name not in node.done}


def tell_plan(made: Plan, site: Profile) -> Iterator[str]:
    """What a plan comes to, in lines."""
    yield f"{made.name}  ·  {made.root}"
    for array in made.arrays:
        known = array.todo is not None
        items = f"{array.todo} of {array.items} items" if known else "items not known yet"
        tasks = f", {len(array.elements)} tasks" if len(array.elements) > 1 else ""
        asks = f"  ({site.resources(array.step).told()})" if site.scheduler == "slurm" else ""
        yield f"  {array.step:<18} {items}{tasks}{asks}"
    for step, jobs in made.live.items():
        yield f"  {step:<18} in the queue: {' '.join(jobs)}"
    if not made.arrays and not made.live:
        yield "  nothing to do"
