"""Commands that change finished or running work: cancel, export, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.run_selection import Selection, with_selection
from pipeline.modeling.device import Precision


@with_selection
def cancel(chosen: Selection) -> None:
    """Cancel the jobs of a run, except those that other runs wait for; progress is safe."""
    from jobs.housekeeping.cancel import cancel_run

    config, root = chosen.existing_config(), chosen.root_folder()
    done = cancel_run(config, root, chosen.queue(strict=True))
    if done.ended:
        print(f"cancelled: {' '.join(done.ended)}")
    if done.kept:
        print(f"kept, because other runs wait for them: {' '.join(done.kept)}")
    if not done.ended and not done.kept:
        print(f"{config.name} has nothing queued or running")


@with_selection
def export(
    chosen: Selection,
    to: Annotated[Path | None, typer.Option(help="Folder; by default in the run's.")] = None,
    precision: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "fp32",
) -> None:
    """Write the trained model of a run in a form that anybody can load, in this process."""
    from jobs.housekeeping.export import export_run

    chosen = chosen.read_only()
    export_run(chosen.existing_config(), chosen.root_folder(), to, precision)


@with_selection
def clean(
    chosen: Selection,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove leftovers of killed tasks, data that no run uses, and chunks that no run keeps."""
    from jobs.housekeeping.clean import releasable_parts, removable, remove
    from pipeline.core.disk import size
    from pipeline.core.registry import find_dataset

    root = chosen.root_folder()
    dataset = find_dataset(chosen.dataset).id if chosen.dataset else None
    folders, parts = removable(root, dataset), releasable_parts(root, dataset)
    for path in [*folders, *(f"the chunks of {part}" for part in parts)]:
        print(f"{'would remove' if dry_run else 'removing'} {path}")
    if not folders and not parts:
        print("nothing to remove")
    elif not dry_run:
        print(f"freed {size(remove(folders, parts))}")
