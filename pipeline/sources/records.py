"""Bytes to lines, lines to records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

NEWLINE = ord("\n")
SURROGATES = re.compile("[\ud800-\udfff]")
MAX_LINE_BYTES = 16_000_000  # bytes of a line: a tokenizer wants 120 to 220 times that
EXCERPT_CHARS = 200  # characters of a line that is put aside
MALFORMED = {"reason": str, "line": int, "text": str}
FIELDS = 12  # that are named, where the one that was asked for is not there


class LineReader:
    """A stream of bytes, handed out in pieces that end at line ends.

    Args:
        blocks: The bytes, cut anywhere.
        counted: Whether lines are counted.

    Attributes:
        line: Lines handed out so far.
        offset: Bytes handed out so far.
    """

    def __init__(self, blocks: Iterable[bytes], counted: bool = True) -> None:
        self.lines_read = self.bytes_read = 0
        self._counted = counted
        self._blocks = iter(blocks)
        self._rest, self._at = b"", 0

    def has_more(self) -> bool:
        """Whether there is anything left to hand out."""
        while self._at == len(self._rest):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._rest, self._at = block, 0
        return True

    def pieces(self, size: int) -> Iterator[bytes]:
        """Hand out at least `size` bytes, up to the end of the line that reaches them.

        The cut depends on the text alone. The last line gets the line end it may lack.
        """
        taken = 0
        while self.has_more():
            block, start = self._rest, self._at
            cut = block.find(b"\n", start + max(0, size - taken - 1)) + 1
            self._at = cut or len(block)
            piece = block[start : self._at] if start or cut else block
            taken += len(piece)
            yield self._count(piece)
            if cut:
                return
            last = block[-1:]
        if taken and last != b"\n":
            yield self._count(b"\n")

    def whole_lines(self, size: int, max_line_bytes: int) -> Iterator[bytes]:
        """Hand out blocks of whole lines, of at least `size` bytes each.

        Of a line of more than `max_line_bytes` bytes the rest may be missing, though not the first
        `max_line_bytes` + 1: a file without line ends does not fill the memory.
        """
        while self.has_more():
            parts, held, last = [], 0, b""
            for piece in self.pieces(size):
                if (
                    held <= size + max_line_bytes
                ):  # the last line begins within the first `size` bytes
                    parts.append(piece)
                    held += len(piece)
                    last = piece[-1:]
            if last != b"\n":
                parts.append(b"\n")
            yield parts[0] if len(parts) == 1 else b"".join(parts)

    def _count(self, block: bytes) -> bytes:
        if self._counted:
            import numpy as np

            # five times as fast as bytes.count, and other threads may run
            self.lines_read += int(np.count_nonzero(np.frombuffer(block, np.uint8) == NEWLINE))
        self.bytes_read += len(block)
        return block


@dataclass(frozen=True)
class Record:
    """A document: its text, its id if it has one, and what decides its split, if not the text."""

    text: str
    id: str | None
    group: str | None


@dataclass(frozen=True)
class MissingField:
    """A text field that a record does not have.

    `field`: its name. `names`: the fields that the record has, as a list to show. `suggestion`: the
    field that most likely holds the text; empty if none does.
    """

    field: str
    names: str
    suggestion: str = ""


@dataclass(frozen=True)
class MalformedRecord:
    """A malformed line and the reason.

    `line` and `text` say where the line is and how it begins, for a row of a table, whose JSON line
    does not say it. `missing` is set where the reason is a missing text field.
    """

    reason: str
    line: int | None = None
    text: str | None = None
    missing: MissingField | None = None


def malformed(reason: str, line: int, text: str = "") -> bytes:
    """The line of JSON that stands for a row that is no record."""
    told = {"reason": reason, "line": line, "text": text[:EXCERPT_CHARS]}
    return msgspec.json.encode({"malformed": told}) + b"\n"


class RecordParser:
    """Lines of JSON to records.

    Args:
        text_field: Where the text stands; dots go into nested objects. A list of strings is joined
            by blank lines.
        id_field: Where the id stands; without it, or where it is missing, a record has none.
        split_by: Where the value stands that decides the split; without it, the text does.
        max_line_bytes: Bytes of a line; a longer one is no record.
    """

    def __init__(
        self,
        text_field: str,
        id_field: str | None,
        split_by: str | None,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.text_field = text_field.split(".")
        self.id_field = id_field.split(".") if id_field else None
        self.split_by = split_by.split(".") if split_by else None
        self.max_line_bytes = max_line_bytes

    def parse(self, line: bytes) -> Record | MalformedRecord | None:
        """A record, the reason why there is none, or None where the line or its text is blank."""
        if len(line) > self.max_line_bytes:
            return MalformedRecord(
                f"longer than {self.max_line_bytes} bytes, see tokenize.max_line_bytes"
            )
        line = line.strip(b"\xef\xbb\xbf\r\n\t ")
        if not line:
            return None
        try:
            value = _decode(line)
        except ValueError as error:
            return MalformedRecord(f"not JSON: {error}")
        text = value if isinstance(value, str) else _at(value, self.text_field)
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = "\n\n".join(text)
        if text is None:
            return self._without_text(value)
        if not isinstance(text, str):
            return MalformedRecord(
                f"field {'.'.join(self.text_field)} is {type(text).__name__}, not text"
            )
        name = _at(value, self.id_field) if self.id_field else None
        group = _at(value, self.split_by) if self.split_by else None
        return self.record(text, name, group)

    def record(self, text: str, name: Any, group: Any) -> Record | None:
        """The record of these values; None where the text is blank."""
        if not text or text.isspace():
            return None
        return Record(
            text,
            None if name is None else str(name),
            None if group in (None, "") else str(group),
        )

    def _without_text(self, value: Any) -> MalformedRecord | None:
        """None for a text that is null; else what stands there in its place."""
        *path, name = self.text_field
        parent = _at(value, path)
        if isinstance(parent, dict) and name in parent:
            return None
        row = value.get("malformed") if isinstance(value, dict) else None
        if isinstance(row, dict) and {k: type(v) for k, v in row.items()} == MALFORMED:
            return MalformedRecord(**row)
        field = ".".join(self.text_field)
        if not isinstance(value, dict):
            return MalformedRecord(f"no field {field}: it is {type(value).__name__}, not an object")
        fields = dict(_fields(value))
        names = ", ".join(name[:40] for name in islice(fields, FIELDS))
        names += "…" if len(fields) > FIELDS else ""
        texts = [
            name
            for name, inner in fields.items()
            if isinstance(inner, str)
            and re.fullmatch(r"[\w.-]+", name)
            and _at(value, name.split(".")) is inner
        ]
        suggestion = max(texts, key=lambda name: len(fields[name]), default="")
        reason = f"no field {field}" + (f"; its fields are {names}" if names else "")
        return MalformedRecord(reason, missing=MissingField(field, names, suggestion))


def _decode(line: bytes) -> Any:
    """JSON to Python. A lone surrogate escape, which UTF-8 cannot hold, becomes U+FFFD."""
    try:
        return msgspec.json.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # the standard library also takes lone surrogates, and NaN as pandas writes it
    try:
        return _repair(json.loads(line))
    except json.JSONDecodeError as error:  # whose own words speak of a line 1
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _repair(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_repair(k): _repair(v) for k, v in value.items()}
    return [_repair(v) for v in value] if isinstance(value, list) else value


def _fields(value: dict[str, Any], before: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """The fields of an object by their names as `text_field` takes them."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner and depth:
            yield from _fields(inner, f"{before}{name}.", depth - 1)
        else:
            yield before + name, inner


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
