"""Raw files of any form to lines of JSON: nothing later knows the form.

A record that cannot be understood becomes a line without text that says why; tokenize counts it and
puts it aside like any other malformed line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec

from pipeline.core.errors import CorruptInput
from pipeline.sources.codecs import COMPRESSED_SUFFIXES, RawFile
from pipeline.sources.csv_sources import BOM, COURTLISTENER, CSV, NIH, TSV
from pipeline.sources.records import EXCERPT_CHARS, malformed
from pipeline.sources.zstd_frames import READ

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = b"PAR1"
ROWS = 1000
MEASURE = 1 << 28  # bytes of a text file, which is one document, as long as memory is to hold
NAMED = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".txt": "text",
}  # fmt: skip


def format_of(name: str) -> str | None:
    """The form of a file by its name, however compressed; None if the name does not tell."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        inner = PurePath(path.stem).suffix
        return NAMED.get(inner) if inner else "jsonl"
    return NAMED.get(path.suffix)


def ending(name: str) -> str:
    """What of a file's name tells its form."""
    path = PurePath(name)
    compressed = path.suffix.lower() in COMPRESSED_SUFFIXES
    return "".join(path.suffixes[-2 if compressed else -1 :]) if format_of(name) else ""


def json_lines(files: Iterable[RawFile], form: str) -> Iterator[bytes]:
    """The records of several files, in order, as blocks of lines of JSON.

    Args:
        files: What to read.
        form: A key of `FORMS`, or `auto`: Parquet by its first bytes, else by the file's name, else
            JSON lines (which are passed on as they are).

    Raises:
        CorruptInput: A file is damaged, cut off, or not of that form.
    """
    for raw in files:
        last = b"\n"
        for block in _gathered(FORMS[_seen(raw) if form == "auto" else form](raw)):
            yield block
            last = block[-1:]
        if last != b"\n":  # a file need not end its last line, and it is not to run on in the next
            yield b"\n"


def _gathered(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of at least `READ`: a table comes row by row."""
    held: list[bytes] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= READ:
            yield block if len(held) == 1 else b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _seen(raw: RawFile) -> str:
    if raw.head(len(PARQUET)) == PARQUET:
        return "parquet"
    return format_of(raw.path.name) or "jsonl"


def _parquet(raw: RawFile) -> Iterator[bytes]:
    """A line of JSON for every row, with all its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw.hash_remaining()
    row = 1
    try:
        with pq.ParquetFile(raw.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(ROWS):
                try:
                    yield _encoded(batch)
                except (ValueError, OverflowError):
                    yield b"".join(_one_by_one(batch, row))
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        told = str(error).partition("\n")[0]
        raise CorruptInput(f"{raw.path} cannot be read as Parquet: {told}", unit=raw.unit) from None


def _encoded(rows: pa.RecordBatch) -> bytes:
    return b"".join(msgspec.json.encode(row, enc_hook=str) + b"\n" for row in rows.to_pylist())


def _one_by_one(rows: pa.RecordBatch, first: int) -> Iterator[bytes]:
    """For rows of which one cannot be said in JSON: text that is no UTF-8, the year 10,000."""
    for index in range(len(rows)):
        try:
            yield _encoded(rows.slice(index, 1))
        except (ValueError, OverflowError) as error:
            yield malformed(str(error), first + index)


def _text(raw: RawFile) -> Iterator[bytes]:
    """The one document that a text file is."""
    data = bytearray()
    for block in raw:
        if len(data) <= MEASURE:  # what is beyond all measure is read only to be hashed
            data += block
    if len(data) > MEASURE:
        yield malformed(f"longer than {MEASURE} bytes, and a text file is one document", 1)
        return
    try:
        text = data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        yield malformed(str(error), line, data[:EXCERPT_CHARS].decode("utf-8", "replace"))
        return
    meta = {"file": raw.path.name}
    yield msgspec.json.encode({"text": text, "meta": meta}) + b"\n"


FORMS: dict[str, Callable[[RawFile], Iterable[bytes]]] = {
    "jsonl": lambda raw: raw,
    "csv": CSV.lines,
    "tsv": TSV.lines,
    "parquet": _parquet,
    "text": _text,
    "nih-exporter": NIH.lines,
    "courtlistener": COURTLISTENER.lines,
}
