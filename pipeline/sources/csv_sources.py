"""CSV to JSON lines: any CSV or TSV, and the formats of two sources of the Pile.

CSV is parsed as latin-1, which maps every byte to one character and back. Quotes, commas and line
ends are the same bytes in UTF-8 and cp1252, so the encoding may differ from row to row. A malformed
row becomes a JSON line with the reason; a row without text becomes a record with an empty text.

A quote that is part of the text can swallow the rows up to the next one. Where the settings do not
say that quotes enclose fields, a field that looks like several rows is refused.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.core.registry import Dataset
from pipeline.sources.archives import HEAD_BYTES, Member, peek
from pipeline.sources.csv_dialect import find_dialect
from pipeline.sources.csv_guard import RowGuard, check_header, decode_utf8_or_cp1252, open_quote
from pipeline.sources.records import EXCERPT_CHARS, LineReader, malformed_line
from pipeline.sources.text_encoding import utf8_blocks

Row = Mapping[str, str]
MAX_FIELD_BYTES = 1 << 27  # the default of the csv module is 128 KB
LINE_BATCH_BYTES = 1 << 20
UTF8_BOM = b"\xef\xbb\xbf"
ABSTRACT_HEADINGS = re.compile(
    r"(?:(?:\? "
    r"|description:? ?\((?:provided by|adapted from) (?:the )?(?:applicant|investigator)"
    r"(?:'s abstract)?\):?"
    r"|project summary ?/ ?abstract:?"
    r"|project summary \(see instructions\):) *)+",
    re.IGNORECASE,
)
OPINION_COLUMNS = (
    "plain_text", "html", "html_lawbox", "html_columbia", "html_anon_2020", "html_with_citations",
    "xml_harvard",
)  # fmt: skip


@dataclass(frozen=True)
class CsvFormat:
    """A CSV format.

    Args:
        required_columns: Columns that `to_record` reads; there may be others.
        to_record: Converts a row (decoded as latin-1) to a JSON object; raises `ValueError` with
            the reason if the row is malformed.
        reader_options: Arguments of `csv.reader`; None: they are found for each file.
        tabs: Whether the delimiter is expected to be a tab.
    """

    required_columns: tuple[str, ...]
    to_record: Callable[[Row], dict[str, Any]]
    reader_options: dict[str, Any] | None = None
    tabs: bool = False

    def lines(self, member: Member, dataset: Dataset) -> Iterator[bytes]:
        """One JSON line for each row.

        Raises:
            CorruptInput: The file ends inside a row, or a field looks like several rows.
            InputError: A column is missing or named twice, or there is no header.
        """
        text = _Latin1Lines(utf8_blocks(member))
        options, guard = self.reader_options, None
        if options is None:
            head = text.head.decode("latin-1")
            dialect = find_dialect(
                head, text.is_whole, self.tabs, dataset.delimiter, dataset.quoting
            )
            options = dialect.reader_options
            if dialect.quoted and not dialect.certain:
                guard = RowGuard(member, dialect)
        reader = csv.reader(text.lines(), strict=True, **options)
        with _field_size_limit(MAX_FIELD_BYTES):
            columns = self._find_columns(reader, member, dataset)
            while True:
                line, row = reader.line_num + 1, None
                try:
                    row = next(reader, None)
                    if row is None:
                        break
                    if row:  # skip empty lines
                        if guard:
                            guard.check(row, line)
                        yield self._encode(columns, row)
                except (csv.Error, ValueError) as error:
                    if isinstance(error, csv.Error) and "unexpected end" in str(error):
                        raise open_quote(member, line, guard is None) from None
                    if guard:
                        guard.check_malformed(line, reader.line_num)
                    excerpt = ",".join(row) if row else text.last_line.strip()
                    excerpt = decode_utf8_or_cp1252(excerpt[:EXCERPT_CHARS])
                    yield malformed_line(str(error), line, excerpt)
        if guard:
            guard.check_file(reader.line_num)

    def _find_columns(
        self, reader: Iterator[list[str]], member: Member, dataset: Dataset
    ) -> list[str]:
        """The names of the columns, from the settings or the header."""
        if dataset.columns and self.reader_options is None:
            header = [name.encode().decode("latin-1") for name in dataset.columns]
        else:
            try:
                header = next((row for row in reader if row), [])  # skip empty lines before it
            except csv.Error as error:
                raise member.damage(f"has no header: {error}") from None
        header = [name.strip(" \t\r\n") for name in header]  # in latin-1 others are letters
        if missing := [name for name in self.required_columns if name not in header]:
            raise member.damage(f"has no column {', '.join(missing)}")
        if self.reader_options is None:
            check_header([decode_utf8_or_cp1252(name) for name in header], reader, member, dataset)
        return [name if header.count(name) == 1 else "" for name in header]

    def _encode(self, columns: list[str], row: list[str]) -> bytes:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} columns, {len(columns)} expected")
        return msgspec.json.encode(self.to_record(dict(zip(columns, row, strict=True)))) + b"\n"


class _Latin1Lines:
    """The lines of a file, decoded as latin-1.

    Attributes:
        head: The first bytes of the file.
        is_whole: Whether that is the whole file.
        last_line: The last line that was read.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        head, self._blocks = peek(blocks)
        self.head, self.last_line = head.removeprefix(UTF8_BOM), ""
        self.is_whole = len(head) < HEAD_BYTES

    def lines(self) -> Iterator[str]:
        reader, bom = LineReader(self._blocks), UTF8_BOM
        while reader.has_more():
            data = b"".join(reader.next_lines(LINE_BATCH_BYTES)).removeprefix(bom)
            bom = b""
            # str.splitlines also splits at ten other characters
            for line in data.decode("latin-1").split("\n")[:-1]:
                self.last_line = line
                yield line + "\n"


