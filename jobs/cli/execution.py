"""Commands that plan and run: submit, fetch, plan, run."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.options import AsJson, Force, make_console
from jobs.cli.run_selection import Selection, with_selection
from jobs.core.console import flush_streams, print_error
from pipeline.core.redaction import redact_all

if TYPE_CHECKING:
    from jobs.cluster.profile import Profile
    from pipeline.config import Config


@with_selection
def submit(chosen: Selection, force: Force = False) -> None:
    """Run the steps that are not done yet. Running it again is safe."""
    from jobs.core.permissions import create_run_folders
    from jobs.planning.preflight import check_packages, check_site, check_sources
    from pipeline.saved_config import save_config

    config, root, site = chosen.config(), chosen.root_folder(), chosen.site
    check_packages(config)
    check_site(config, site)
    _check_disk(config, root, check_sources(config, root), force)
    create_run_folders(root, config.name, site.group)
    save_config(config, root, chosen.make_command())
    if site.scheduler == "slurm":
        _queue(config, root, site, chosen.make_variables())
    else:
        _run_here(config, root, site)


def _check_disk(
    config: Config, root: Path, probed: int | None, force: bool, stage: str = ""
) -> None:
    """Refuse a run that does not fit, unless forced; print the estimate if there is a doubt."""
    from jobs.planning.disk_estimate import check_disk, estimate_disk

    estimate = (estimate_disk if force else check_disk)(config, root, probed, stage)
    if estimate.unknown or not estimate.fits:
        print_error(f"disk: {estimate.summary()}")


def _run_here(config: Config, root: Path, site: Profile) -> None:
    from jobs.monitoring.reporting import show_result
    from jobs.planning.planner import make_plan
    from jobs.running.local import run_plan

    plan = make_plan(config, root)
    if plan.arrays:
        run_plan(plan, site, make_console())
    else:
        print(f"{config.name}: everything is done")
    show_result(root / "runs" / config.name / "report")


def _queue(config: Config, root: Path, site: Profile, variables: str) -> None:
    from jobs.monitoring.reporting import show_result
    from jobs.planning.planner import make_plan
    from jobs.running.local import run_plan
    from jobs.running.submit import queue_plan
    from pipeline.dag import STEPS

    here = {step.name for step in STEPS if site.resources(step.name).where == "login"}
    if here:
        plan = make_plan(config, root)
        arrays = tuple(array for array in plan.arrays if array.step in here)
        run_plan(replace(plan, arrays=arrays), site, make_console())
    queued = queue_plan(config, root, site)
    for line in queued.describe():
        print(line)
    if queued.jobs or queued.plan.live:
        print(f"to follow it: make status {variables}; logs: make logs; to cancel it: make cancel")
    else:
        show_result(root / "runs" / config.name / "report")


@with_selection
def fetch(chosen: Selection, force: Force = False) -> None:
    """Only download corpus and base model, to copy them to a cluster without internet."""
    from jobs.core.permissions import create_run_folders
    from jobs.planning.planner import make_plan
    from jobs.planning.preflight import check_sources
    from jobs.running.local import run_plan
    from pipeline.dag import survey
    from pipeline.saved_config import save_config

    config, root, site = chosen.config(), chosen.root_folder(), chosen.site
    _check_disk(config, root, check_sources(config, root), force, "download")
    create_run_folders(root, config.name, site.group)
    save_config(config, root)
    plan = make_plan(config, root)
    plan = replace(plan, arrays=tuple(a for a in plan.arrays if a.stage == "download"))
    if plan.arrays:
        run_plan(plan, site, make_console())
    folders = [n.work.folder for n in survey(config, root) if n.work.step.stage == "download"]
    # rsync --relative copies the part of a path after "/./"
    sources = [f"{root.resolve()}/./{folder.relative_to(root)}" for folder in folders]
    print("corpus and model are downloaded. Copy them to the cluster with the command below, then")
    print("run make pipeline there with the same arguments:")
    print(shlex.join(["rsync", "-a", "--relative", *sources, "cluster:/its/RUNS/"]))


@with_selection
def plan(chosen: Selection, as_json: AsJson = False) -> None:
    """Show what submit would do, and whether corpus and model are available; change nothing."""
    from jobs.planning.disk_estimate import estimate_disk
    from jobs.planning.planner import describe_plan, make_plan
    from jobs.planning.preflight import check_site, check_sources
    from pipeline.download.file_names import describe_files, passed_over
    from pipeline.saved_config import check_name

    config, root, site = chosen.config(), chosen.root_folder(), chosen.site
    check_site(config, site)
    check_name(config, root)
    made = make_plan(config, root, chosen.queue())
    if as_json:
        print(json.dumps(redact_all(asdict(made)), indent=1, ensure_ascii=False))
    else:
        print(*describe_plan(made, site), sep="\n")
    probed = check_sources(config, root)
    if not as_json and (others := passed_over(config.dataset)):
        print(f"  passed over: {describe_files(others)}")
    if not as_json and (made.arrays or made.live):
        print(f"  disk: {estimate_disk(config, root, probed).summary()}")


@with_selection
def run(
    chosen: Selection,
    step: Annotated[str, typer.Argument(help="A stage, or one of its steps.")],
    plan: Annotated[Path | None, typer.Option(help="File of a plan; replaces the options.")] = None,
    element: Annotated[
        str, typer.Option(help="Index of this task and number of tasks: 0/4.")
    ] = "0/1",
    cpus: Annotated[int, typer.Option(help="Cores to use.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs to use.")] = 0,
    batch: Annotated[bool, typer.Option("--batch", help="Run inside a SLURM batch job.")] = False,
) -> None:
    """Run a stage or a step in this process: by hand, or as a task of a plan."""
    from jobs.core.permissions import apply_umask, create_run_folders
    from jobs.planning.plan import read_plan
    from jobs.running.by_hand import run_steps
    from pipeline.saved_config import save_config

    if plan is not None:
        made = read_plan(plan)
        config, root = made.settings, Path(made.root)
        apply_umask(root / "runs" / config.name)
    else:
        config, root = chosen.config(), chosen.root_folder()
        create_run_folders(root, config.name, chosen.site.group)
        save_config(config, root)
    run_steps(config, root, step, element, cpus=cpus, gpus=gpus, batch=batch, plan=plan)
    flush_streams()  # the work is done: a log on a full disk must not change the exit code
