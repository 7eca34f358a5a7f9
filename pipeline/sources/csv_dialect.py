"""The dialect of a CSV or TSV file: its delimiter, and whether quotes enclose fields.

What the settings leave open is decided from the beginning of the file. Anything but the default of
the format is taken only where all sampled rows agree.
"""

from __future__ import annotations

import csv
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


@dataclass(frozen=True)
class _Sample:
    """The first lines of a file; `cut`: whether more follow."""

    lines: list[str]
    cut: bool

    def rows(self, dialect: Dialect, max_open_lines: int) -> list[list[str]] | None:
        """The rows of the sample; None if they cannot be read in a dialect.

        Args:
            dialect: The dialect.
            max_open_lines: How many lines the last row may have that the end of the sample cuts.
        """
        reader = csv.reader(self.lines, strict=True, **dialect.reader_options)
        rows, first = list[list[str]](), 0
        try:
            for row in reader:
                rows.append(row)
                first = reader.line_num
        except csv.Error as error:
            is_open = self.cut and "unexpected end" in str(error)
            return rows if is_open and len(self.lines) - first <= max_open_lines else None
        return rows

    def widths(self, dialect: Dialect) -> set[int]:
        """The numbers of columns of the rows; empty if they cannot be read."""
        return {len(row) for row in self.rows(dialect, len(self.lines)) or ()}


def find_dialect(head: str, whole: bool, tabs: bool, delimiter: str, quoting: str) -> Dialect:
    """The dialect of a file.

    Args:
        head: How it begins.
        whole: Whether that is the whole file; if not, its last line may be cut.
        tabs: Whether its name or the settings say that it is TSV.
        delimiter: `auto`, or a name in `DELIMITERS`.
        quoting: `auto`, `double` or `none`.
    """
    complete = head if whole else head.rpartition("\n")[0] or head
    lines = [f"{line}\n" for line in complete.split("\n") if line.strip()] or [""]
    sample = _Sample(lines[:MAX_SAMPLE_LINES], not whole or len(lines) > MAX_SAMPLE_LINES)
    expected = "tab" if tabs else "comma"
    dialect = Dialect(DELIMITERS[expected if delimiter == "auto" else delimiter], quoting != "none")
    if delimiter == "auto":
        dialect = replace(dialect, delimiter=_find_delimiter(sample, dialect))
    if quoting == "auto" and _quotes_are_text(sample, dialect):
        dialect = replace(dialect, quoted=False)
    certain = quoting != "auto" or all(map(_is_enclosed, _fields(lines[0], dialect)))
    return replace(dialect, certain=certain)


def _find_delimiter(sample: _Sample, dialect: Dialect) -> str:
    """The expected delimiter, unless it occurs in no header and another splits all rows alike."""
    header = _Sample(sample.lines[:1], cut=True)
    if header.widths(dialect) != {1} or len(sample.lines) < 2:
        return dialect.delimiter
    for delimiter in DELIMITERS.values():
        widths = sample.widths(replace(dialect, delimiter=delimiter))
        if len(widths) == 1 and min(widths) > 1:
            return delimiter
    return dialect.delimiter


def _quotes_are_text(sample: _Sample, dialect: Dialect) -> bool:
    """Whether all lines are rows of one width, but not if quotes enclose fields."""
    widths = sample.widths(replace(dialect, quoted=False))
    if len(widths) != 1 or min(widths) < 2:
        return False
    rows = sample.rows(dialect, MIN_INNER_ROWS)
    if rows is None:
        return True
    swallowed = any(field.count("\n") > MIN_INNER_ROWS for row in rows for field in row)
    return swallowed or len({len(row) for row in rows}) > 1


def _fields(line: str, dialect: Dialect) -> list[str]:
    """What stands between the delimiters of a line."""
    return line.rstrip("\r\n").split(dialect.delimiter)


def _is_enclosed(field: str) -> bool:
    """Whether a field is enclosed in quotes, and all others in it are doubled."""
    inner = field[1:].replace('""', "")
    return field[:1] == inner[-1:] == '"' and '"' not in inner[:-1]
