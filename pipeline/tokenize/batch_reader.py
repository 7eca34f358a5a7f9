"""Blocks of JSON lines to columns of texts, ids and groups, with little work per document.

Most blocks are well-formed and are decoded in one call, which reads only the fields that are used.
In any other block each line is decoded alone, and `RecordParser.parse` handles the lines for which
that fails. So an invalid value in a field that is not used does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
class DocumentBatch:
    """The documents of a block of lines.

    `texts`, `ids` (or None), `groups` (the value that decides the split instead of the text, or
    None) and `lines` (index of the line in the block) have one entry per document. `malformed`:
    index, line and reason of each malformed line. `blank`: number of lines without text. `count`:
    number of lines.
    """

    texts: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    malformed: list[tuple[int, bytes, MalformedRecord]] = field(default_factory=list)
    blank: int = 0
    count: int = 0


class BatchReader:
    """Reads blocks of whole lines.

    Args:
        parser: Names the fields, and parses the lines that are not well-formed.
    """

    def __init__(self, parser: RecordParser) -> None:
        self._parser = parser
        self._decoder: Any = None
        self._text: Any = None
        self._id: Any = None
        self._group: Any = None
        names = {"text": parser.text_field, "id": parser.id_field, "group": parser.split_by}
        fields: Fields = [
            (key, name.split("."), str if key == "text" else Any)
            for key, name in names.items()
            if name
        ]
        # a name with a dot may also be the name of one field
        dotted = sorted({name for name in names.values() if name and "." in name})
        struct = _define_struct(fields, dotted)
        self._dotted = [attrgetter(f"d{number}") for number in range(len(dotted))]
        if struct:
            self._decoder = msgspec.json.Decoder(struct[0])
            self._text, self._id, self._group = (
                _column_getter(struct[1].get(name)) for name in ("text", "id", "group")
            )

    def read(self, block: bytes) -> DocumentBatch:
        """The documents of a block, which must end with a newline."""
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE)
        rows = self._decode_block(block, ends)
        if rows is None:
            return self._decode_lines(block.split(b"\n")[:-1])
        texts = self._text(rows)
        ids = self._id(rows) if self._id else [None] * len(rows)
        groups = self._group(rows) if self._group else [None] * len(rows)
        lines: Iterable[int] = range(len(rows))
        if not all(texts) or any(map(str.isspace, texts)):
            lines = [n for n, text in enumerate(texts) if text and not text.isspace()]
            texts, ids, groups = ([column[n] for n in lines] for column in (texts, ids, groups))
        return DocumentBatch(
            texts=texts,
            ids=_as_text(ids),
            groups=[value or None for value in _as_text(groups)],
            lines=list(lines),
            blank=len(rows) - len(texts),
            count=len(rows),
        )

    def _decode_block(self, block: bytes, ends: npt.NDArray[np.int64]) -> list[Any] | None:
        """The rows of a block in which each line is a well-formed object, else None.

        The decoder accepts any white space between values. Where every line begins with { and ends
        with }, no value continues on the next line. So if there are as many values as lines, each
        line is one value.
        """
        if self._decoder is None or len(block) > self._parser.max_line_bytes:
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
        return rows if len(rows) == len(ends) and not self._any_dotted(rows) else None

    def _any_dotted(self, rows: list[Any]) -> bool:
        """Whether a row has a field with a dot in its name, which comes before a nested one."""
        return any(list(map(get, rows)).count(msgspec.UNSET) < len(rows) for get in self._dotted)

    def _decode_lines(self, lines: list[bytes]) -> DocumentBatch:
        batch = DocumentBatch(count=len(lines))
        for number, line in enumerate(lines):
            record = self._parse(line)
            if isinstance(record, Record):
                batch.texts.append(record.text)
                batch.ids.append(record.id)
                batch.groups.append(record.group)
                batch.lines.append(number)
            elif isinstance(record, MalformedRecord):
                batch.malformed.append((number, line, record))
            else:
                batch.blank += 1
        return batch

    def _parse(self, line: bytes) -> Record | MalformedRecord | None:
        """Decode a well-formed line as `_decode_block` does, any other by `RecordParser.parse`."""
        if self._decoder and line[:1] == b"{" and len(line) <= self._parser.max_line_bytes:
            try:
                row = self._decoder.decode(line)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return self._parser.parse(line)
            if self._any_dotted([row]):
                return self._parser.parse(line)
            return self._parser.make_record(
                *self._text([row]),
                *(self._id([row]) if self._id else [None]),
                *(self._group([row]) if self._group else [None]),
            )
        return self._parser.parse(line)


Fields = list[tuple[str, list[str], Any]]  # name, path and type of each
ColumnGetter = Callable[[list[Any]], list[Any]]


def _define_struct(
    fields: Fields, dotted: Sequence[str] = ()
) -> tuple[Any, dict[str, list[str]]] | None:
    """A msgspec struct of the fields, and the attributes that lead to each by its name.

    The attributes `d0`, `d1`, … hold the fields named in `dotted`, or UNSET. None where one path is
    the beginning of another.
    """
    tree: dict[str, Fields] = {}
    for name, path, type_ in fields:
        tree.setdefault(path[0], []).append((name, path[1:], type_))
    definitions: list[tuple[Any, ...]] = []
    keys: dict[str, str] = {}
    attributes: dict[str, list[str]] = {}
    for number, (key, inner) in enumerate(tree.items()):
        attribute = f"f{number}"
        if len(inner) == 1 and not inner[0][1]:
            type_ = inner[0][2]
            attributes[inner[0][0]] = [attribute]
        else:
            nested = _define_struct(inner) if all(path for _, path, _ in inner) else None
            if nested is None:
                return None
            type_ = nested[0]
            attributes |= {name: [attribute, *rest] for name, rest in nested[1].items()}
        required = any(type_ is str for _, _, type_ in inner)
        definitions.append((attribute, type_) if required else (attribute, type_ | None, None))
        keys[attribute] = key
    for number, key in enumerate(dotted):
        definitions.append((f"d{number}", Any, msgspec.UNSET))
        keys[f"d{number}"] = key
    definitions.sort(key=len)  # fields without a default come first
    return msgspec.defstruct("Row", definitions, rename=keys, gc=False), attributes


def _column_getter(attributes: list[str] | None) -> ColumnGetter | None:
    """A function that gets one field of each row; None for a row without the enclosing object."""
    if attributes is None:
        return None
    get_fast = attrgetter(".".join(attributes))

    def get(row: Any) -> Any:
        for name in attributes:
            row = None if row is None else getattr(row, name)
        return row

    def column(rows: list[Any]) -> list[Any]:
        try:
            return list(map(get_fast, rows))
        except AttributeError:  # an enclosing object is None
            return list(map(get, rows))

    return column


def _as_text(values: list[Any]) -> list[Any]:
    """Values as text; None stays. The common case, all text, is checked without a Python loop."""
    if set(map(type, values)) <= {str, NoneType}:
        return values
    return [value if value is None else str(value) for value in values]
