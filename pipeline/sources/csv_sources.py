"""Tables to lines of JSON: CSV as anybody writes it, and as two sources of the Pile do.

CSV is parsed as latin-1, in which every byte is a character and back: quotes, commas and line ends
are the same bytes in UTF-8 and in cp1252, so the encoding may differ from row to row. A row that
cannot be understood becomes a line that says why; one without text a line with an empty one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.core.errors import CorruptInput
from pipeline.sources.codecs import RawFile
from pipeline.sources.records import EXCERPT_CHARS, LineReader, malformed

Row = Mapping[str, str]
FIELD = 1 << 27  # bytes in a field; csv takes 128 KB at most unless told otherwise
BATCH = 1 << 20
BOM = b"\xef\xbb\xbf"
HEADINGS = re.compile(
    r"(?:(?:\? "
    r"|description:? ?\((?:provided by|adapted from) (?:the )?(?:applicant|investigator)"
    r"(?:'s abstract)?\):?"
    r"|project summary ?/ ?abstract:?"
    r"|project summary \(see instructions\):) *)+",
    re.IGNORECASE,
)
OPINION = (
    "plain_text", "html", "html_lawbox", "html_columbia", "html_anon_2020", "html_with_citations",
    "xml_harvard",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A kind of CSV with a header.

    Args:
        columns: Those that `record` looks at; there may be others.
        record: A row (its bytes as latin-1) as it goes into JSON; `ValueError` says what is wrong.
        dialect: As `csv.reader` takes it.
    """

    columns: tuple[str, ...]
    record: Callable[[Row], dict[str, Any]]
    dialect: dict[str, Any]

    def lines(self, raw: RawFile) -> Iterator[bytes]:
        """A line of JSON for every row.

        Raises:
            CorruptInput: A column is not there, or the file ends within a row.
        """
        text = _TextLines(raw)
        reader = csv.reader(text.lines(), strict=True, **self.dialect)
        header: list[str] | None = []
        try:
            while header == []:  # empty lines before it
                header = _next(reader)
        except csv.Error as error:
            raise CorruptInput(f"{raw.path} has no header: {error}", unit=raw.unit) from None
        header = header or []
        missing = [name for name in self.columns if name not in header]
        if missing:
            raise CorruptInput(f"{raw.path} has no column {', '.join(missing)}", unit=raw.unit)
        while True:
            begins, row = reader.line_num + 1, None
            try:
                row = _next(reader)
                if row is None:
                    return
                if row:  # else an empty line between two
                    yield self._line(header, row)
            except (csv.Error, ValueError) as error:
                if isinstance(error, csv.Error) and "unexpected end" in str(error):
                    what = f"{raw.path} ends in the middle of a row, at line {reader.line_num}"
                    raise CorruptInput(what, unit=raw.unit) from None
                excerpt = ",".join(row) if row else text.last.strip()
                yield malformed(str(error), begins, _utf8_or_cp1252(excerpt[:EXCERPT_CHARS]))

    def _line(self, header: list[str], row: list[str]) -> bytes:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} columns, {len(header)} expected")
        return msgspec.json.encode(self.record(dict(zip(header, row, strict=True)))) + b"\n"


class _TextLines:
    """The lines of a file as latin-1; `last` is the one that was handed out last."""

    def __init__(self, raw: RawFile) -> None:
        self._raw, self.last = raw, ""

    def lines(self) -> Iterator[str]:
        lines, mark = LineReader(self._raw), BOM
        while lines.has_more():
            text = b"".join(lines.pieces(BATCH)).removeprefix(mark).decode("latin-1")
            mark = b""
            for line in text.split("\n")[:-1]:  # not splitlines, which knows ten other line ends
                self.last = line
                yield line + "\n"


def _next(reader: Any) -> list[str] | None:
    """The next row; None at the end. The limit is the whole process's, so it is put back."""
    before = csv.field_size_limit(FIELD)
    try:
        row: list[str] | None = next(reader, None)
    finally:
        csv.field_size_limit(before)
    return row


def _abstract(row: Row) -> dict[str, Any]:
    """A row of ExPORTER, cleaned by the rules of the Pile.

    https://github.com/thoppe/The-Pile-NIH-ExPORTER; where that drops bytes that are not UTF-8, the
    text is taken for cp1252 here.
    """
    number = row["APPLICATION_ID"].strip()
    if not re.fullmatch(r"[0-9]{1,18}", number):
        raise ValueError(f"APPLICATION_ID is {number[:40]!r}, not a number")
    text = _utf8_or_cp1252(row["ABSTRACT_TEXT"])
    text = " ".join(text.replace("[unreadable]", "").split())
    heading = HEADINGS.match(text)
    text = text[heading.end() if heading else 0 :]
    return {"text": text, "meta": {"APPLICATION_ID": int(number)}}


def _opinion(row: Row) -> dict[str, Any]:
    """A row of CourtListener's opinions; the text is the Pile's choice, the last that is there.

    https://github.com/thoppe/The-Pile-FreeLaw
    """
    column = next((name for name in reversed(OPINION) if row[name].strip()), OPINION[0])
    text = _utf8(row[column])
    if column != "plain_text":
        text = _without_markup(text)
    meta = {name: _utf8(row[name]) for name in ("id", "cluster_id", "date_created")}
    return {"text": text, "meta": meta}


def _plain(row: Row) -> dict[str, Any]:
    """A row of anybody's CSV, column by column."""
    return {_utf8_or_cp1252(name): _utf8_or_cp1252(value) for name, value in row.items()}


def _utf8_or_cp1252(field: str) -> str:
    raw = field.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _utf8(field: str) -> str:
    return field.encode("latin-1").decode()


def _without_markup(markup: str) -> str:
    from lxml import etree

    # no tree is built: one is cut off where elements are nested deeper than 2048
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, target=_Text())
    text: str = etree.fromstring(markup.encode(), parser)
    return text


class _Text:
    """Collects the text of a document, as a target of lxml's parser."""

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


CSV = Table((), _plain, {})
TSV = Table((), _plain, {"delimiter": "\t"})
NIH = Table(("APPLICATION_ID", "ABSTRACT_TEXT"), _abstract, {})
COURTLISTENER = Table(
    ("id", "cluster_id", "date_created", *OPINION),
    _opinion,
    {"doublequote": False, "escapechar": "\\"},  # as PostgreSQL's COPY writes it here
)
