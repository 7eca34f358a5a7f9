"""Removing what is not needed: leftovers of killed tasks, and data that no run's settings name."""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs import journal
from jobs.allocation import process_gone
from pipeline.config import thaw
from pipeline.dag import survey
from pipeline.errors import UserError
from pipeline.leftovers import ended, silent

LEFTOVERS = (".damaged-*", ".stale-*", ".retired-*")


def removable(root: Path, dataset: str | None) -> list[Path]:
    """Folders that may go. Whatever a run still names stays, finished or not.

    Args:
        root: The folder that holds `data/`, `models/` and `runs/`.
        dataset: Only of this data set; None for all.
    """
    data, busy = root / "data", _busy(root)
    areas = [data / dataset] if dataset else sorted(p for p in data.glob("*") if p.is_dir())
    named = _named(root)
    found = []
    for area in areas:
        for folder in sorted(path for path in area.glob("*-*") if path.is_dir()):
            if folder not in named:
                found.append(folder)
            else:
                found += _leftovers(folder, busy)
    for folder in sorted(named):
        if folder.parents[1] in (root / "runs", root / "models"):
            found += _leftovers(folder, busy)
    return list(dict.fromkeys(found))


def _leftovers(folder: Path, busy: bool) -> list[Path]:
    """What killed tasks and repairs left in a folder; the temporary folders of live ones stay.

    Args:
        folder: Of a step.
        busy: Whether somebody may be writing there whose clock need not be ours.
    """
    set_aside = [path for pattern in LEFTOVERS for path in sorted(folder.glob(pattern))]
    dead = [p for p in sorted(folder.glob(".tmp-*")) if ended(p) or (silent(p) and not busy)]
    return set_aside + dead


def _busy(root: Path) -> bool:
    """Whether a task says that it runs, and is not known to have ended."""
    states = (journal.read(path) for path in root.glob("runs/*/logs/*.json"))
    labels = [state.get("label", "") for state in states if state.get("state") == "running"]
    return any(not process_gone(label) for label in labels)


def _named(root: Path) -> set[Path]:
    named = set()
    for path in sorted(root.glob("runs/*/config.yaml")):
        try:
            named |= {node.work.folder for node in survey(thaw(path), root)}
        except UserError as error:
            raise UserError(f"cannot tell what {path.parent.name} needs: {error}") from None
    return named


def remove(paths: list[Path]) -> int:
    """Remove folders; returns the bytes that they held."""
    freed = 0
    for path in paths:
        freed += sum(
            f.lstat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink()
        )
        shutil.rmtree(path, ignore_errors=True)
    return freed
