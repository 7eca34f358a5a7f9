"""Refuse tables that parse, but not as they were meant: lost rows, a missing or doubled header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from pipeline.core.errors import CorruptInput
from pipeline.core.registry import Dataset
from pipeline.sources.archives import Member
from pipeline.sources.csv_dialect import MIN_INNER_ROWS, Dialect
from pipeline.sources.records import MAX_LISTED_FIELDS

MAX_FIELD_LINES = 1000
LONG_FIELD_BYTES = 1_000_000
MIN_INNER_LINES = 20  # of all fields, where each has few
ROW_SHARE = 0.9  # of the lines of a field
MIN_OTHER_ROWS = 10  # before one field can be said to hold most of the lines
SAMPLE_ROWS = 20
MAX_NAME_CHARS = 80  # longer text is not the name of a column
IF_TEXT = 'If quotes are part of the text: ARGS="dataset.quoting=none"'
IF_ENCLOSING = f'{IF_TEXT}. If they enclose fields: ARGS="dataset.quoting=double"'


def open_quote(member: Member, line: int, certain: bool) -> CorruptInput:
    """The error for a file that ends in the middle of a row that begins at a line.

    It may be truncated; if it is not `certain` that quotes enclose fields, they may also be text.
    """
    problem = f"ends in the middle of a row: a quote in the row at line {line} is never closed"
    return member.damage(problem, "" if certain else IF_TEXT)


class RowGuard:
    """Refuses fields that swallowed rows, because a quote in the text opened them.

    Args:
        member: The file.
        dialect: Its dialect, with quotes that enclose fields.
    """

    def __init__(self, member: Member, dialect: Dialect) -> None:
        self._member, self._dialect = member, dialect
        self._rows = 0
        self._longest = (0, 0)  # lines and first line of the field with most lines
        self._inner_lines = self._inner_rows = 0  # of all fields of several lines

    def check(self, row: Sequence[str], line: int) -> None:
        """Look at a row that begins at a line.

        Raises:
            CorruptInput: A field of it looks like several rows.
        """
        self._rows += 1
        for field in row:
            breaks = field.count("\n")
            if breaks:
                self._longest = max(self._longest, (breaks, line))
                if breaks > 1 and self._looks_like_rows(field, len(row)):
                    raise self._refusal(line, f"field of {breaks + 1} lines, each like a row")
                if breaks > MAX_FIELD_LINES or len(field) > LONG_FIELD_BYTES:
                    raise self._refusal(line, f"field of {breaks + 1} lines, which is unusual")
            line += breaks

    def check_malformed(self, line: int, last_line: int) -> None:
        """Raise `CorruptInput` if a malformed row, given its lines, may have swallowed others."""
        breaks = last_line - line
        if breaks > MIN_INNER_ROWS:
            raise self._refusal(line, f"malformed row of {breaks + 1} lines")

    def check_file(self, lines: int) -> None:
        """Raise `CorruptInput` if one field has most of the lines of a file that ends at a line."""
        breaks, line = self._longest
        if self._rows > MIN_OTHER_ROWS and breaks > MIN_INNER_ROWS and breaks > lines / 2:
            what = f"field of {breaks + 1} lines, more than half of the file's {lines}"
            raise self._refusal(line, what)

    def _looks_like_rows(self, field: str, columns: int) -> bool:
        """Whether lines inside fields have as many columns as the table, which has several.

        Few lines of one field may do so by chance, but not most lines of all fields so far.
        """
        inner = field.split("\n")[1:-1]
        if columns == 1:
            return False
        delimiter = self._dialect.delimiter
        rows = sum(
            len(row) == columns
            for row in csv.reader(inner, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        )
        self._inner_lines += len(inner)
        self._inner_rows += rows
        enough = len(inner) >= MIN_INNER_ROWS or self._inner_lines >= MIN_INNER_LINES
        alike = rows >= ROW_SHARE * len(inner)
        return alike and enough and self._inner_rows >= ROW_SHARE * self._inner_lines

    def _refusal(self, line: int, what: str) -> CorruptInput:
        problem = f"has a {what}; its quote opens at line {line}"
        return self._member.damage(problem, IF_ENCLOSING)


def check_header(
    header: Sequence[str], rows: Iterator[list[str]], member: Member, dataset: Dataset
) -> None:
    """Refuse a header without the text column, or one that names a column twice.

    Args:
        header: The names.
        rows: The rows after it; some are read where the header is refused.
        member: The file.
        dataset: Says which columns are needed.

    Raises:
        InputError: The file cannot be read as the settings say.
    """
    needed = [f for f in (dataset.text_field, dataset.id_field, dataset.split_by) if f]
    for name in needed:
        if header.count(name) > 1:
            raise member.refusal(f"has {header.count(name)} columns named {name}", "Rename one")
    if dataset.text_field in header or not header:  # an empty file has no rows
        return
    if header[:1] and header[0].startswith("{"):
        hint = 'Rename it, or say what it holds: ARGS="dataset.form=jsonl"'
        raise member.refusal("holds JSON, not a table", hint)
    if any(len(name) > MAX_NAME_CHARS for name in header):
        names = ",".join(f"c{number}" for number in range(1, len(header) + 1))
        raise member.refusal(
            f"has no header: its first row begins {header[0][:40]!r}",
            f'Name its columns, one of them {dataset.text_field}: ARGS="dataset.columns=[{names}]"',
        )
    shown = ", ".join(name[:40] for name in islice(header, MAX_LISTED_FIELDS))
    lengths = [0] * len(header)
    for row in islice(rows, SAMPLE_ROWS):
        if len(row) == len(header):
            lengths = [total + len(field) for total, field in zip(lengths, row, strict=True)]
    hint = ""
    longest = header[max(range(len(header)), key=lambda number: lengths[number])]
    if re.fullmatch(r"[\w.-]+", longest):  # else it takes quotes to type it
        hint = f'Name the column with the text: ARGS="dataset.text_field={longest}"'
    raise member.refusal(f"has no column {dataset.text_field}; its columns are {shown}", hint)


def decode_utf8_or_cp1252(field: str) -> str:
    """A field that was decoded as latin-1, in its own encoding."""
    raw = field.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")
