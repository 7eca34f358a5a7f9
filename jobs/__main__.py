"""The command line: `python -m jobs COMMAND`. `make` calls it; so may you.

Exit codes: 0 done, 2 your mistake, 3 an input is missing or damaged, 75 interrupted with progress
safe, 1 a defect of ours.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.selection import Selection, selecting
from pipeline.errors import Failure, InputError, Interrupted, UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command()
@selecting
def submit(chosen: Selection) -> None:
    """Do what is still to do of a run; doing it twice is safe."""
    from jobs.local import run_plan
    from jobs.plan import make_plan
    from jobs.probe import probe
    from pipeline.config import freeze

    config, place = chosen.config(), chosen.place()
    probe(config, place, chosen.site().granted_gpus())
    freeze(config, place)
    plan = make_plan(config, place)
    if plan.arrays:
        run_plan(config, plan, plan.write(), chosen.site(), out)
    else:
        out.print(f"{config.name}: everything is done", markup=False)
    _show_result(place / "runs" / config.name / "report")


@app.command()
@selecting
def plan(chosen: Selection, as_json: AsJson = False) -> None:
    """Show what `submit` would do, and change nothing."""
    from jobs.plan import make_plan

    made = make_plan(chosen.config(), chosen.place())
    if as_json:
        print(json.dumps(asdict(made), indent=1))
        return
    print(f"{made.name}  ·  {made.root}")
    for array in made.arrays:
        known = array.todo is not None
        items = f"{array.todo} of {array.items} items" if known else "items not known yet"
        print(f"  {array.step:<18} {items}" + (f", {array.tasks} tasks" if array.tasks > 1 else ""))
    if not made.arrays:
        print("  nothing to do")


@app.command()
@selecting
def run(
    chosen: Selection,
    step: Annotated[str, typer.Argument(help="A stage, or one step of it.")],
    plan: Annotated[Path | None, typer.Option(help="A plan's file, in place of a choice.")] = None,
    element: Annotated[str, typer.Option(help="Which of how many tasks, as 0/1.")] = "0/1",
    cpus: Annotated[int, typer.Option(help="Cores to use.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs to use.")] = 0,
) -> None:
    """Run a stage, or one step of it, in this process: by hand, or as a task of a plan."""
    from jobs.task import run_task
    from pipeline.config import freeze, thaw
    from pipeline.dag import STAGES, STEPS
    from pipeline.settings import nearest
    from pipeline.stop import Stop

    steps = [s.name for s in STEPS if step in (s.name, s.stage)]
    if not steps:
        known = [*STAGES, *(s.name for s in STEPS)]
        raise UserError(f"there is no stage {step!r}", nearest(step, known))
    index, _, of = element.partition("/")
    if not (index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise UserError(f"--element={element} is not like 0/4: which element, of how many")
    if plan is not None:
        content = json.loads(plan.read_text(encoding="utf-8"))
        place = Path(content["root"])
        config = thaw(place / "runs" / content["name"] / "config.yaml")
    else:
        config, place = chosen.config(), chosen.place()
        freeze(config, place)
    stop = Stop()
    stop.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    for each in steps:
        run_task(config, place, each, int(index), int(of), stop=stop, cpus=cpus, gpus=gpus)


@app.command()
@selecting
def status(chosen: Selection, as_json: AsJson = False) -> None:
    """Show where a run stands: the newest of the data set, unless more is said."""
    from jobs.status import status as look
    from jobs.status import table

    found = look(chosen.existing(), chosen.place())
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        out.print(table(found))


@app.command()
@selecting
def logs(
    chosen: Selection,
    lines: Annotated[int, typer.Option("-n", help="How many lines of each.")] = 20,
    follow: Annotated[bool, typer.Option("-f", help="Go on showing what is added.")] = False,
) -> None:
    """Show the ends of a run's logs, the oldest first."""
    from jobs.task import logs_folder

    config = chosen.existing()
    folder = logs_folder(chosen.place(), config.name)
    found = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"{config.name} has no logs yet", "start it with make pipeline")
    for path in found:
        print(f"== {path}")
        print("\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
    if follow:
        with found[-1].open(errors="replace") as tail:
            tail.seek(0, 2)
            while True:
                print(tail.read(), end="", flush=True)
                time.sleep(0.5)


@app.command()
@selecting
def report(chosen: Selection) -> None:
    """Print the report of a finished run."""
    config = chosen.existing()
    folder = chosen.place() / "runs" / config.name / "report"
    if not (folder / "report.md").exists():
        raise InputError(f"{config.name} has no report yet", "see how far it is with make status")
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"report: {folder / 'report.html'}")


@app.command()
@selecting
def clean(
    chosen: Selection,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
) -> None:
    """Remove leftovers of killed tasks, and data that no run names any more."""
    from jobs.clean import removable, remove
    from pipeline.registry import find_dataset

    only = find_dataset(chosen.dataset).id if chosen.dataset else None
    paths = removable(chosen.place(), only)
    for path in paths:
        print(f"{'would remove' if dry_run else 'removing'} {path}")
    if not paths:
        print("nothing to remove")
    elif not dry_run:
        print(f"freed {remove(paths) / 1e6:.1f} MB")


def _show_result(folder: Path) -> None:
    """The last lines of a finished run: what it came to, and where to read more."""
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    verdict = content["verdict"]
    print(f"test perplexity {verdict['figures']}: {verdict['words']}".replace("  ", " "))
    print(f"report: {folder / 'report.html'}")


def main() -> None:
    """Run the command; a failure becomes one line and an exit code."""
    try:
        app(standalone_mode=False)
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:
        why = f" ({error})" if str(error) else ""
        print(f"interrupted{why}: progress is safe; run the same command to go on", file=sys.stderr)
        sys.exit(Interrupted.exit_code)
    except OSError as error:
        from jobs.task import remedy

        print(f"error: {error.strerror}: {error.filename}. {remedy(error)}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's: a mistake in the options
            raise
        print(f"error: {error.format_message()} See python -m jobs --help", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
