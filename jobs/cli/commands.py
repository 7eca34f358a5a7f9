"""The commands of `python -m jobs`. How they end other than well is said in `jobs.__main__`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jobs.cli.run_selection import Selection, selecting
from jobs.core.console import complain, settle
from pipeline.core.errors import InputError
from pipeline.core.redaction import redact_all
from pipeline.modeling.device import Precision

if TYPE_CHECKING:
    from jobs.cluster.profile import Profile
    from pipeline.config import Config

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Force = Annotated[bool, typer.Option("--force", help="Begin even if there is too little room.")]


@app.command()
@selecting
def submit(chosen: Selection, force: Force = False) -> None:
    """Do what is still to do of a run; doing it twice is safe."""
    from jobs.core.permissions import open_run
    from jobs.planning.preflight import check_packages, check_site, probe
    from pipeline.config import save_config

    config, place, site = chosen.config(), chosen.place(), chosen.site
    check_packages(config)
    check_site(config, site)
    _check_room(config, place, probe(config, place), force)
    open_run(place, config.name, site.group)
    save_config(config, place, chosen.line())
    if site.scheduler == "slurm":
        _queue(config, place, site, chosen.words_for_make())
    else:
        _run_here(config, place, site)


def _check_room(
    config: Config, place: Path, probed: int | None, force: bool, only: str = ""
) -> None:
    from jobs.planning.disk_estimate import check, look

    found = (look if force else check)(config, place, probed, only)
    if found.unknown or not found.fits:
        complain(f"disk: {found.told()}")


def _run_here(config: Config, place: Path, site: Profile) -> None:
    from jobs.monitoring.reporting import show_result
    from jobs.planning.planner import make_plan
    from jobs.running.local import run_plan

    plan = make_plan(config, place)
    if plan.arrays:
        run_plan(plan, site, out)
    else:
        out.print(f"{config.name}: everything is done", markup=False)
    show_result(place / "runs" / config.name / "report")


def _queue(config: Config, place: Path, site: Profile, words: str) -> None:
    from jobs.monitoring.reporting import show_result
    from jobs.planning.planner import make_plan
    from jobs.running.local import run_plan
    from jobs.running.submit import queue_plan

    plan = make_plan(config, place)
    first = tuple(a for a in plan.arrays if site.resources(a.step).where == "login")
    if first:
        run_plan(replace(plan, arrays=first), site, out)
    queued = queue_plan(config, place, site)
    for line in queued.told():
        print(line)
    if queued.jobs or queued.plan.live:
        print(f"follow it: make status {words}    (or logs; cancel ends it)")
    else:
        show_result(place / "runs" / config.name / "report")


@app.command()
@selecting
def fetch(chosen: Selection, force: Force = False) -> None:
    """Only download, corpus and base model, to be carried to where there is no internet."""
    from jobs.core.permissions import open_run
    from jobs.planning.planner import make_plan
    from jobs.planning.preflight import probe
    from jobs.running.local import run_plan
    from pipeline.config import save_config
    from pipeline.dag import survey

    config, place, site = chosen.config(), chosen.place(), chosen.site
    _check_room(config, place, probe(config, place), force, "download")
    open_run(place, config.name, site.group)
    save_config(config, place)
    plan = make_plan(config, place)
    plan = replace(plan, arrays=tuple(a for a in plan.arrays if a.stage == "download"))
    if plan.arrays:
        run_plan(plan, site, out)
    folders = [n.work.folder for n in survey(config, place) if n.work.step.stage == "download"]
    # of the paths, what follows the dot
    parts = [f"{place.resolve()}/./{folder.relative_to(place)}" for folder in folders]
    print("corpus and model are here. There, make pipeline with the same words goes on, after:")
    print(shlex.join(["rsync", "-a", "--relative", *parts, "cluster:/its/RUNS/"]))


@app.command()
@selecting
def plan(chosen: Selection, as_json: AsJson = False) -> None:
    """Show what `submit` would do, and change nothing; say what of it cannot be had from here."""
    from jobs.planning.disk_estimate import look
    from jobs.planning.planner import make_plan, tell_plan
    from jobs.planning.preflight import check_site, probe
    from pipeline.config import check_name

    config, place, site = chosen.config(), chosen.place(), chosen.site
    check_site(config, site)
    check_name(config, place)
    made = make_plan(config, place, chosen.queue())
    if as_json:
        print(json.dumps(redact_all(asdict(made)), indent=1, ensure_ascii=False))
    else:
        print(*tell_plan(made, site), sep="\n")
    size = probe(config, place)
    if not as_json and (made.arrays or made.live):
        print(f"  disk: {look(config, place, size).told()}")


@app.command()
@selecting
def run(
    chosen: Selection,
    step: Annotated[str, typer.Argument(help="A stage, or one step of it.")],
    plan: Annotated[Path | None, typer.Option(help="A plan's file, in place of a choice.")] = None,
    element: Annotated[str, typer.Option(help="Which of how many tasks, as 0/4.")] = "0/1",
    cpus: Annotated[int, typer.Option(help="Cores to use.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs to use.")] = 0,
    batch: Annotated[bool, typer.Option("--batch", help="As a step of a SLURM batch job.")] = False,
) -> None:
    """Run a stage, or one step of it, in this process: by hand, or as a task of a plan."""
    from jobs.core.permissions import follow, open_run
    from jobs.planning.plan import read_plan
    from jobs.running.by_hand import run_steps
    from pipeline.config import save_config

    if plan is not None:
        made = read_plan(plan)
        config, place = made.settings, Path(made.root)
        follow(place / "runs" / config.name)
    else:
        config, place = chosen.config(), chosen.place()
        open_run(place, config.name, chosen.site.group)
        save_config(config, place)
    run_steps(config, place, step, element, cpus=cpus, gpus=gpus, batch=batch, plan=plan)
    settle()  # its log is news, and its work is done


@app.command()
@selecting
def status(
    chosen: Selection,
    as_json: AsJson = False,
    accounts: Annotated[bool, typer.Option("--accounts", help="Ask sacct, too.")] = False,
) -> None:
    """Show where a run stands: the newest of the data set, unless more is said."""
    from jobs.monitoring.status import accounted, survey_run, table
    from pipeline.config import resume_command

    chosen = chosen.looking()
    config, place = chosen.existing(), chosen.place()
    queue = chosen.queue()
    found = survey_run(config, place, queue)
    if queue and queue.fault:
        print(f"{queue.fault}; what follows is from files alone", file=sys.stderr)
    if accounts:
        found["accounts"] = accounted(config, place)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    out.print(table(found))
    if any(step["state"] in ("failed", "interrupted") for step in found["steps"]):
        print(f"to go on: {resume_command(place / 'runs' / config.name)}")
    for job, row in found.get("accounts", {}).items():
        print(job, *row.values())


@app.command()
@selecting
def cancel(chosen: Selection) -> None:
    """Take a run's jobs out of the queue, but what others wait for; progress is safe."""
    from jobs.housekeeping.cancel import cancel_run

    found = cancel_run(chosen.existing(), chosen.place(), chosen.queue(strict=True))
    if found.ended:
        print(f"cancelled: {' '.join(found.ended)}")
    if found.kept:
        print(f"kept, because other runs wait for them: {' '.join(found.kept)}")
    if not found.ended and not found.kept:
        print("nothing of it is queued or running")


