"""Remove what no run needs: leftovers of killed tasks, unused data, chunks that are not kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from jobs.cluster.allocation import process_gone
from pipeline.config import Config
from pipeline.core.commit import ended, release, silent
from pipeline.core.disk import folder_bytes
from pipeline.core.errors import UserError
from pipeline.core.receipt import load
from pipeline.core.task_log import RUNNING, read_status
from pipeline.dag import survey
from pipeline.saved_config import load_config

SET_ASIDE_PATTERNS = (".damaged-*", ".stale-*", ".retired-*")


def removable(root: Path, dataset: str | None) -> list[Path]:
    """Folders that no run needs. What a run refers to stays, finished or not.

    Args:
        root: The folder that holds `data/`, `models/` and `runs/`.
        dataset: The id of a data set, to look at its folders only; None for all.
    """
    data, busy = root / "data", _is_busy(root)
    areas = [data / dataset] if dataset else sorted(p for p in data.glob("*") if p.is_dir())
    needed = _needed_folders(root)
    found = []
    for area in areas:
        for folder in sorted(path for path in area.glob("*-*") if path.is_dir()):
            if folder not in needed:
                found.append(folder)
            else:
                found += _leftovers(folder, busy)
    for folder in sorted(needed):
        if folder.parents[1] in (root / "runs", root / "models"):
            found += _leftovers(folder, busy)
    return list(dict.fromkeys(found))


def _leftovers(folder: Path, busy: bool) -> list[Path]:
    """What killed tasks and repairs left in the folder of a step.

    Args:
        folder: The folder of a step.
        busy: Whether a process may be writing there whose host has another clock; then old
            temporary folders of other hosts stay.
    """
    set_aside = [path for pattern in SET_ASIDE_PATTERNS for path in sorted(folder.glob(pattern))]
    temporary = sorted(folder.glob(".tmp-*"))
    return set_aside + [path for path in temporary if ended(path) or (silent(path) and not busy)]


def _is_busy(root: Path) -> bool:
    """Whether a task claims to be running and is not known to have ended."""
    states = (read_status(path) for path in root.glob("runs/*/logs/*.json"))
    labels = [state.get("label", "") for state in states if state.get("state") == RUNNING]
    return any(not process_gone(label) for label in labels)


def releasable_parts(root: Path, dataset: str | None) -> list[Path]:
    """Parts whose chunks no run keeps or still has to tokenize; arguments as in `removable`."""
    found: list[Path] = []
    kept = set()
    for config in _run_configs(root):
        nodes = {node.work.step.name: node for node in survey(config, root)}
        chunks = nodes["decompress.chunks"]
        if config.decompress.keep_chunks or not nodes["tokenize.seal"].complete:
            kept.add(chunks.work.folder)
        elif dataset in (None, config.dataset.id):
            found += [chunks.work.folder / n for n, r in chunks.done.items() if not r.released]
    return [part for part in dict.fromkeys(found) if part.parent not in kept]


def _needed_folders(root: Path) -> set[Path]:
    return {node.work.folder for config in _run_configs(root) for node in survey(config, root)}


def _run_configs(root: Path) -> Iterator[Config]:
    """The configuration of every run."""
    for path in sorted(root.glob("runs/*/config.yaml")):
        try:
            yield load_config(path)
        except UserError as error:
            raise UserError(f"cannot tell what run {path.parent.name} needs: {error}") from None


def remove(folders: list[Path], parts: list[Path]) -> int:
    """Remove folders, and the chunks of parts; returns the number of bytes freed."""
    chunks = [part.parent / name for part in parts if (r := load(part)) for name in r.units]
    freed = sum(map(folder_bytes, [*folders, *chunks]))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for part in parts:
        release(part)
    return freed
