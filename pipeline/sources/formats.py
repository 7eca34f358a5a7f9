"""Convert raw files of any supported format to JSON lines; later stages read only JSON lines.

A malformed record becomes a JSON line with the reason and no text; tokenize counts and quarantines
it like any other malformed line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec

from pipeline.core.errors import CorruptInput
from pipeline.sources.codecs import COMPRESSED_SUFFIXES, CompressedFile
from pipeline.sources.csv_sources import COURTLISTENER, CSV, NIH, TSV, UTF8_BOM
from pipeline.sources.records import EXCERPT_CHARS, malformed_line
from pipeline.sources.zstd_frames import READ_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH_ROWS = 1000
MAX_TEXT_FILE_BYTES = 1 << 28  # a text file is one document, which is held in memory
FORMAT_BY_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".txt": "text",
}  # fmt: skip


def format_of(name: str) -> str | None:
    """The format of a file by its name, compressed or not; None if the name does not say it."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        inner = PurePath(path.stem).suffix
        return FORMAT_BY_SUFFIX.get(inner) if inner else "jsonl"
    return FORMAT_BY_SUFFIX.get(path.suffix)


def format_suffix(name: str) -> str:
    """The end of a file's name that says its format, such as `.csv.gz`; empty if there is none."""
    path = PurePath(name)
    compressed = path.suffix.lower() in COMPRESSED_SUFFIXES
    return "".join(path.suffixes[-2 if compressed else -1 :]) if format_of(name) else ""


def json_lines(files: Iterable[CompressedFile], form: str) -> Iterator[bytes]:
    """The records of several files, in order, as blocks of JSON lines.

    Args:
        files: The files to read.
        form: A key of `READERS`, or `auto`: Parquet by its first bytes, else the format that the
            file's name says, else JSON lines, which are passed on unchanged.

    Raises:
        CorruptInput: A file is damaged, truncated, or not in that format.
    """
    for raw in files:
        last = b"\n"
        read = READERS[_detect_format(raw) if form == "auto" else form]
        for block in _coalesce(read(raw)):
            yield block
            last = block[-1:]
        if last != b"\n":  # the last line of a file may lack its line end
            yield b"\n"


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


def _detect_format(raw: CompressedFile) -> str:
    if raw.head(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
        return "parquet"
    return format_of(raw.path.name) or "jsonl"


def _read_parquet(raw: CompressedFile) -> Iterator[bytes]:
    """One JSON line for each row, with all its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw.hash_remaining()
    row = 1
    try:
        with pq.ParquetFile(raw.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                try:
                    yield _encode(batch)
                except (ValueError, OverflowError):
                    yield b"".join(_encode_one_by_one(batch, row))
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        what = f"{raw.path} cannot be read as Parquet: {reason}"
        raise CorruptInput(what, unit=raw.unit) from None


def _encode(rows: pa.RecordBatch) -> bytes:
    return b"".join(msgspec.json.encode(row, enc_hook=str) + b"\n" for row in rows.to_pylist())


def _encode_one_by_one(rows: pa.RecordBatch, first: int) -> Iterator[bytes]:
    """Encode a batch with a row that JSON cannot hold, such as invalid UTF-8 or the year 10,000."""
    for index in range(len(rows)):
        try:
            yield _encode(rows.slice(index, 1))
        except (ValueError, OverflowError) as error:
            yield malformed_line(str(error), first + index)


def _read_text(raw: CompressedFile) -> Iterator[bytes]:
    """The whole file as one document."""
    data = bytearray()
    for block in raw:
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
    meta = {"file": raw.path.name}
    yield msgspec.json.encode({"text": text, "meta": meta}) + b"\n"


READERS: dict[str, Callable[[CompressedFile], Iterable[bytes]]] = {
    "jsonl": lambda raw: raw,
    "csv": CSV.lines,
    "tsv": TSV.lines,
    "parquet": _read_parquet,
    "text": _read_text,
    "nih-exporter": NIH.lines,
    "courtlistener": COURTLISTENER.lines,
}
