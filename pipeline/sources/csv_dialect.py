"""The dialect of a CSV or TSV file: its delimiter, and whether quotes enclose fields.

What the settings leave open is decided from the beginning of the file. Anything but the default of
the format is taken only where all sampled rows agree.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
MAX_SAMPLE_LINES = 1000
MIN_INNER_ROWS = 4  # so many lines of one field that look like rows are no coincidence


@dataclass(frozen=True)
class Dialect:
    """How the rows of a file are written.

    `delimiter`: one character. `quoted`: whether `"` encloses fields. `certain`: whether the
    settings or a header in quotes say so.
    """

    delimiter: str = ","
    quoted: bool = True
    certain: bool = True

    @property
    def reader_options(self) -> dict[str, Any]:
        """Arguments of `csv.reader`."""
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return {"delimiter": self.delimiter, "quoting": quoting}


def find_dialect(head: str, tabs: bool, delimiter: str, quoting: str) -> Dialect:
    """The dialect of a file.

    Args:
        head: How it begins; the last line may be cut off.
        tabs: Whether its name or the settings say that it is TSV.
        delimiter: `auto`, or a name in `DELIMITERS`.
        quoting: `auto`, `double` or `none`.
    """
    whole, _, _ = head.rpartition("\n")
    lines = [f"{line}\n" for line in (whole or head).split("\n") if line.strip()]
    lines = lines[:MAX_SAMPLE_LINES] or [""]
    expected = "tab" if tabs else "comma"
    dialect = Dialect(DELIMITERS[expected if delimiter == "auto" else delimiter], quoting != "none")
    if delimiter == "auto":
        dialect = replace(dialect, delimiter=_find_delimiter(lines, dialect))
    if quoting == "auto" and _quotes_are_text(lines, dialect):
        dialect = replace(dialect, quoted=False)
    certain = quoting != "auto" or all(map(_is_enclosed, _fields(lines[0], dialect)))
    return replace(dialect, certain=certain)


def _find_delimiter(lines: Sequence[str], dialect: Dialect) -> str:
    """The expected delimiter, unless it occurs in no header and another splits all rows alike."""
    if _widths(lines[:1], dialect) != {1} or len(lines) < 2:
        return dialect.delimiter
    for delimiter in DELIMITERS.values():
        other = replace(dialect, delimiter=delimiter)
        if other != dialect:
            widths = _widths(lines, other)
            if len(widths) == 1 and min(widths) > 1:
                return delimiter
    return dialect.delimiter


def _quotes_are_text(lines: Sequence[str], dialect: Dialect) -> bool:
    """Whether all lines are rows of one width, and quotes that enclose fields would change that."""
    widths = _widths(lines, replace(dialect, quoted=False))
    if len(widths) != 1 or min(widths) < 2:
        return False
    try:
        rows = list(csv.reader(lines, strict=True, **dialect.reader_options))
    except csv.Error:
        return True
    swallowed = any(field.count("\n") > MIN_INNER_ROWS for row in rows for field in row)
    return swallowed or {len(row) for row in rows} != widths


def _fields(line: str, dialect: Dialect) -> list[str]:
    """What stands between the delimiters of a line."""
    return line.rstrip("\r\n").split(dialect.delimiter)


def _is_enclosed(field: str) -> bool:
    """Whether a field is enclosed in quotes, and all others in it are doubled."""
    inner = field[1:].replace('""', "")
    return field[:1] == inner[-1:] == '"' and '"' not in inner[:-1]


def _widths(lines: Sequence[str], dialect: Dialect) -> set[int]:
    """The numbers of columns of the rows; empty if they cannot be read."""
    try:
        return {len(row) for row in csv.reader(lines, strict=True, **dialect.reader_options)}
    except csv.Error:
        return set()
