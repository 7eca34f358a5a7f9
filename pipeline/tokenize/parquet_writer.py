"""A Parquet writer for shards: columns without nulls, one page per column and row group.

pyarrow's writer handles levels and values one by one, copies them several times, and offers no zstd
parameter but the level. Writing whole buffers takes half the work. Every reader that supports
BYTE_STREAM_SPLIT of integers (format 2.11, 2024) can read the files: pyarrow, datasets, Polars,
DuckDB 2. The format: https://parquet.apache.org/docs/file-format/. The footer is in Thrift's
compact protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

MAGIC = b"PAR1"
CREATED_BY = b"gristmill version 1"
INT32, INT64, BYTE_ARRAY, FIXED_LEN_BYTE_ARRAY = 1, 2, 6, 7  # physical types
REQUIRED, REPEATED = 0, 2
UTF8, LIST = 0, 3  # converted types
PLAIN, RLE, BYTE_STREAM_SPLIT = 0, 3, 9
UNCOMPRESSED, ZSTD = 0, 6
MAX_PAGE_BYTES = (1 << 31) - 1

# Level 1 with shorter matches and a smaller table: token ids are 2 % smaller than at plain level 1,
# as small as at level 2, in three quarters of level 2's time.
ZSTD_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    1, source_size=1 << 22, min_match=5, hash_log=12
)


@dataclass(frozen=True)
class Column:
    """A column without nulls.

    `type`: the physical type. `size`: bytes per value, for FIXED_LEN_BYTE_ARRAY. `utf8`: values are
    text. `is_list`: a row is a list of values. `encoding`: PLAIN or BYTE_STREAM_SPLIT.
    `compressed`: by zstd.
    """

    name: str
    type: int
    size: int = 0
    utf8: bool = False
    is_list: bool = False
    encoding: int = PLAIN
    compressed: bool = True

    @property
    def path(self) -> list[bytes]:
        """Path of the values in the schema."""
        name = self.name.encode()
        return [name, b"list", b"element"] if self.is_list else [name]


class ParquetWriter:
    """Writes a Parquet file.

    Args:
        path: The file.
        columns: Its columns.
    """

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._file = path.open("wb")
        self._columns = columns
        self._compressor = zstandard.ZstdCompressor(compression_params=ZSTD_PARAMETERS)
        self._row_groups: list[bytes] = []
        self._rows = 0
        self._position = self._file.write(MAGIC)

    def add(self, rows: int, pages: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Write a row group.

        Args:
            rows: Number of rows.
            pages: For each column, the number of values and their bytes. The bytes of a list column
                begin with its `list_levels`.

        Raises:
            OverflowError: A page is larger than Parquet allows.
        """
        chunks, plain_bytes, stored_bytes = [], 0, 0
        for column, (values, data) in zip(self._columns, pages, strict=True):
            stored = self._compressor.compress(data) if column.compressed else data
            header = _page_header(values, column.encoding, len(data), len(stored))
            sizes = len(header) + len(data), len(header) + len(stored)
            chunks.append(_column_chunk(column, values, *sizes, self._position))
            for part in (header, stored):
                self._position += self._file.write(part)
            plain_bytes, stored_bytes = plain_bytes + sizes[0], stored_bytes + sizes[1]
        self._row_groups.append(
            _struct(
                (1, *_list(_STRUCT, chunks)),
                (2, _I64, plain_bytes),
                (3, _I64, rows),
                (6, _I64, stored_bytes),
            )
        )
        self._rows += rows

    def abandon(self) -> None:
        """Close the file without a footer. Does nothing after `close`."""
        with suppress(OSError):  # `add` or `close` has raised it before
            self._file.close()

    def close(self) -> None:
        """Write the footer."""
        footer = _struct(
            (1, _I32, 1),
            (2, *_list(_STRUCT, _schema(self._columns))),
            (3, _I64, self._rows),
            (4, *_list(_STRUCT, self._row_groups)),
            (6, _BINARY, CREATED_BY),
        )
        self._file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)
        self._file.close()


def list_levels(lengths: npt.NDArray[np.int64]) -> bytes:
    """Repetition and definition levels of a list column: where lists begin, and which are empty.

    Args:
        lengths: Length of each list, (rows,).
    """
    nonempty = lengths > 0
    counts = np.column_stack([np.ones_like(lengths), np.maximum(lengths - 1, 0)]).reshape(-1)
    repetition = _runs(np.tile(np.array([0, 1], np.uint8), len(lengths)), counts)
    definition = _runs(nonempty.astype(np.uint8), np.maximum(lengths, 1))
    return b"".join(
        part for run in (repetition, definition) for part in (len(run).to_bytes(4, "little"), run)
    )