@contextmanager
def _field_size_limit(size: int) -> Iterator[None]:
    """Set the csv module's limit, which is global, while one file is read."""
    before = csv.field_size_limit(size)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _abstract(row: Row) -> dict[str, Any]:
    """A row of NIH ExPORTER, cleaned as in the Pile.

    Rules: https://github.com/thoppe/The-Pile-NIH-ExPORTER. That code drops bytes that are not
    UTF-8; here such a text is decoded as cp1252.
    """
    number = row["APPLICATION_ID"].strip()
    if not re.fullmatch(r"[0-9]{1,18}", number):
        raise ValueError(f"APPLICATION_ID is {number[:40]!r}, not a number")
    text = decode_utf8_or_cp1252(row["ABSTRACT_TEXT"])
    text = " ".join(text.replace("[unreadable]", "").split())
    heading = ABSTRACT_HEADINGS.match(text)
    text = text[heading.end() if heading else 0 :]
    return {"text": text, "meta": {"APPLICATION_ID": int(number)}}


def _opinion(row: Row) -> dict[str, Any]:
    """A row of CourtListener's opinions; the text is the last column that is not blank.

    The Pile chooses the same: https://github.com/thoppe/The-Pile-FreeLaw
    """
    columns = reversed(OPINION_COLUMNS)
    column = next((name for name in columns if row[name].strip()), OPINION_COLUMNS[0])
    text = _decode_utf8(row[column])
    if column != "plain_text":
        text = _strip_markup(text)
    meta = {name: _decode_utf8(row[name]) for name in ("id", "cluster_id", "date_created")}
    return {"text": text, "meta": meta}


def _all_columns(row: Row) -> dict[str, Any]:
    """A row of any other CSV, with all columns that have a name of their own."""
    return {decode_utf8_or_cp1252(k): decode_utf8_or_cp1252(v) for k, v in row.items() if k}


def _decode_utf8(field: str) -> str:
    return field.encode("latin-1").decode()


def _strip_markup(markup: str) -> str:
    from lxml import etree

    # no tree is built: lxml cuts off elements nested deeper than 2048
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, target=_TextCollector())
    text: str = etree.fromstring(markup.encode(), parser)
    return text


class _TextCollector:
    """A target of lxml's parser that collects the text of a document."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._hidden = 0

    def start(self, tag: str, attributes: Any) -> None:
        self._hidden += tag in ("script", "style")

    def end(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def data(self, text: str) -> None:
        if not self._hidden:
            self._parts.append(text)

    def close(self) -> str:
        return "".join(self._parts)


CSV = CsvFormat((), _all_columns)
TSV = CsvFormat((), _all_columns, tabs=True)
NIH = CsvFormat(("APPLICATION_ID", "ABSTRACT_TEXT"), _abstract, {})
COURTLISTENER = CsvFormat(
    ("id", "cluster_id", "date_created", *OPINION_COLUMNS),
    _opinion,
    {"doublequote": False, "escapechar": "\\"},  # as written by PostgreSQL's COPY
)
