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
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.errors import Failure, InputError, Interrupted, UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(highlight=False, soft_wrap=True)

Dataset = Annotated[str | None, typer.Option(help="Registry id, or a YAML file.")]
Model = Annotated[str | None, typer.Option(help="Registry id, local folder, or owner/name.")]
Recipe = Annotated[str | None, typer.Option(help="Registry id, or a YAML file.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="Where it runs.")]
Name = Annotated[str | None, typer.Option(help="The run's name.")]
File = Annotated[str | None, typer.Option(help="A local copy of the corpus.")]
Root = Annotated[str | None, typer.Option(help="Where everything goes.")]
Words = Annotated[list[str] | None, typer.Argument(help="Settings, as train.lr=3e-4.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command()
def submit(
    dataset: Dataset = None,
    model: Model = None,
    recipe: Recipe = None,
    profile: ProfileName = None,
    name: Name = None,
    file: File = None,
    root: Root = None,
    words: Words = None,
) -> None:
    """Do what is still to do of a run; doing it twice is safe."""
    from jobs.local import run_plan
    from jobs.plan import make_plan
    from jobs.probe import probe
    from jobs.profile import find_profile, find_root
    from pipeline.config import freeze, resolve

    site = find_profile(profile)
    place = find_root(site, root)
    config = resolve(_needed(dataset), model, recipe, words, name, file)
    probe(config, place)
    freeze(config, place)
    plan = make_plan(config, place)
    if plan.arrays:
        run_plan(config, plan, plan.write(), site, out)
    else:
        out.print(f"{config.name}: everything is done")
    _show_result(place / "runs" / config.name / "report")


@app.command()
def plan(
    dataset: Dataset = None,
    model: Model = None,
    recipe: Recipe = None,
    profile: ProfileName = None,
    name: Name = None,
    file: File = None,
    root: Root = None,
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Show what `submit` would do, and change nothing."""
    from jobs.plan import make_plan
    from jobs.profile import find_profile, find_root
    from pipeline.config import resolve

    place = find_root(find_profile(profile), root)
    config = resolve(_needed(dataset), model, recipe, words, name, file)
    made = make_plan(config, place)
    if as_json:
        print(json.dumps(asdict(made), indent=1))
        return
    out.print(f"{config.name}  ·  {place}")
    for array in made.arrays:
        items = (
            "items not known yet" if array.todo is None else f"{array.todo} of {array.items} items"
        )
        out.print(
            f"  {array.step:<18} {items}" + (f", {array.tasks} tasks" if array.tasks > 1 else "")
        )
    if not made.arrays:
        out.print("  nothing to do")


@app.command()
def run(
    step: Annotated[str, typer.Argument(help="A stage, or one step of it.")],
    words: Words = None,
    plan: Annotated[Path | None, typer.Option(help="A plan's file.")] = None,
    element: Annotated[str, typer.Option(help="Which of how many tasks, as 0/1.")] = "0/1",
    cpus: Annotated[int, typer.Option(help="Cores to use.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs to use.")] = 0,
    dataset: Dataset = None,
    model: Model = None,
    recipe: Recipe = None,
    profile: ProfileName = None,
    name: Name = None,
    file: File = None,
    root: Root = None,
) -> None:
    """Run a stage, or one step of it, in this process: by hand, or as a task of a plan."""
    from jobs.profile import find_profile, find_root
    from jobs.task import run_task
    from pipeline.config import freeze, resolve, thaw
    from pipeline.dag import STAGES, STEPS
    from pipeline.settings import nearest
    from pipeline.stop import Stop

    if plan is not None:
        content = json.loads(plan.read_text(encoding="utf-8"))
        place = Path(content["root"])
        config = thaw(place / "runs" / content["name"] / "config.yaml")
    else:
        place = find_root(find_profile(profile), root)
        config = resolve(_needed(dataset), model, recipe, words, name, file)
        freeze(config, place)
    steps = [s.name for s in STEPS if step in (s.name, s.stage)]
    if not steps:
        raise UserError(
            f"there is no stage {step!r}", nearest(step, [*STAGES, *(s.name for s in STEPS)])
        )
    index, _, of = element.partition("/")
    if not (index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise UserError(f"--element={element} is not like 0/4: which element, of how many")
    stop = Stop()
    stop.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    for each in steps:
        run_task(config, place, each, int(index), int(of), stop=stop, cpus=cpus, gpus=gpus)


@app.command()
def status(
    dataset: Dataset = None,
    model: Model = None,
    recipe: Recipe = None,
    profile: ProfileName = None,
    name: Name = None,
    file: File = None,
    root: Root = None,
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Show where a run stands: the newest of the data set, unless more is said."""
    from jobs.status import status as look
    from jobs.status import table

    config, place = _existing(dataset, model, recipe, profile, name, file, root, words)
    found = look(config, place)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        out.print(table(found))


@app.command()
def logs(
    dataset: Dataset = None,
    model: Model = None,
    recipe: Recipe = None,
    profile: ProfileName = None,
    name: Name = None,
    file: File = None,
    root: Root = None,
    words: Words = None,
    lines: Annotated[int, typer.Option("-n", help="How many lines of each.")] = 20,
    follow: Annotated[bool, typer.Option("-f", help="Go on showing what is added.")] = False,
) -> None:
    """Show the ends of a run's logs, the oldest first."""
    from jobs.task import logs_folder

    config, place = _existing(dataset, model, recipe, profile, name, file, root, words)
    found = sorted(logs_folder(place, config.name).glob("*.log"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise InputError(f"{config.name} has no logs yet", "start it with make pipeline")
    for path in found:
        out.print(f"[bold]== {path}[/]")
        print("\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
    if follow:
        with found[-1].open(errors="replace") as tail:
            tail.seek(0, 2)
            while True:
                print(tail.read(), end="", flush=True)
                time.sleep(0.5)


@app.command()
def report(
    dataset: Dataset = None,
    model: Model = None,
    recipe: Recipe = None,
    profile: ProfileName = None,
    name: Name = None,
    file: File = None,
    root: Root = None,
    words: Words = None,
) -> None:
    """Print the report of a finished run."""
    config, place = _existing(dataset, model, recipe, profile, name, file, root, words)
    folder = place / "runs" / config.name / "report"
    if not (folder / "report.md").exists():
        raise InputError(f"{config.name} has no report yet", "see how far it is with make status")
    print((folder / "report.md").read_text(encoding="utf-8"))
    _show_result(folder)


@app.command()
def clean(
    dataset: Dataset = None,
    profile: ProfileName = None,
    root: Root = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
) -> None:
    """Remove leftovers of killed tasks, and data that no run names any more."""
    from jobs.clean import removable, remove
    from jobs.profile import find_profile, find_root

    place = find_root(find_profile(profile), root)
    paths = removable(place, dataset)
    for path in paths:
        out.print(f"{'would remove' if dry_run else 'removing'} {path}")
    if not paths:
        out.print("nothing to remove")
    elif not dry_run:
        out.print(f"freed {remove(paths) / 1e6:.1f} MB")


def _needed(dataset: str | None) -> str:
    if dataset:
        return dataset
    from pipeline.registry import ids

    raise UserError(
        "name a data set", f"e.g. make pipeline DATASET=nih; there are {', '.join(ids('datasets'))}"
    )


def _existing(
    dataset: str | None,
    model: str | None,
    recipe: str | None,
    profile: str | None,
    name: str | None,
    file: str | None,
    root: str | None,
    words: list[str] | None,
) -> tuple[Any, Path]:
    """The frozen configuration of the run that is meant, and the root."""
    from jobs.profile import find_profile, find_root
    from pipeline.config import resolve, thaw
    from pipeline.registry import find_dataset
    from pipeline.settings import read_yaml

    place = find_root(find_profile(profile), root)
    if name is None and (model or recipe or words or file):
        name = resolve(_needed(dataset), model, recipe, words, name, file).name
    if name is not None:
        found = [place / "runs" / name / "config.yaml"]
    else:
        found = sorted(place.glob("runs/*/config.yaml"), key=lambda p: p.stat().st_mtime)
        if dataset:
            wanted = find_dataset(dataset).id
            found = [path for path in found if read_yaml(path)["dataset"]["id"] == wanted]
    if not found or not found[-1].exists():
        what = f"run {name!r}" if name else f"run of {dataset}" if dataset else "run"
        raise UserError(
            f"there is no {what} in {place / 'runs'}", "start one with make pipeline DATASET=…"
        )
    return thaw(found[-1]), place


def _show_result(folder: Path) -> None:
    try:
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    out.print(content["verdict"])
    out.print(f"report: {folder / 'report.html'}")


def main() -> None:
    """Run the command; a failure becomes one line and an exit code."""
    try:
        app(standalone_mode=False)
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:
        print(
            f"interrupted ({error}): progress is safe; run the same command to go on",
            file=sys.stderr,
        )
        sys.exit(Interrupted.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(
            error, "format_message"
        ):
            print(f"error: {error.format_message()}. See python -m jobs --help", file=sys.stderr)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
