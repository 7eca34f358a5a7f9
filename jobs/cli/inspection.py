"""Commands that show a run: status, logs, report, compare."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jobs.cli.options import AsJson, make_console
from jobs.cli.run_selection import Selection, with_selection
from pipeline.core.errors import InputError


@with_selection
def status(
    chosen: Selection,
    as_json: AsJson = False,
    accounts: Annotated[bool, typer.Option("--accounts", help="Also ask sacct.")] = False,
) -> None:
    """Show how far a run is; without a name, the newest of the data set."""
    from jobs.monitoring.status import run_accounting, status_table, survey_run
    from pipeline.saved_config import resume_command

    chosen = chosen.read_only()
    config, root = chosen.existing_config(), chosen.root_folder()
    queue = chosen.queue()
    found = survey_run(config, root, queue)
    if queue and queue.error:
        print(f"{queue.error}; this is based on files alone", file=sys.stderr)
    if accounts:
        found["accounts"] = run_accounting(config, root)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    make_console().print(status_table(found))
    if any(step["state"] in ("failed", "interrupted") for step in found["steps"]):
        print(f"to resume: {resume_command(root / 'runs' / config.name)}")
    for job, row in found.get("accounts", {}).items():
        print(job, *row.values())


@with_selection
def logs(
    chosen: Selection,
    lines: Annotated[int, typer.Option("-n", help="Lines of each log.")] = 20,
    follow: Annotated[bool, typer.Option("-f", help="Keep showing new lines.")] = False,
) -> None:
    """Show the last lines of a run's logs, oldest log first."""
    from jobs.monitoring.logs import find_logs, tail
    from jobs.monitoring.logs import follow as follow_logs
    from jobs.monitoring.progress_file import logs_folder

    chosen = chosen.read_only()
    config, root = chosen.existing_config(), chosen.root_folder()
    found = find_logs(root, config.name)
    if not found and not follow:
        raise InputError(f"{config.name} has no logs yet", "See how far it is with make status")
    tails = {path: tail(path, lines) for path in found}
    for path, text in tails.items():
        if text.strip():
            print(f"== {path}\n{text}")
    if empty := sum(not text.strip() for text in tails.values()):
        print(f"== {empty} more in {logs_folder(root, config.name)} are empty")
    if follow:
        for text in follow_logs(root, config.name, found):
            print(text, end="", flush=True)


@with_selection
def report(chosen: Selection) -> None:
    """Rebuild the report of a run, finished or not, and print it."""
    from jobs.monitoring.reporting import report_run, show

    chosen = chosen.read_only()
    config, root = chosen.existing_config(), chosen.root_folder()
    show(report_run(config, root, chosen.queue) / "report")


def compare(
    names: Annotated[list[str], typer.Argument(help="Two to eight runs.")],
    profile: Annotated[str | None, typer.Option(help="Site: a profile or a YAML file.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of all results.")] = None,
) -> None:
    """Compare the settings, curves, scores and costs of runs."""
    from jobs.monitoring.reporting import compare_runs, show

    folder = Selection(profile=profile, root=root).read_only().root_folder()
    show(compare_runs(names, folder) / "compare")
