"""Parquet as our shards need it: columns without nulls, one page of each in every row group.

pyarrow's writer takes levels and values one by one and copies them several times, and knows of zstd
only the level; from whole buffers it is half of that work. What knows BYTE_STREAM_SPLIT of
integers (format 2.11, of 2024) reads it: pyarrow, datasets, Polars, DuckDB 2. The format:
https://parquet.apache.org/docs/file-format/, its footer in Thrift's compact protocol.
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
LARGEST = (1 << 31) - 1  # bytes of a page

# Level 1 with shorter matches and a smaller table: ids are 2 % smaller than under level 1, and take
# three quarters of the time of level 2, which makes them as small.
EFFORT = zstandard.ZstdCompressionParameters.from_level(
    1, source_size=1 << 22, min_match=5, hash_log=12
)


@dataclass(frozen=True)
class Column:
    """A column without nulls.

    `kind`: the physical type; `size`: bytes of a value, of FIXED_LEN_BYTE_ARRAY; `text`: it is
    UTF-8; `listed`: a row is a list of values; `encoding`: PLAIN or BYTE_STREAM_SPLIT; `packed`: by
    zstd.
    """

    name: str
    kind: int
    size: int = 0
    text: bool = False
    listed: bool = False
    encoding: int = PLAIN
    packed: bool = True

    @property
    def path(self) -> list[bytes]:
        """Where its values stand in the schema."""
        name = self.name.encode()
        return [name, b"list", b"element"] if self.listed else [name]


class File:
    """A Parquet file that is written.

    Args:
        path: The file.
        columns: Its columns.
    """

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._file = path.open("wb")
        self._columns = columns
        self._compressor = zstandard.ZstdCompressor(compression_params=EFFORT)
        self._groups: list[bytes] = []
        self._rows = 0
        self._at = self._file.write(MAGIC)

    def add(self, rows: int, pages: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Write a row group.

        Args:
            rows: How many.
            pages: Of each column, values and their bytes: of a listed one `levels` come first.

        Raises:
            OverflowError: A page is larger than Parquet allows.
        """
        chunks, plain, stored = [], 0, 0
        for column, (values, data) in zip(self._columns, pages, strict=True):
            packed = self._compressor.compress(data) if column.packed else data
            header = _page(values, column.encoding, len(data), len(packed))
            sizes = len(header) + len(data), len(header) + len(packed)
            chunks.append(_chunk(column, values, *sizes, self._at))
            for part in (header, packed):
                self._at += self._file.write(part)
            plain, stored = plain + sizes[0], stored + sizes[1]
        self._groups.append(
            _struct(
                (1, *_list(_STRUCT, chunks)), (2, _I64, plain), (3, _I64, rows), (6, _I64, stored)
            )
        )
        self._rows += rows

    def abandon(self) -> None:
        """Let go of the file as it is; nothing happens to one that is closed."""
        with suppress(OSError):  # of what could not be written, as was told before
            self._file.close()

    def close(self) -> None:
        """Write the footer."""
        footer = _struct(
            (1, _I32, 1),
            (2, *_list(_STRUCT, _schema(self._columns))),
            (3, _I64, self._rows),
            (4, *_list(_STRUCT, self._groups)),
            (6, _BINARY, CREATED_BY),
        )
        self._file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)
        self._file.close()


def levels(lengths: npt.NDArray[np.int64]) -> bytes:
    """What comes before the values of a listed column: where a list begins, and which are empty.

    Args:
        lengths: Of the lists: (rows,).
    """
    some = lengths > 0
    counts = np.column_stack([np.ones_like(lengths), np.maximum(lengths - 1, 0)]).reshape(-1)
    repetition = _runs(np.tile(np.array([0, 1], np.uint8), len(lengths)), counts)
    definition = _runs(some.astype(np.uint8), np.maximum(lengths, 1))
    return b"".join(
        part for run in (repetition, definition) for part in (len(run).to_bytes(4, "little"), run)
    )


