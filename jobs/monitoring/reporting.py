"""Reports made when they are asked for: of a run, finished or not, and of runs side by side."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.core.console import complain
from jobs.core.environment import prepare_environment
from jobs.core.permissions import follow, open_like
from jobs.monitoring.status import now, survey_run
from jobs.planning.queue import Queue
from pipeline.config import Config, load_config
from pipeline.core import provenance
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import UnitIdentity, commit, hash_json, load_intact
from pipeline.core.redaction import redact
from pipeline.core.stage import Context, Input, Inputs, damage_set_aside
from pipeline.core.stop import Stop
from pipeline.dag import Node, survey
from pipeline.report import PARTIAL_REPORT
from pipeline.report.history.progress import Standing, Underway

FEWEST, MOST = 2, 8
JOINED, LONGEST = "_vs_", 120
AGAIN = "the make pipeline that began it makes it anew"


def report_run(config: Config, root: Path, queue: Callable[[], Queue | None]) -> Path:
    """Make the report of a run anew: the committed one, or that of a run in progress beside it.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        queue: Looks at the queue; asked only where the run is not finished.

    Returns:
        The folder that holds it.

    Raises:
        CorruptInput: A score or a sample is damaged; it was set aside.
    """
    run = root / "runs" / config.name
    prepare_environment("evaluate.report", root)
    nodes = list(survey(config, root))
    last = nodes[-1].work
    report = run / "report"
    made = load_intact(report)
    if made and made.key == last.key and not (nodes[-1].items and os.access(run, os.W_OK)):
        why = "you may not write there" if nodes[-1].items else _unfinished(nodes)
        complain(f"this report is as it was made on {_day(made.written)}: {why}")
        return report
    follow(run)
    with damage_set_aside(AGAIN):
        if not nodes[-1].items:
            return _so_far(config, root, nodes, queue())
        if made:
            with contextlib.suppress(CorruptInput), damage_set_aside():
                made.verify(report)  # what is as it was stays, whatever it is compared with
        (item,) = nodes[-1].items
        identity = last.identity(item, provenance.code_version())
        ctx = Context(stop=Stop(), folder=last.folder, identity=identity)
        last.step.run(last.step.view(config), item, last.inputs, ctx)
    return last.folder / item.name


def _unfinished(nodes: list[Node]) -> str:
    steps = [node.work.step.name for node in nodes[:-1] if not node.complete]
    return f"what it was made from is not all here any more ({', '.join(steps)})"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _so_far(config: Config, root: Path, nodes: list[Node], queue: Queue | None) -> Path:
    """The page of a run in progress, in place of the one before."""
    from pipeline.report.build import build

    if queue and queue.fault:
        complain(f"{queue.fault}; what follows is from files alone")
    steps = tuple(
        Standing(
            row["step"], row["state"], row["items_done"], row["items"], redact(now(row)).strip()
        )
        for row in survey_run(config, root, queue)["steps"]
    )
    inputs, underway = _known(nodes, steps)
    last = nodes[-1].work
    digests = {step: given.digest for step, given in inputs.items()}
    identity = UnitIdentity(last.key, last.step.own_key(config), digests, provenance.code_version())
    with commit(last.folder, PARTIAL_REPORT, identity) as draft:
        build(config, inputs, draft.path, last.folder / "logs", underway)
    return last.folder / PARTIAL_REPORT


def _known(nodes: list[Node], steps: tuple[Standing, ...] = ()) -> tuple[Inputs, Underway]:
    """What is finished of a run, to the item, and where what is not is looked for."""
    inputs = {node.work.step.name: Input(node.work.folder, node.done) for node in nodes}
    training = inputs["train.train"].folder
    done = {name: given for name, given in inputs.items() if given.receipts}
    return done, Underway(steps, training, time.time())


def compare_runs(names: Sequence[str], root: Path) -> Path:
    """Put runs side by side, in `compare/<names>` below the root.

    Args:
        names: Of the runs, two to eight; the first is what the others are compared with.
        root: The folder that holds `compare/`, `data/`, `models/` and `runs/`.

    Returns:
        The folder that holds the page.

    Raises:
        UserError: There are too few or too many, one is named twice, or there is none of the name.
        CorruptInput: A score is damaged; it was set aside.
    """
    from pipeline.report.compare.compare import Run, compare

    configs = _find(names, root)
    prepare_environment("evaluate.report", root)
    runs, digests = [], {}
    for config in configs:
        nodes = list(survey(config, root))
        inputs, underway = _known(nodes)
        logs = root / "runs" / config.name / "logs"
        runs.append(Run(config, inputs, underway, logs))
        digests[config.name] = hash_json({n: given.digest for n, given in inputs.items()})
    place = root / "compare" / _joined(names)
    # as closed as the most closed of them
    closed = min(
        (root / "runs" / name for name in names), key=lambda run: run.stat().st_mode & 0o077
    )
    give = open_like(closed, place)
    identity = UnitIdentity(hash_json(list(names)), "compare", digests, provenance.code_version())
    with damage_set_aside(AGAIN), commit(place.parent, place.name, identity) as draft:
        give(draft.path)
        compare(runs, draft.path)
    return place


def _find(names: Sequence[str], root: Path) -> list[Config]:
    """The frozen configurations of runs."""
    example = "as in: make compare NAMES='nih try2'"
    if not FEWEST <= len(names) <= MOST:
        raise UserError(
            f"{FEWEST} to {MOST} runs can be compared, not {len(names)}", f"name them, {example}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"named twice: {', '.join(map(repr, twice))}", example)
    there = {path.parent.name: path for path in sorted((root / "runs").glob("*/config.yaml"))}
    if missing := [repr(name) for name in names if name not in there]:
        known = f"there are {', '.join(there)}" if there else "start one: make pipeline DATASET=…"
        raise UserError(f"there is no run {', '.join(missing)} in {root / 'runs'}", known)
    return [load_config(there[name]) for name in names]


def _joined(names: Sequence[str]) -> str:
    """A folder's name for these runs, and for no others."""
    name = JOINED.join(names)
    if len(name.encode()) <= LONGEST and not any(JOINED in one for one in names):
        return name
    short = name.encode()[: LONGEST - 9].decode(errors="ignore")
    return f"{short}-{hash_json(list(names))[:8]}"


def show(page: Path) -> None:
    """Print a page's text, and where it is to be looked at."""
    print(page.with_name(page.name + ".md").read_text(encoding="utf-8"))
    print(f"{page.name}: {page.with_name(page.name + '.html')}")


def show_result(folder: Path) -> None:
    """The last lines of a finished run: what it came to, and where to read more."""
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    verdict = content["verdict"]
    print(f"test perplexity {verdict['figures']}: {verdict['words']}".replace("  ", " "))
    print(f"report: {folder / 'report.html'}")
