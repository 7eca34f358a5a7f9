"""Adopt equal units that were made under another key, instead of computing them again.

So a changed setting that leads to the same content runs nothing again downstream.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.core.commit import commit
from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import Receipt, UnitIdentity, load, load_intact, verify


def equivalent_units(folder: Path, item: str) -> Iterator[Path]:
    """Units of that name in folders of the same kind, under other keys, datasets or runs."""
    kind = glob.escape(folder.name.partition("-")[0])
    for sibling in sorted(folder.parent.parent.glob(f"*/{kind}-*")):
        if sibling != folder and (sibling / item).is_dir():
            yield sibling / item


def adopt(
    equivalent: Path,
    folder: Path,
    identity: UnitIdentity,
    confirm_lease: Callable[[], None] = lambda: None,
) -> bool:
    """Commit the content of a unit that the same recipe made from equal inputs under another key.

    Its files are hard-linked, or copied if that is impossible, with the units that it lists. They
    are verified first; otherwise damage would return with every adoption.

    Returns:
        False if the unit is incomplete or damaged, has released its units, or is not equivalent.
    """
    receipt = load_intact(equivalent)
    if (
        receipt is None
        or receipt.released
        or (receipt.own, receipt.inputs) != (identity.own, identity.inputs)
    ):
        return False
    try:
        for name in receipt.units:
            listed = load(equivalent.parent / name)
            if listed is None:
                return False
            _copy(equivalent.parent / name, listed, folder, identity, confirm_lease)
        _copy(equivalent, receipt, folder, identity, confirm_lease)
    except (CorruptInput, FileNotFoundError):  # its units may have been released in between
        return False
    return True


def _copy(
    source: Path,
    receipt: Receipt,
    folder: Path,
    identity: UnitIdentity,
    confirm_lease: Callable[[], None],
) -> None:
    for name in receipt.outputs:
        verify(source, name, receipt)
    same = UnitIdentity(identity.key, receipt.own, receipt.inputs, identity.code)
    with commit(folder, source.name, same, confirm_lease) as draft:
        draft.facts, draft.units = {**receipt.facts, "adopted": True}, receipt.units
        draft.notes = receipt.notes
        for name, output in receipt.outputs.items():
            target = draft.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / name, target)
            except OSError:
                shutil.copyfile(source / name, target)
            draft.hashes[name] = output.sha256
