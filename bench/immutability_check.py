"""Watches what is committed below a root: is a file that was once committed ever written again?"""

from __future__ import annotations

import os
from pathlib import Path

Mark = tuple[int, int, int]  # inode, time of change in ns, bytes: together they tell a rewrite


class Witness:
    """Notes every file of every unit of a corpus as it was when the unit was first seen."""

    def __init__(self, root: Path, dataset: str) -> None:
        self.home = root / "data" / dataset
        self.marks: dict[Path, Mark] = {}
        self.rewritten: set[Path] = set()
        self._known: set[Path] = set()

    def look(self) -> None:
        """Note what is new."""
        for receipt in self.home.glob("*/*/receipt.json"):
            unit = receipt.parent
            if unit.name.startswith(".") or unit in self._known:
                continue
            try:
                found = {path: _mark(path) for path in unit.rglob("*") if path.is_file()}
            except FileNotFoundError:
                continue  # it is just being put aside; then it counts from when it comes back
            self.marks |= found
            self._known.add(unit)

    def compare(self) -> None:
        """Find what is no longer as it was first noted."""
        for path, mark in self.marks.items():
            try:
                same = _mark(path) == mark
            except FileNotFoundError:
                same = False
            if not same:
                self.rewritten.add(path)

    def seen(self, kind: str) -> int:
        """How many units of a kind (`chunks`, `shards`) were noted."""
        return sum(unit.parent.name.startswith(f"{kind}-") for unit in self._known)


def _mark(path: Path) -> Mark:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size
