"""Commit units: write in a temporary folder beside the final place, then rename once.

So a unit is absent or complete at every instant, whatever was killed. What killed processes leave
behind is recognized by the host and process id in its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import sync
from pipeline.core.error_translation import disk_full_error
from pipeline.core.errors import CorruptInput, Failure
from pipeline.core.receipt import (
    Check,
    Output,
    Receipt,
    UnitIdentity,
    hash_file,
    load,
    load_intact,
    write,
)

DAY_SECONDS = 86400.0


@dataclass
class Draft:
    """A unit that is being written. Put files into `path`; the other fields go into the receipt.

    `hashes`: the sha256 of files that were hashed while they were written.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


@contextmanager
def commit(
    folder: Path, name: str, identity: UnitIdentity, confirm_lease: Check = lambda: None
) -> Iterator[Draft]:
    """Write a unit: fill `draft.path` in the block; at its end the complete unit appears.

    Args:
        folder: Where the unit goes, as `folder/name`.
        identity: What it is made from.
        confirm_lease: Called just before the unit appears; raises if the right to commit was lost.

    Raises:
        UserError, OSError: The disk is full, or writing failed. Nothing was committed, and what was
            written is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{name}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    started = time.monotonic()
    try:
        draft = Draft(temporary)
        yield draft
        receipt = Receipt(
            unit=name,
            key=identity.key,
            own=identity.own,
            inputs=identity.inputs or {},
            outputs=_hash_and_sync_outputs(draft),
            units=draft.units,
            notes=draft.notes,
            facts=draft.facts,
            seconds=round(time.monotonic() - started, 3),
            host=socket.gethostname(),
            code=identity.code,
            written=time.time(),
        )
        write(receipt, temporary)
        sync(temporary)
        confirm_lease()
        _place(temporary, folder / name, receipt)
    except Exception as error:
        # check for a full disk before the temporary files are removed
        full = None if isinstance(error, Failure) else disk_full_error(error, temporary)
        if full:
            raise full from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def set_aside(unit: Path, why: str) -> Path:
    """Rename a unit to a hidden name beside it."""
    aside = unit.parent / f".{why}-{unit.name}-{uuid.uuid4().hex[:8]}"
    unit.rename(aside)
    return aside


def release(unit: Path) -> None:
    """Remove the units that a unit lists. It stays, and its receipt says `released`."""
    receipt = load(unit)
    if receipt is None:
        return
    listed = [unit.parent / name for name in receipt.units]
    if not receipt.released:
        spent = sum(receipt.spent for receipt in map(load, listed) if receipt)
        facts = {**receipt.facts, "seconds": round(receipt.spent + spent, 3)}
        write(replace(receipt, released=True, facts=facts), unit)
    for path in listed:
        # rename first: half a unit would look like a damaged one
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(set_aside(path, "stale"), ignore_errors=True)


def _place(temporary: Path, final: Path, receipt: Receipt) -> None:
    """Rename into place. If the unit exists, keep it when equal, otherwise replace it."""
    for _ in range(10):
        try:
            temporary.rename(final)
            sync(final.parent)
            return
        except OSError as error:
            # do not test for existence: a third writer may have moved it in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        winner = load_intact(final)
        if winner and _same(winner, receipt):
            return
        try:
            stale = set_aside(final, "stale")
        except FileNotFoundError:
            continue
        shutil.rmtree(stale, ignore_errors=True)
    raise OSError(f"{final} changes faster than it can be replaced; is another run writing there?")


def _same(winner: Receipt, receipt: Receipt) -> bool:
    """Whether an existing unit equals the one that was just made."""
    known = (winner.key, winner.inputs, winner.digest)
    return not winner.released and known == (receipt.key, receipt.inputs, receipt.digest)


def _hash_and_sync_outputs(draft: Draft) -> dict[str, Output]:
    outputs = {}
    for path in sorted(p for p in draft.path.rglob("*") if p.is_file()):
        name = path.relative_to(draft.path).as_posix()
        outputs[name] = Output(path.stat().st_size, draft.hashes.get(name) or hash_file(path))
        sync(path)
    return outputs


@contextmanager
def setting_aside_damaged_units(
    then: str = "run the same command again to rebuild it",
) -> Iterator[None]:
    """Set aside a unit that was found damaged.

    Args:
        then: What to type next.

    Raises:
        CorruptInput: The one that was raised, saying also that the unit was set aside.
    """
    try:
        yield
    except CorruptInput as error:
        if error.unit is None or not error.unit.is_dir():
            raise
        aside = ""
        with contextlib.suppress(FileNotFoundError):  # another task may be quicker
            aside = f" as {set_aside(error.unit, 'damaged').name}"
        hint = f"It was set aside{aside}; {then}"
        raise CorruptInput(error.what, hint) from None


def ended(temporary: Path) -> bool:
    """Whether the writer of a temporary folder was a process of this host that has ended."""
    ours = re.search(rf"-{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}$", temporary.name)
    return bool(ours and Path("/proc/self").exists() and not Path(f"/proc/{ours[1]}").exists())


def silent(path: Path) -> bool:
    """Whether nothing has changed there for a day, by the clock of this host."""
    try:
        return time.time() - path.stat().st_mtime > DAY_SECONDS
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Remove what killed processes left: temporary folders of this host, files of old leases.

    Clocks differ between hosts, so nothing in use is removed by age alone: temporary folders of
    other hosts are left to `make clean`, the file of a held lease has two links, and a process that
    waits for a lease writes its file again.
    """
    for path in filter(ended, folder.glob(".tmp-*")):
        shutil.rmtree(path, ignore_errors=True)
    for path in filter(silent, folder.glob(".lease-*.*")):
        with contextlib.suppress(OSError):
            if path.stat().st_nlink == 1:
                path.unlink()
