"""Check that committed files never change: compares each with its state when it was first seen."""

from __future__ import annotations

import os
from pathlib import Path

FileState = tuple[int, int, int]  # inode, mtime in ns, bytes: a rewrite changes at least one


class ImmutabilityCheck:
    """Records the files of every committed unit of a corpus when the unit is first seen."""

    def __init__(self, root: Path, dataset: str) -> None:
        self.data_folder = root / "data" / dataset
        self.states: dict[Path, FileState] = {}
        self.rewritten: set[Path] = set()
        self._units: set[Path] = set()

    def record(self) -> None:
        """Record the units that are new since the last call."""
        for receipt in self.data_folder.glob("*/*/receipt.json"):
            unit = receipt.parent
            if unit.name.startswith(".") or unit in self._units:
                continue
            try:
                states = {path: _state(path) for path in unit.rglob("*") if path.is_file()}
            except FileNotFoundError:
                continue  # the unit is being moved away; it is recorded if it comes back
            self.states |= states
            self._units.add(unit)

    def compare(self) -> None:
        """Add the files that differ from their recorded state to `rewritten`."""
        for path, state in self.states.items():
            try:
                unchanged = _state(path) == state
            except FileNotFoundError:
                unchanged = False
            if not unchanged:
                self.rewritten.add(path)

    def count_units(self, kind: str) -> int:
        """The number of recorded units of a kind (`chunks`, `shards`)."""
        return sum(unit.parent.name.startswith(f"{kind}-") for unit in self._units)


def _state(path: Path) -> FileState:
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
