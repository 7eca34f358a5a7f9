"""Receipts: how finished work is recognized, skipped, verified and resumed.

A *unit* is a folder with output files and a `receipt.json`, put there by one rename (see
`pipeline.core.commit`). Nothing else makes a unit done. Each output is hashed once when it is
written, and once more by the stage that reads it. A receipt carries a hash of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import write_text
from pipeline.core.errors import CorruptInput

RECEIPT_FILE = "receipt.json"
RECEIPT_FORMAT = 2  # 1 was that of Gristmill 0.1, whose receipts do not say it
Check = Callable[[], None]


@dataclass(frozen=True)
class Output:
    """A committed file: size in bytes and sha256 (hex)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class UnitIdentity:
    """What a unit is made from.

    `key`: recipe key. `own`: key of the step alone. `inputs`: digests of what it reads; None if the
    source is unavailable, and existing outputs then stay valid. `code`: version of the code.
    """

    key: str
    own: str
    inputs: dict[str, str] | None
    code: str = ""


@dataclass(frozen=True)
class Receipt:
    """The record inside a unit's folder.

    `own`: key of the step alone. `units`: the units that this one lists as complete, with their
    digests. `notes`: names of outputs that the content digest leaves out, such as timings.
    `released`: the listed units were no longer needed and have been removed.
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
        digests = (o.sha256 for name, o in self.outputs.items() if name not in self.notes)
        return hash_json(sorted([*digests, *self.units.values()]))

    @property
    def spent(self) -> float:
        """Seconds of work: as recorded in `facts`, else those of the commit."""
        return float(self.facts.get("seconds", self.seconds))

    def verify(self, unit: Path, check: Check = lambda: None) -> None:
        """Verify every file of the unit; raises as `verify` does."""
        for name in self.outputs:
            verify(unit, name, self, check)


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
    """The receipt of a unit's folder; None if there is none, or it is damaged or of 0.1."""
    try:
        raw = json.loads((unit / RECEIPT_FILE).read_text(encoding="utf-8"))
        if raw.pop("format") != RECEIPT_FORMAT or raw.pop("self") != hash_json(raw):
            return None
        outputs = {name: Output(**value) for name, value in raw.pop("outputs").items()}
        return Receipt(outputs=outputs, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def load_intact(unit: Path) -> Receipt | None:
    """The receipt of a unit whose files and listed units exist with the right sizes, else None."""
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
    """The receipt of an intact unit that this recipe made from these inputs, else None."""
    receipt = load_intact(unit)
    if receipt is None or receipt.key != identity.key:
        return None
    return receipt if identity.inputs in (None, receipt.inputs) else None


def verify(unit: Path, name: str, receipt: Receipt, check: Check = lambda: None) -> Path:
    """Hash one committed file and compare it with its receipt; `check` as in `hash_file`.

    Returns:
        The path of the file.

    Raises:
        CorruptInput: It is missing, or its bytes differ from those that were committed.
    """
    path = unit / name
    try:
        sha256 = hash_file(path, check)
    except OSError as error:
        raise CorruptInput(f"cannot read {path}: {error.strerror}", unit=unit) from None
    expect(sha256, unit, name, receipt)
    return path


def expect(sha256: str, unit: Path, name: str, receipt: Receipt) -> None:
    """Raise `CorruptInput` if a sha256 (hex) computed while reading is not the committed one."""
    committed = receipt.outputs[name].sha256
    if sha256 != committed:
        what = f"{unit / name} is damaged: its sha256 is {sha256[:12]}… and was {committed[:12]}…"
        raise CorruptInput(what, unit=unit)


def write(receipt: Receipt, unit: Path) -> None:
    """Write a receipt with a hash of itself: what stages read out of it is protected, too."""
    content = json.loads(json.dumps(asdict(receipt)))
    content = {"format": RECEIPT_FORMAT, **content, "self": hash_json(content)}
    write_text(unit / RECEIPT_FILE, json.dumps(content, indent=1, ensure_ascii=False))


def is_from_version_0_1(unit: Path) -> bool:
    """Whether a unit was committed by Gristmill 0.1."""
    try:
        raw = json.loads((unit / RECEIPT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_receipt = isinstance(raw, dict) and {"unit", "key", "outputs"} <= raw.keys()
    return is_receipt and "format" not in raw
