"""Split bytes into lines, parse lines into records."""

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
MAX_LINE_BYTES = 16_000_000  # default; a tokenizer needs 120 to 220 times as much memory
EXCERPT_CHARS = 200  # of a malformed line
STRIPPED_BYTES = b"\xef\xbb\xbf\r\n\t \0"  # byte order mark, white space, runs of NUL
MALFORMED_TYPES = {"reason": str, "line": int, "text": str}
MAX_LISTED_FIELDS = 12  # of a record without the text field


class LineReader:
    """Splits a stream of bytes at line ends.

    Args:
        blocks: The bytes; lines may cross blocks.
        counted: Whether to count lines.

    Attributes:
        lines_read: Lines returned so far.
        bytes_read: Bytes returned so far.
    """

    def __init__(self, blocks: Iterable[bytes], counted: bool = True) -> None:
        self.lines_read = self.bytes_read = 0
        self._counted = counted
        self._blocks = iter(blocks)
        self._block, self._at = b"", 0

    def has_more(self) -> bool:
        """Whether there are more bytes."""
        while self._at == len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._block, self._at = block, 0
        return True

    def next_lines(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes and the rest of the line that they end in.

        The total depends only on the text, not on its blocks. A missing line end after the last
        line is added.
        """
        taken = 0
        while self.has_more():
            block, start = self._block, self._at
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
        """Yield blocks of complete lines, each of at least `size` bytes.

        A longer line than `max_line_bytes` may be truncated, but not to `max_line_bytes` or less.
        So a file without line ends does not fill the memory.
        """
        while self.has_more():
            parts, held, last = [], 0, b""
            for piece in self.next_lines(size):
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

            # five times as fast as bytes.count, and releases the GIL
            self.lines_read += int(np.count_nonzero(np.frombuffer(block, np.uint8) == NEWLINE))
        self.bytes_read += len(block)
        return block


@dataclass(frozen=True)
class Record:
    """A document.

    `id`: None if it has none. `group`: decides the split; None if the text does.
    """

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


def malformed_line(reason: str, line: int, text: str = "") -> bytes:
    """The JSON line for a malformed row; `RecordParser` reads it as a `MalformedRecord`."""
    row = {"reason": reason, "line": line, "text": text[:EXCERPT_CHARS]}
    return msgspec.json.encode({"malformed": row}) + b"\n"


class RecordParser:
    """Parses JSON lines into records.

    Args:
        text_field: The field with the text: a field of that name, else dots separate nested fields.
            A list of strings is joined with blank lines.
        id_field: The field with the id, if any.
        split_by: The field whose value decides the split; None if the text does.
        max_line_bytes: Longer lines are malformed.
    """

    def __init__(
        self,
        text_field: str,
        id_field: str | None,
        split_by: str | None,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.text_field, self.id_field, self.split_by = text_field, id_field, split_by
        self.max_line_bytes = max_line_bytes

    def parse(self, line: bytes) -> Record | MalformedRecord | None:
        """Parse a line; returns None if the line or its text is blank."""
        if len(line) > self.max_line_bytes:
            return MalformedRecord(
                f"longer than {self.max_line_bytes} bytes, see tokenize.max_line_bytes"
            )
        line = line.strip(STRIPPED_BYTES)
        if not line:
            return None
        try:
            value = _decode(line)
        except ValueError as error:
            return MalformedRecord(f"not JSON: {error}")
        text = value if isinstance(value, str) else get_field(value, self.text_field)
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = "\n\n".join(text)
        if text is None:
            return self._explain_missing_text(value)
        if not isinstance(text, str):
            return MalformedRecord(f"field {self.text_field} is {type(text).__name__}, not text")
        name = get_field(value, self.id_field) if self.id_field else None
        group = get_field(value, self.split_by) if self.split_by else None
        return self.make_record(text, name, group)

    def make_record(self, text: str, name: Any, group: Any) -> Record | None:
        """A record of these values; None if the text is blank."""
        if not text or text.isspace():
            return None
        return Record(
            text,
            None if name is None else str(name),
            None if group in (None, "") else str(group),
        )

    def _explain_missing_text(self, value: Any) -> MalformedRecord | None:
        """The error for a record without the text field; None if the text is null."""
        path, _, name = self.text_field.rpartition(".")
        parent = get_field(value, path) if path else value
        if isinstance(parent, dict) and name in parent:
            return None
        if isinstance(value, dict) and self.text_field in value:
            return None
        row = value.get("malformed") if isinstance(value, dict) else None
        if isinstance(row, dict) and {k: type(v) for k, v in row.items()} == MALFORMED_TYPES:
            return MalformedRecord(**row)
        field = self.text_field
        if not isinstance(value, dict):
            return MalformedRecord(f"no field {field}: it is {type(value).__name__}, not an object")
        fields = dict(_flatten(value))
        names = ", ".join(name[:40] for name in islice(fields, MAX_LISTED_FIELDS))
        names += "…" if len(fields) > MAX_LISTED_FIELDS else ""
        texts = [
            name
            for name, inner in fields.items()
            if isinstance(inner, str)
            and re.fullmatch(r"[\w.-]+", name)
            and get_field(value, name) is inner
        ]
        suggestion = max(texts, key=lambda name: len(fields[name]), default="")
        reason = f"no field {field}" + (f"; its fields are {names}" if names else "")
        return MalformedRecord(reason, missing=MissingField(field, names, suggestion))


def _decode(line: bytes) -> Any:
    """Decode JSON. Escaped lone surrogates, which UTF-8 cannot encode, become U+FFFD."""
    try:
        return msgspec.json.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # the json module also accepts lone surrogates, and NaN as pandas writes it
    try:
        return _replace_surrogates(json.loads(line))
    except json.JSONDecodeError as error:  # its own message adds a line number, always 1
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()}
    return [_replace_surrogates(v) for v in value] if isinstance(value, list) else value


def _flatten(value: dict[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """The nested fields of an object, named as in `text_field`."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner and depth:
            yield from _flatten(inner, f"{prefix}{name}.", depth - 1)
        else:
            yield prefix + name, inner


def get_field(value: Any, name: str) -> Any:
    """A field of an object by its name, else by dots as nested fields; None if there is none."""
    if isinstance(value, dict) and name in value:
        return value[name]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
