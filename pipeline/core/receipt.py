"""Receipts: the one mechanism by which finished work is known, skipped, trusted and resumed.

A *unit* is a folder with output files and a `receipt.json`. It is written in a temporary folder
beside its final place and put there by one `rename`, so it is absent or whole at every instant,
whatever was killed. Nothing else makes a unit done.

What it costs: every output is hashed once when written, and once more by the stage that reads it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import sync, write_text
from pipeline.core.error_translation import no_room
from pipeline.core.errors import CorruptInput, Failure

NAME = "receipt.json"
Check = Callable[[], None]


@dataclass(frozen=True)
class Output:
    """A committed file: bytes and sha256 (hex)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class UnitIdentity:
    """What a unit is made from: recipe key, own recipe, and the digests of what was read.

    `inputs` is None where the source is gone: then what was made from it stays good.
    """

    key: str
    own: str
    inputs: dict[str, str] | None
    code: str = ""


@dataclass(frozen=True)
class Receipt:
    """The record inside a unit's folder.

    `units` names the units (with their digests) that this one declares complete. `notes` are
    outputs that say how it came about, such as timings; the content digest leaves them out.
    `released`: the units are not needed any more, and gone.
    """

    unit: str
    key: str
    own: str
    inputs: dict[str, str]
    outputs: dict[str, Output]
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    host: str = ""
    code: str = ""
    written: float = 0.0
    released: bool = False

    @property
    def digest(self) -> str:
        """Content digest: hash of the sorted sha256 of the outputs and of the units listed."""
        made = (o.sha256 for name, o in self.outputs.items() if name not in self.notes)
        return hash_json(sorted([*made, *self.units.values()]))

    @property
    def spent(self) -> float:
        """Seconds that went into it, by its own account if it keeps one, else of the commit."""
        return float(self.facts.get("seconds", self.seconds))

    def verify(self, unit: Path, check: Check = lambda: None) -> None:
        """Read every file of the unit's folder and compare; raises as `verify` does."""
        for name in self.outputs:
            verify(unit, name, self, check)


@dataclass
class Draft:
    """A unit being written. Put files into `path`; the rest goes into the receipt.

    `hashes` may carry the sha256 of files that were hashed while they were written.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


def hash_json(value: Any) -> str:
    """sha256 (hex) of plain data in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path, check: Check = lambda: None) -> str:
    """sha256 (hex) of a file; `check` is called between its blocks, and may raise."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            check()
    return digest.hexdigest()


def load(unit: Path) -> Receipt | None:
    """The receipt of a unit's folder; None where there is none or it cannot be read."""
    try:
        raw = json.loads((unit / NAME).read_text(encoding="utf-8"))
        outputs = {name: Output(**value) for name, value in raw.pop("outputs").items()}
        return Receipt(outputs=outputs, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def load_intact(unit: Path) -> Receipt | None:
    """The receipt of a unit whose files, and the units it lists, are there in their sizes."""
    receipt = load(unit)
    if receipt is None or receipt.unit != unit.name:
        return None
    for name, output in receipt.outputs.items():
        try:
            if (unit / name).stat().st_size != output.size:
                return None
        except OSError:
            return None
    for name, digest in () if receipt.released else receipt.units.items():
        listed = load_intact(unit.parent / name)
        if listed is None or listed.digest != digest:
            return None
    return receipt


def load_current(unit: Path, identity: UnitIdentity) -> Receipt | None:
    """The receipt of a whole unit that was made by this recipe from these inputs, else None."""
    receipt = load_intact(unit)
    if receipt is None or receipt.key != identity.key:
        return None
    return receipt if identity.inputs in (None, receipt.inputs) else None


def verify(unit: Path, name: str, receipt: Receipt, check: Check = lambda: None) -> Path:
    """Read one committed file in full and compare it with its receipt; `check` as in `hash_file`.

    Returns:
        The path of the file.

    Raises:
        CorruptInput: It is missing or its bytes are not those that were committed.
    """
    path = unit / name
    try:
        found = hash_file(path, check)
    except OSError as error:
        raise CorruptInput(f"cannot read {path}: {error.strerror}", unit=unit) from None
    expect(found, unit, name, receipt)
    return path


def expect(found: str, unit: Path, name: str, receipt: Receipt) -> None:
    """Compare a sha256 taken while reading with the committed one, or raise `CorruptInput`."""
    wanted = receipt.outputs[name].sha256
    if found != wanted:
        what = f"{unit / name} is damaged: its sha256 is {found[:12]}… and was {wanted[:12]}…"
        raise CorruptInput(what, unit=unit)


@contextmanager
def commit(
    folder: Path, name: str, identity: UnitIdentity, guard: Check = lambda: None
) -> Iterator[Draft]:
    """Write a unit: fill `draft.path` in the block; at its end the unit appears, whole.

    Args:
        folder: Where the unit goes, as `folder/name`.
        identity: What it is made from.
        guard: Called just before the unit appears; raises if the right to commit was lost.

    Raises:
        UserError, OSError: There is no room, or else; nothing was committed, and what was written
            is gone.
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
            outputs=_seal(draft),
            units=draft.units,
            notes=draft.notes,
            facts=draft.facts,
            seconds=round(time.monotonic() - started, 3),
            host=socket.gethostname(),
            code=identity.code,
            written=time.time(),
        )
        write_text(temporary / NAME, json.dumps(asdict(receipt), indent=1, ensure_ascii=False))
        sync(temporary)
        guard()
        _place(temporary, folder / name, receipt)
    except Exception as error:
        # now, while what was written is still there: without it there will be room again
        full = None if isinstance(error, Failure) else no_room(error, temporary)
        if full:
            raise full from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def set_aside(unit: Path, why: str) -> Path:
    """Move a unit out of the way, under a hidden name beside it."""
    aside = unit.parent / f".{why}-{unit.name}-{uuid.uuid4().hex[:8]}"
    unit.rename(aside)
    return aside


def release(unit: Path) -> None:
    """Remove the units that one lists, which stays and says so: nobody needs them any more."""
    receipt = load(unit)
    if receipt is None:
        return
    listed = [unit.parent / name for name in receipt.units]
    if not receipt.released:
        spent = sum(found.spent for found in map(load, listed) if found)
        facts = {**receipt.facts, "seconds": round(receipt.spent + spent, 3)}
        content = asdict(replace(receipt, released=True, facts=facts))
        write_text(unit / NAME, json.dumps(content, indent=1, ensure_ascii=False))
    for path in listed:
        # out of the way first: half a unit would be taken for a damaged one
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(set_aside(path, "stale"), ignore_errors=True)


def _place(temporary: Path, final: Path, receipt: Receipt) -> None:
    """Rename into place. Where a unit already stands: keep an equal one, else take its place."""
    for _ in range(10):
        try:
            temporary.rename(final)
            sync(final.parent)
            return
        except OSError as error:
            # not "is it there?": a third one may just have moved it out of the way
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
    """Whether a unit that stands already is as good as one that was just made."""
    known = (winner.key, winner.inputs, winner.digest)
    return not winner.released and known == (receipt.key, receipt.inputs, receipt.digest)


def _seal(draft: Draft) -> dict[str, Output]:
    outputs = {}
    for path in sorted(p for p in draft.path.rglob("*") if p.is_file()):
        name = path.relative_to(draft.path).as_posix()
        outputs[name] = Output(path.stat().st_size, draft.hashes.get(name) or hash_file(path))
        sync(path)
    return outputs
