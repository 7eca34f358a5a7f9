"""CSV to JSON lines: any CSV or TSV with a header, and the formats of two sources of the Pile.

CSV is parsed as latin-1, which maps every byte to one character and back. Quotes, commas and line
ends are the same bytes in UTF-8 and cp1252, so the encoding may differ from row to row. A malformed
row becomes a JSON line with the reason; a row without text becomes a record with an empty text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.core.errors import CorruptInput
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.records import EXCERPT_CHARS, LineReader, malformed_line

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
    """A CSV format with a header.

    Args:
        required_columns: Columns that `to_record` reads; there may be others.
        to_record: Converts a row (decoded as latin-1) to a JSON object; raises `ValueError` with
            the reason if the row is malformed.
        dialect: Arguments of `csv.reader`.
    """

    required_columns: tuple[str, ...]
    to_record: Callable[[Row], dict[str, Any]]
    dialect: dict[str, Any]

    def lines(self, raw: CompressedFile) -> Iterator[bytes]:
        """One JSON line for each row.

        Raises:
            CorruptInput: A required column is missing, or the file ends inside a row.
        """
        text = _Latin1Lines(raw)
        reader = csv.reader(text.lines(), strict=True, **self.dialect)
        with _field_size_limit(MAX_FIELD_BYTES):
            header = self._read_header(reader, raw)
            while True:
                line, row = reader.line_num + 1, None
                try:
                    row = next(reader, None)
                    if row is None:
                        return
                    if row:  # skip empty lines
                        yield self._encode(header, row)
                except (csv.Error, ValueError) as error:
                    if isinstance(error, csv.Error) and "unexpected end" in str(error):
                        what = f"{raw.path} ends in the middle of a row, at line {reader.line_num}"
                        raise CorruptInput(what, unit=raw.unit) from None
                    excerpt = ",".join(row) if row else text.last_line.strip()
                    excerpt = _decode_utf8_or_cp1252(excerpt[:EXCERPT_CHARS])
                    yield malformed_line(str(error), line, excerpt)

    def _read_header(self, reader: Iterator[list[str]], raw: CompressedFile) -> list[str]:
        header: list[str] = []
        try:
            header = next((row for row in reader if row), [])  # skip empty lines before it
        except csv.Error as error:
            raise CorruptInput(f"{raw.path} has no header: {error}", unit=raw.unit) from None
        missing = [name for name in self.required_columns if name not in header]
        if missing:
            raise CorruptInput(f"{raw.path} has no column {', '.join(missing)}", unit=raw.unit)
        return header

    def _encode(self, header: list[str], row: list[str]) -> bytes:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} columns, {len(header)} expected")
        return msgspec.json.encode(self.to_record(dict(zip(header, row, strict=True)))) + b"\n"


class _Latin1Lines:
    """The lines of a file, decoded as latin-1; `last_line` is the last one that was read."""

    def __init__(self, raw: CompressedFile) -> None:
        self._raw, self.last_line = raw, ""

    def lines(self) -> Iterator[str]:
        reader, bom = LineReader(self._raw), UTF8_BOM
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
    text = _decode_utf8_or_cp1252(row["ABSTRACT_TEXT"])
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
    """A row of any other CSV, with all its columns."""
    return {_decode_utf8_or_cp1252(k): _decode_utf8_or_cp1252(v) for k, v in row.items()}


def _decode_utf8_or_cp1252(field: str) -> str:
    raw = field.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


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


CSV = CsvFormat((), _all_columns, {})
TSV = CsvFormat((), _all_columns, {"delimiter": "\t"})
NIH = CsvFormat(("APPLICATION_ID", "ABSTRACT_TEXT"), _abstract, {})
COURTLISTENER = CsvFormat(
    ("id", "cluster_id", "date_created", *OPINION_COLUMNS),
    _opinion,
    {"doublequote": False, "escapechar": "\\"},  # as written by PostgreSQL's COPY
)