@app.command()
@selecting
def logs(
    chosen: Selection,
    lines: Annotated[int, typer.Option("-n", help="How many lines of each.")] = 20,
    follow: Annotated[bool, typer.Option("-f", help="Go on showing what is added.")] = False,
) -> None:
    """Show the ends of a run's logs, the oldest first."""
    from jobs.monitoring.logs import find_logs, tail
    from jobs.monitoring.logs import follow as growing
    from jobs.monitoring.progress_file import logs_folder

    chosen = chosen.looking()
    config, place = chosen.existing(), chosen.place()
    found = find_logs(place, config.name)
    if not found and not follow:
        raise InputError(f"{config.name} has no logs yet", "see where it is with make status")
    ends = {path: tail(path, lines) for path in found}
    for path, end in ends.items():
        if end.strip():
            print(f"== {path}\n{end}")
    if silent := sum(not end.strip() for end in ends.values()):
        print(f"== {silent} more in {logs_folder(place, config.name)}, which say nothing yet")
    if follow:
        for text in growing(place, config.name, found):
            print(text, end="", flush=True)


@app.command()
@selecting
def report(chosen: Selection) -> None:
    """Make the report of a run from what is there, finished or not, and print it."""
    from jobs.monitoring.reporting import report_run, show

    chosen = chosen.looking()
    show(report_run(chosen.existing(), chosen.place(), chosen.queue) / "report")


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="Of two to eight runs.")],
    profile: Annotated[str | None, typer.Option(help="Where they ran.")] = None,
    root: Annotated[str | None, typer.Option(help="Where everything is.")] = None,
) -> None:
    """Put runs side by side: what differs in settings, curves, scores, cost."""
    from jobs.monitoring.reporting import compare_runs, show

    place = Selection(profile=profile, root=root).looking().place()
    show(compare_runs(names, place) / "compare")


@app.command()
@selecting
def export(
    chosen: Selection,
    to: Annotated[Path | None, typer.Option(help="The folder; else in the run's.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = "fp32",
) -> None:
    """Write what a run has trained as a model that anybody can load: in this process, now."""
    from jobs.housekeeping.export import export_run

    chosen = chosen.looking()
    export_run(chosen.existing(), chosen.place(), to, precision)


@app.command()
@selecting
def clean(
    chosen: Selection,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
) -> None:
    """Remove leftovers of killed tasks, data that no run names, and chunks that none keeps."""
    from jobs.housekeeping.clean import removable, remove, spent
    from pipeline.core.disk import size
    from pipeline.core.registry import find_dataset

    only = find_dataset(chosen.dataset).id if chosen.dataset else None
    paths, parts = removable(chosen.place(), only), spent(chosen.place(), only)
    for path in [*paths, *(f"the chunks of {part}" for part in parts)]:
        print(f"{'would remove' if dry_run else 'removing'} {path}")
    if not paths and not parts:
        print("nothing to remove")
    elif not dry_run:
        print(f"freed {size(remove(paths, parts))}")
