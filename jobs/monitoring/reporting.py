"""Reports on request: of one run, finished or not, and of several runs side by side."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.core.console import print_error
from jobs.core.environment import prepare_environment
from jobs.core.permissions import apply_umask, prepare_parents
from jobs.monitoring.status import describe_step, survey_run
from jobs.planning.queue import Queue
from pipeline.config import Config
from pipeline.core import provenance
from pipeline.core.commit import commit, setting_aside_damaged_units
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import UnitIdentity, hash_json, load_intact
from pipeline.core.redaction import redact
from pipeline.core.stage import Context, Input, Inputs
from pipeline.core.stop import Stop
from pipeline.dag import Node, survey
from pipeline.report import PARTIAL_REPORT
from pipeline.report.history.progress import RunProgress, StepProgress
from pipeline.saved_config import load_config

MIN_RUNS, MAX_RUNS = 2, 8
NAME_SEPARATOR, MAX_NAME_BYTES = "_vs_", 120
REBUILD_HINT = "run the make pipeline command that began it to rebuild it"


def report_run(config: Config, root: Path, queue: Callable[[], Queue | None]) -> Path:
    """Rebuild the report of a run; of an unfinished run, one that says how far it is.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        queue: Reads the queue; called only for an unfinished run.

    Returns:
        The folder of the report.

    Raises:
        CorruptInput: A score or a sample is damaged; it was set aside.
    """
    run = root / "runs" / config.name
    prepare_environment("evaluate.report", root)
    nodes = list(survey(config, root))
    last = nodes[-1].work
    report = run / "report"
    existing = load_intact(report)
    rebuildable = nodes[-1].items and os.access(run, os.W_OK)
    if existing and existing.key == last.key and not rebuildable:
        why = "you may not write there" if nodes[-1].items else _missing_inputs(nodes)
        print_error(f"this report was made on {_day(existing.written)} and stays as it is: {why}")
        return report
    apply_umask(run)
    with setting_aside_damaged_units(REBUILD_HINT):
        if not nodes[-1].items:
            return _report_progress(config, root, nodes, queue())
        if existing:
            with contextlib.suppress(CorruptInput), setting_aside_damaged_units():
                existing.verify(report)  # a damaged report must not count as equal to the new one
        (item,) = nodes[-1].items
        identity = last.identity(item, provenance.code_version())
        ctx = Context(stop=Stop(), folder=last.folder, identity=identity)
        last.step.run(last.step.view(config), item, last.inputs, ctx)
    return last.folder / item.name


def _missing_inputs(nodes: list[Node]) -> str:
    steps = [node.work.step.name for node in nodes[:-1] if not node.complete]
    return f"some of its inputs are gone ({', '.join(steps)})"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _report_progress(config: Config, root: Path, nodes: list[Node], queue: Queue | None) -> Path:
    """Write the report of an unfinished run, in place of the one before."""
    from pipeline.report.build import write_report_files

    if queue and queue.error:
        print_error(f"{queue.error}; this report is based on files alone")
    steps = tuple(
        StepProgress(
            step["step"],
            step["state"],
            step["items_done"],
            step["items"],
            redact(describe_step(step)).strip(),
        )
        for step in survey_run(config, root, queue)["steps"]
    )
    inputs, run_progress = _finished_inputs(nodes, steps)
    last = nodes[-1].work
    digests = {step: given.digest for step, given in inputs.items()}
    identity = UnitIdentity(
        last.key, last.step.step_key(config), digests, provenance.code_version()
    )
    with commit(last.folder, PARTIAL_REPORT, identity) as draft:
        write_report_files(config, inputs, draft.path, last.folder / "logs", run_progress)
    return last.folder / PARTIAL_REPORT


def _finished_inputs(
    nodes: list[Node], steps: tuple[StepProgress, ...] = ()
) -> tuple[Inputs, RunProgress]:
    """The finished items of a run, and where to look for the unfinished training."""
    inputs = {node.work.step.name: Input(node.work.folder, node.done) for node in nodes}
    training = inputs["train.train"].folder
    finished = {name: given for name, given in inputs.items() if given.receipts}
    return finished, RunProgress(steps, training, time.time())


def compare_runs(names: Sequence[str], root: Path) -> Path:
    """Compare runs side by side, in `compare/<names>` below the root.

    Args:
        names: Two to eight runs; the others are compared with the first.
        root: The folder that holds `compare/`, `data/`, `models/` and `runs/`.

    Returns:
        The folder of the page.

    Raises:
        UserError: There are too few or too many runs, one is named twice, or one does not exist.
        CorruptInput: A score is damaged; it was set aside.
    """
    from pipeline.report.compare.compare import ComparedRun, compare

    configs = _load_runs(names, root)
    prepare_environment("evaluate.report", root)
    runs, digests = [], {}
    for config in configs:
        nodes = list(survey(config, root))
        inputs, run_progress = _finished_inputs(nodes)
        logs = root / "runs" / config.name / "logs"
        runs.append(ComparedRun(config, inputs, run_progress, logs))
        digests[config.name] = hash_json({n: given.digest for n, given in inputs.items()})
    folder = root / "compare" / _folder_name(names)
    # as private as the most private of them
    most_private = min(
        (root / "runs" / name for name in names), key=lambda run: run.stat().st_mode & 0o077
    )
    share = prepare_parents(most_private, folder)
    identity = UnitIdentity(hash_json(list(names)), "compare", digests, provenance.code_version())
    with (
        setting_aside_damaged_units(REBUILD_HINT),
        commit(folder.parent, folder.name, identity) as draft,
    ):
        share(draft.path)
        compare(runs, draft.path)
    return folder


def _load_runs(names: Sequence[str], root: Path) -> list[Config]:
    """The saved configurations of runs."""
    example = "as in: make compare NAMES='nih try2'"
    if not MIN_RUNS <= len(names) <= MAX_RUNS:
        raise UserError(
            f"compare takes {MIN_RUNS} to {MAX_RUNS} runs, not {len(names)}",
            f"Name them, {example}",
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"named twice: {', '.join(map(repr, repeated))}", example)
    known = {path.parent.name: path for path in sorted((root / "runs").glob("*/config.yaml"))}
    if missing := [repr(name) for name in names if name not in known]:
        hint = f"It holds: {', '.join(known)}" if known else "Start one: make pipeline DATASET=…"
        raise UserError(f"there is no run {', '.join(missing)} in {root / 'runs'}", hint)
    return [load_config(known[name]) for name in names]


def _folder_name(names: Sequence[str]) -> str:
    """A folder name that no other list of runs has."""
    name = NAME_SEPARATOR.join(names)
    if len(name.encode()) <= MAX_NAME_BYTES and not any(NAME_SEPARATOR in each for each in names):
        return name
    short = name.encode()[: MAX_NAME_BYTES - 9].decode(errors="ignore")
    return f"{short}-{hash_json(list(names))[:8]}"


def show(page: Path) -> None:
    """Print the text of a page, and the path of its HTML."""
    print(page.with_name(page.name + ".md").read_text(encoding="utf-8"))
    print(f"{page.name}: {page.with_name(page.name + '.html')}")


def show_result(folder: Path) -> None:
    """Print the result of a finished run, and where its report is."""
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    verdict = content["verdict"]
    print(f"test perplexity {verdict['figures']}: {verdict['words']}".replace("  ", " "))
    print(f"report: {folder / 'report.html'}")