def byte_stream_split(parts: Sequence[npt.NDArray[np.uint32]], out: npt.NDArray[np.uint8]) -> None:
    """Encode numbers by BYTE_STREAM_SPLIT: the lowest bytes of all, then the next ones, and so on.

    Args:
        parts: The numbers; the parts follow one another.
        out: Filled with the result, (4 x numbers,).
    """
    rows, position = out.reshape(4, -1), 0
    for part in parts:
        for byte, row in enumerate(rows):
            row[position : position + len(part)] = part.view(np.uint8)[byte::4]
        position += len(part)


def _runs(values: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> bytes:
    """One-bit levels in RLE encoding; runs of length 0 are left out."""
    values, counts = values[counts > 0], counts[counts > 0]
    if not len(values):
        return b""
    starts = np.flatnonzero(np.diff(values, prepend=np.uint8(2)))
    digits = 2 * np.add.reduceat(counts, starts)[:, None] >> 7 * np.arange(5)  # LEB128
    table = np.column_stack([digits & 127 | (digits > 127) << 7, values[starts]]).astype(np.uint8)
    kept = np.column_stack([digits > 0, np.ones(len(starts), bool)])
    return table[kept].tobytes()


def _page_header(values: int, encoding: int, plain: int, stored: int) -> bytes:
    if max(plain, stored) > MAX_PAGE_BYTES:
        raise OverflowError(f"{plain:,} bytes of a column in one page: Parquet's limit is 2 GiB")
    inner = _struct((1, _I32, values), (2, _I32, encoding), (3, _I32, RLE), (4, _I32, RLE))
    return _struct((1, _I32, 0), (2, _I32, plain), (3, _I32, stored), (5, _STRUCT, inner))


def _column_chunk(column: Column, values: int, plain: int, stored: int, position: int) -> bytes:
    metadata = _struct(
        (1, _I32, column.type),
        (2, *_list(_I32, [column.encoding, RLE])),
        (3, *_list(_BINARY, column.path)),
        (4, _I32, ZSTD if column.compressed else UNCOMPRESSED),
        (5, _I64, values),
        (6, _I64, plain),
        (7, _I64, stored),
        (9, _I64, position),
    )
    return _struct((2, _I64, 0), (3, _STRUCT, metadata))


def _schema(columns: Sequence[Column]) -> list[bytes]:
    elements = [_struct((4, _BINARY, b"schema"), (5, _I32, len(columns)))]
    for column in columns:
        name = column.path[-1]
        if column.is_list:
            outer, inner, _ = column.path
            one_child, converted = (5, _I32, 1), (6, _I32, LIST)
            elements.append(_struct((3, _I32, REQUIRED), (4, _BINARY, outer), one_child, converted))
            elements.append(_struct((3, _I32, REPEATED), (4, _BINARY, inner), one_child))
        elements.append(
            _struct(
                (1, _I32, column.type),
                *([(2, _I32, column.size)] if column.size else []),
                (3, _I32, REQUIRED),
                (4, _BINARY, name),
                *([(6, _I32, UTF8)] if column.utf8 else []),
            )
        )
    return elements


_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # types of Thrift's compact protocol


def _struct(*fields: tuple[int, int, Any]) -> bytes:
    """A struct of fields (number, type, value), in the order of their numbers."""
    parts, last = [], 0
    for number, type_, value in fields:
        parts += [bytes([number - last << 4 | type_]), _encode(type_, value)]
        last = number
    return b"".join(parts) + b"\0"


def _list(type_: int, values: Sequence[Any]) -> tuple[int, bytes]:
    """Type and bytes of a list."""
    head = bytes([min(len(values), 15) << 4 | type_])
    size = _varint(len(values)) if len(values) > 14 else b""
    return _LIST, b"".join([head, size, *(_encode(type_, value) for value in values)])


def _encode(type_: int, value: Any) -> bytes:
    if type_ in (_I32, _I64):
        return _varint(2 * value)  # zigzag; no value here is negative
    encoded: bytes = value
    return _varint(len(encoded)) + encoded if type_ == _BINARY else encoded


def _varint(value: int) -> bytes:
    """LEB128."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
