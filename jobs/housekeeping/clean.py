"""Removing what is not needed: leftovers of killed tasks, data no run names, chunks none keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from jobs.cluster.allocation import process_gone
from pipeline.config import Config, load_config
from pipeline.core.errors import UserError
from pipeline.core.leftovers import ended, silent
from pipeline.core.receipt import load, release
from pipeline.core.task_log import read_status
from pipeline.dag import survey

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
    states = (read_status(path) for path in root.glob("runs/*/logs/*.json"))
    labels = [state.get("label", "") for state in states if state.get("state") == "running"]
    return any(not process_gone(label) for label in labels)


def spent(root: Path, dataset: str | None) -> list[Path]:
    """The parts whose chunks no run keeps or has yet to tokenize; arguments as of `removable`."""
    found: list[Path] = []
    kept = set()
    for config in _runs(root):
        nodes = {node.work.step.name: node for node in survey(config, root)}
        chunks = nodes["decompress.chunks"]
        if config.decompress.keep_chunks or not nodes["tokenize.seal"].complete:
            kept.add(chunks.work.folder)
        elif dataset in (None, config.dataset.id):
            found += [chunks.work.folder / n for n, r in chunks.done.items() if not r.released]
    return [part for part in dict.fromkeys(found) if part.parent not in kept]


def _named(root: Path) -> set[Path]:
    return {node.work.folder for config in _runs(root) for node in survey(config, root)}


def _runs(root: Path) -> Iterator[Config]:
    """The configuration of every run."""
    for path in sorted(root.glob("runs/*/config.yaml")):
        try:
            yield load_config(path)
        except UserError as error:
            raise UserError(f"cannot tell what {path.parent.name} needs: {error}") from None


def remove(paths: list[Path], parts: list[Path]) -> int:
    """Remove folders, and the chunks of parts; returns the bytes that they held."""
    chunks = [part.parent / name for part in parts if (r := load(part)) for name in r.units]
    freed = sum(map(_held, [*paths, *chunks]))
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    for part in parts:
        release(part)
    return freed


def _held(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.lstat().st_size for path in files)
