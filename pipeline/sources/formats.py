"""Convert raw files of any supported format to JSON lines; later stages read only JSON lines.

A malformed record becomes a JSON line with the reason and no text; tokenize counts and quarantines
it like any other malformed line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

from pipeline.core.registry import Dataset
from pipeline.sources.archives import Member, members
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.csv_sources import COURTLISTENER, CSV, NIH, TSV, UTF8_BOM
from pipeline.sources.data_files import ARCHIVE, format_of
from pipeline.sources.parquet_rows import PARQUET_MAGIC, read_parquet
from pipeline.sources.records import EXCERPT_CHARS, malformed_line
from pipeline.sources.text_encoding import utf8_blocks
from pipeline.sources.zstd_frames import READ_BYTES

MAX_TEXT_FILE_BYTES = 1 << 28  # a text file is one document, which is held in memory
FORMAT_VERSIONS = {"csv": 2, "tsv": 2, "parquet": 2}  # raised when other lines are made of a file
# an array of objects whose first line is no line of its own, and an object over several lines
JSON_ARRAY = re.compile(rb"\s*\[[ \t\r]*(\n|\{[^\n]*([^\]\s]\s*\n|\]\s*\Z|[^\n]\Z))")
JSON_OVER_LINES = re.compile(rb"\s*\{[ \t\r]*\n\s*\"")


def json_lines(files: Iterable[CompressedFile], dataset: Dataset) -> Iterator[bytes]:
    """The records of several files, in order, as blocks of JSON lines.

    Args:
        files: The files to read.
        dataset: Says how they hold records. If `form` is `auto`: Parquet by its first bytes, else
            the format that the file's name says, else JSON lines, which are passed on unchanged.

    Raises:
        CorruptInput: A file is damaged or truncated.
        InputError: A file is not in that format.
    """
    for raw in files:
        last = b"\n"
        for member in members(raw, dataset.form):
            read = READERS[_format_of(member) if dataset.form == "auto" else dataset.form]
            for block in _coalesce(read(member, dataset)):
                yield block
                last = block[-1:]
            if last != b"\n":  # the last line of a file may lack its line end
                yield b"\n"
                last = b"\n"


def _coalesce(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Join small blocks, such as single rows, to blocks of at least `READ_BYTES`."""
    buffer: list[bytes] = []
    size = 0
    for block in blocks:
        buffer.append(block)
        size += len(block)
        if size >= READ_BYTES:
            yield block if len(buffer) == 1 else b"".join(buffer)
            buffer, size = [], 0
    if buffer:
        yield b"".join(buffer)


def _format_of(member: Member) -> str:
    if member.head.startswith(PARQUET_MAGIC):
        return "parquet"
    known = format_of(member.name)
    return known if known and known != ARCHIVE else "jsonl"


def _read_json_lines(member: Member, dataset: Dataset) -> Iterable[bytes]:
    """The lines as they are, in UTF-8.

    Raises:
        InputError: It is JSON, but not one record a line.
    """
    head = member.head.removeprefix(UTF8_BOM)
    if JSON_ARRAY.match(head):
        raise member.refusal(
            "is one JSON array, not JSON lines", "Convert it: jq -c '.[]' IN.json > OUT.jsonl"
        )
    if JSON_OVER_LINES.match(head):
        raise member.refusal(
            "is JSON over several lines, not one record a line",
            "Convert it: jq -c . IN.json > OUT.jsonl",
        )
    return utf8_blocks(member, carriage_return=b"}\r{")


def _read_text(member: Member, dataset: Dataset) -> Iterator[bytes]:
    """The whole file as one document."""
    data = bytearray()
    for block in utf8_blocks(member):
        if len(data) <= MAX_TEXT_FILE_BYTES:  # the rest of a longer file is read only for its hash
            data += block
    if len(data) > MAX_TEXT_FILE_BYTES:
        what = f"longer than {MAX_TEXT_FILE_BYTES} bytes, and a text file is one document"
        yield malformed_line(what, 1)
        return
    try:
        text = data.removeprefix(UTF8_BOM).decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        yield malformed_line(str(error), line, data[:EXCERPT_CHARS].decode("utf-8", "replace"))
        return
    meta = {"file": member.name}
    yield msgspec.json.encode({"text": text, "meta": meta}) + b"\n"


READERS: dict[str, Callable[[Member, Dataset], Iterable[bytes]]] = {
    "jsonl": _read_json_lines,
    "csv": CSV.lines,
    "tsv": TSV.lines,
    "parquet": read_parquet,
    "text": _read_text,
    "nih-exporter": NIH.lines,
    "courtlistener": COURTLISTENER.lines,
}
