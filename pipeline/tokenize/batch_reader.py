"""Blocks of lines to columns: texts, ids and what decides their split, with little work a document.

Most blocks are what they should be and are decoded at one go, only the fields that are wanted; in
any other each line is judged by itself, and by `RecordParser.parse`
where it is not what it should be.
So a field that nobody asks for need not be sound, where the rest of its line is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from types import NoneType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.sources.records import MalformedRecord, Record, RecordParser

NEWLINE, OPEN, CLOSE = b"\n{}"


@dataclass
class Batch:
    """What a block of lines holds.

    `texts`, `ids` (None where there is none), `groups` (what decides the split in place of the
    text, or None) and `lines` (index of the line in the block) go together. `bad` are lines that
    are no records: index, line, why. `blank` lines have no text; `count` are all.
    """

    texts: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    bad: list[tuple[int, bytes, MalformedRecord]] = field(default_factory=list)
    blank: int = 0
    count: int = 0


class BatchReader:
    """Reads blocks of whole lines.

    Args:
        reader: Where the fields stand, and the judge of odd lines.
    """

    def __init__(self, reader: RecordParser) -> None:
        self._reader = reader
        self._decoder: Any = None
        self._text: Any = None
        self._id: Any = None
        self._group: Any = None
        wanted: Wanted = [("text", reader.text_field, str)]
        wanted += [
            (name, path, Any)
            for name, path in (("id", reader.id_field), ("group", reader.split_by))
            if path
        ]
        shape = _shape(wanted)
        if shape:
            self._decoder = msgspec.json.Decoder(shape[0])
            self._text, self._id, self._group = (
                _getter(shape[1].get(name)) for name in ("text", "id", "group")
            )

    def read(self, block: bytes) -> Batch:
        """The records of a block that ends with a line end."""
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE)
        rows = self._at_one_go(block, ends)
        if rows is None:
            return self._one_by_one(block.split(b"\n")[:-1])
        texts = self._text(rows)
        ids = self._id(rows) if self._id else [None] * len(rows)
        groups = self._group(rows) if self._group else [None] * len(rows)
        lines: Iterable[int] = range(len(rows))
        if not all(texts) or any(map(str.isspace, texts)):
            lines = [n for n, text in enumerate(texts) if text and not text.isspace()]
            texts, ids, groups = ([column[n] for n in lines] for column in (texts, ids, groups))
        return Batch(
            texts=texts,
            ids=_as_text(ids),
            groups=[value or None for value in _as_text(groups)],
            lines=list(lines),
            blank=len(rows) - len(texts),
            count=len(rows),
        )

    def _at_one_go(self, block: bytes, ends: npt.NDArray[np.int64]) -> list[Any] | None:
        """The rows of a block in which each line is an object as it is wanted, else None.

        The decoder takes any space between values. Where every line begins with { and ends with },
        none of them can go on in the next; so as many values as lines are one a line.
        """
        if self._decoder is None or len(block) > self._reader.max_line_bytes:
            return None
        data = np.frombuffer(block, np.uint8)
        if (
            data[0] != OPEN
            or (data[ends[:-1] + 1] != OPEN).any()
            or (data[ends - 1] != CLOSE).any()
        ):
            return None
        try:
            rows: list[Any] = self._decoder.decode_lines(block)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return rows if len(rows) == len(ends) else None

    def _one_by_one(self, lines: list[bytes]) -> Batch:
        batch = Batch(count=len(lines))
        for number, line in enumerate(lines):
            record = self._judge(line)
            if isinstance(record, Record):
                batch.texts.append(record.text)
                batch.ids.append(record.id)
                batch.groups.append(record.group)
                batch.lines.append(number)
            elif isinstance(record, MalformedRecord):
                batch.bad.append((number, line, record))
            else:
                batch.blank += 1
        return batch

    def _judge(self, line: bytes) -> Record | MalformedRecord | None:
        """As `RecordParser.parse`; a well-formed line is read as in a block."""
        if self._decoder and line[:1] == b"{" and len(line) <= self._reader.max_line_bytes:
            try:
                row = self._decoder.decode(line)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return self._reader.parse(line)
            return self._reader.make_record(
                *self._text([row]),
                *(self._id([row]) if self._id else [None]),
                *(self._group([row]) if self._group else [None]),
            )
        return self._reader.parse(line)


Wanted = list[tuple[str, list[str], Any]]
Column = Callable[[list[Any]], list[Any]]


def _shape(wanted: Wanted) -> tuple[Any, dict[str, list[str]]] | None:
    """A struct for the wanted fields, each (name, path, type), and where each is in it.

    None where one path ends within another.
    """
    tree: dict[str, Wanted] = {}
    for name, path, kind in wanted:
        tree.setdefault(path[0], []).append((name, path[1:], kind))
    fields: list[tuple[Any, ...]] = []
    keys: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    for number, (key, inner) in enumerate(tree.items()):
        attribute = f"f{number}"
        if len(inner) == 1 and not inner[0][1]:
            kind = inner[0][2]
            places[inner[0][0]] = [attribute]
        else:
            deeper = _shape(inner) if all(path for _, path, _ in inner) else None
            if deeper is None:
                return None
            kind = deeper[0]
            places |= {name: [attribute, *rest] for name, rest in deeper[1].items()}
        needed = any(kind is str for _, _, kind in inner)
        fields.append((attribute, kind) if needed else (attribute, kind | None, None))
        keys[attribute] = key
    fields.sort(key=len)  # those without a default come first
    return msgspec.defstruct("Row", fields, rename=keys, gc=False), places


def _getter(place: list[str] | None) -> Column | None:
    """What gives the values that stand there, of rows; None where one has no such object."""
    if place is None:
        return None
    at_once = attrgetter(".".join(place))

    def get(row: Any) -> Any:
        for name in place:
            row = None if row is None else getattr(row, name)
        return row

    def column(rows: list[Any]) -> list[Any]:
        try:
            return list(map(at_once, rows))
        except AttributeError:  # None has none: an object on the way is missing
            return list(map(get, rows))

    return column


def _as_text(values: list[Any]) -> list[Any]:
    """Values as text; None stays. Mostly all are text, which is seen without a step for each."""
    if set(map(type, values)) <= {str, NoneType}:
        return values
    return [value if value is None else str(value) for value in values]