def planes(parts: Sequence[npt.NDArray[np.uint32]], out: npt.NDArray[np.uint8]) -> None:
    """Numbers in BYTE_STREAM_SPLIT: first the low bytes of all, then the next ones, and so on.

    Args:
        parts: The numbers, end to end.
        out: Where to: (4 x numbers,).
    """
    rows, at = out.reshape(4, -1), 0
    for part in parts:
        for place, row in enumerate(rows):
            row[at : at + len(part)] = part.view(np.uint8)[place::4]
        at += len(part)


def _runs(values: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> bytes:
    """Levels of one bit as runs of equal ones; runs of none are left out."""
    values, counts = values[counts > 0], counts[counts > 0]
    if not len(values):
        return b""
    begins = np.flatnonzero(np.diff(values, prepend=np.uint8(2)))
    digits = 2 * np.add.reduceat(counts, begins)[:, None] >> 7 * np.arange(5)  # LEB128
    table = np.column_stack([digits & 127 | (digits > 127) << 7, values[begins]]).astype(np.uint8)
    kept = np.column_stack([digits > 0, np.ones(len(begins), bool)])
    return table[kept].tobytes()


def _page(values: int, encoding: int, plain: int, stored: int) -> bytes:
    if max(plain, stored) > LARGEST:
        raise OverflowError(f"{plain:,} bytes of a column in one page, which Parquet cannot hold")
    inner = _struct((1, _I32, values), (2, _I32, encoding), (3, _I32, RLE), (4, _I32, RLE))
    return _struct((1, _I32, 0), (2, _I32, plain), (3, _I32, stored), (5, _STRUCT, inner))


def _chunk(column: Column, values: int, plain: int, stored: int, at: int) -> bytes:
    facts = _struct(
        (1, _I32, column.kind),
        (2, *_list(_I32, [column.encoding, RLE])),
        (3, *_list(_BINARY, column.path)),
        (4, _I32, ZSTD if column.packed else UNCOMPRESSED),
        (5, _I64, values),
        (6, _I64, plain),
        (7, _I64, stored),
        (9, _I64, at),
    )
    return _struct((2, _I64, 0), (3, _STRUCT, facts))


def _schema(columns: Sequence[Column]) -> list[bytes]:
    found = [_struct((4, _BINARY, b"schema"), (5, _I32, len(columns)))]
    for column in columns:
        name = column.path[-1]
        if column.listed:
            outer, inner, _ = column.path
            one, kind = (5, _I32, 1), (6, _I32, LIST)
            found.append(_struct((3, _I32, REQUIRED), (4, _BINARY, outer), one, kind))
            found.append(_struct((3, _I32, REPEATED), (4, _BINARY, inner), one))
        found.append(
            _struct(
                (1, _I32, column.kind),
                *([(2, _I32, column.size)] if column.size else []),
                (3, _I32, REQUIRED),
                (4, _BINARY, name),
                *([(6, _I32, UTF8)] if column.text else []),
            )
        )
    return found


_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # types of Thrift's compact protocol


def _struct(*fields: tuple[int, int, Any]) -> bytes:
    """A struct of (number, type, value), by number."""
    found, last = [], 0
    for number, kind, value in fields:
        found += [bytes([number - last << 4 | kind]), _encode(kind, value)]
        last = number
    return b"".join(found) + b"\0"


def _list(kind: int, values: Sequence[Any]) -> tuple[int, bytes]:
    """Type and bytes of a list."""
    head = bytes([min(len(values), 15) << 4 | kind])
    size = _number(len(values)) if len(values) > 14 else b""
    return _LIST, b"".join([head, size, *(_encode(kind, value) for value in values)])


def _encode(kind: int, value: Any) -> bytes:
    if kind in (_I32, _I64):
        return _number(2 * value)  # none of ours is negative
    encoded: bytes = value
    return _number(len(encoded)) + encoded if kind == _BINARY else encoded


def _number(value: int) -> bytes:
    """LEB128."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
