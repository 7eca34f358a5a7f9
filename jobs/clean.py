"""Removing what is not needed: leftovers of killed tasks, and data that no run's settings name."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config import thaw
from pipeline.dag import survey
from pipeline.errors import UserError
from pipeline.receipt import abandoned

LEFTOVERS = (".damaged-*", ".stale-*", ".retired-*")


def removable(root: Path, dataset: str | None) -> list[Path]:
    """Folders that may go. Whatever a run still names stays, finished or not.

    Args:
        root: The folder that holds `data/`, `models/` and `runs/`.
        dataset: Only of this data set; None for all.
    """
    data = root / "data"
    areas = [data / dataset] if dataset else sorted(p for p in data.glob("*") if p.is_dir())
    named = _named(root)
    found = []
    for area in areas:
        for folder in sorted(path for path in area.glob("*-*") if path.is_dir()):
            if folder not in named:
                found.append(folder)
            else:
                found += _leftovers(folder)
    for folder in sorted(named):
        if folder.parents[1] in (root / "runs", root / "models"):
            found += _leftovers(folder)
    return list(dict.fromkeys(found))


def _leftovers(folder: Path) -> list[Path]:
    """What killed tasks and repairs left in a folder; the temporary folders of live ones stay."""
    set_aside = [path for pattern in LEFTOVERS for path in sorted(folder.glob(pattern))]
    return set_aside + [path for path in sorted(folder.glob(".tmp-*")) if abandoned(path)]


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
