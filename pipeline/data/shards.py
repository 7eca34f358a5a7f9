"""Shards: Parquet files of token ids, one row a document.

A shard opens with `datasets.load_dataset("parquet", …)`. Training and scoring read what is made
from it, see `pipeline.data.corpus`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        ("tokens", pa.int32()),
        ("bytes", pa.int64()),
        ("hash", pa.binary()),
    ]
)
ROW_GROUP_TOKENS = 1 << 20
HASH = np.dtype("V16")

Hashes = npt.NDArray[np.void]


class Writer:
    """One Parquet shard. Row groups end by token count, so the bytes depend on the rows alone.

    The bytes of ids stand apart by their place in the number (BYTE_STREAM_SPLIT), in one page a row
    group: with zstd that costs half the time of plain ids. Level 2 is 2 to 8 % smaller than level 1
    at nine tenths of its speed (NIH: 1.41 bytes a token; 1.48 as 16-bit numbers under level 1).

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(
            path,
            SCHEMA,
            compression="zstd",
            compression_level=2,
            use_dictionary=False,
            column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
            data_page_size=8 * ROW_GROUP_TOKENS,
            write_statistics=["id", "tokens", "bytes"],
        )
        self.rows = self.tokens = self.bytes = 0
        self._pending: list[pa.RecordBatch] = []
        self._held = 0

    def add(
        self,
        names: list[str],
        ids: npt.NDArray[np.uint32],
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        digests: Hashes,
    ) -> None:
        """Add documents.

        Args:
            names: Their ids.
            ids: Their token ids, end to end.
            offsets: Where each begins in `ids`, from 0 on: (documents + 1).
            sizes: UTF-8 bytes of each text.
            digests: Text hash of each, 16 bytes.
        """
        rows = len(names)
        called = [name.encode() for name in names]
        begins = np.cumsum([0, *map(len, called)], dtype=np.int32)
        ends = np.arange(0, 16 * rows + 1, 16, dtype=np.int32)
        columns = [
            _column("id", rows, begins, b"".join(called)),
            _column("input_ids", rows, offsets.astype(np.int32), inner=_flat(ids)),
            _column("tokens", rows, np.diff(offsets).astype(np.int32)),
            _column("bytes", rows, sizes),
            _column("hash", rows, ends, digests),
        ]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self._held += len(ids)
        self.rows += len(names)
        self.tokens += len(ids)
        self.bytes += int(sizes.sum())
        if self._held >= ROW_GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._pending).combine_chunks()
        self._file.write_table(table, row_group_size=len(table))
        self._pending, self._held = [], 0

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._pending:
            self._flush()
        self._file.close()


def _column(name: str, rows: int, *parts: Any, inner: pa.Array | None = None) -> pa.Array:
    """A column without gaps of the buffers that it consists of.

    `pa.array` would import pandas to see whether it is given something of that: half a second.
    """
    buffers = [None, *map(pa.py_buffer, parts)]
    children = None if inner is None else [inner]
    return pa.Array.from_buffers(SCHEMA.field(name).type, rows, buffers, children=children)


def _flat(ids: npt.NDArray[np.uint32]) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(ids), [None, pa.py_buffer(ids)])


def read_hashes(path: Path) -> Hashes:
    """The text hashes of a shard, 16 bytes a row."""
    with pq.ParquetFile(path) as file:  # `read_table` would import more than this reads
        table = file.read(columns=["hash"], use_threads=False)
    return np.concatenate([np.empty(0, HASH), *map(hashes, table["hash"].chunks)])


def hashes(column: pa.BinaryArray) -> Hashes:
    """A column of text hashes as an array of 16 bytes each, without a copy."""
    if not len(column):
        return np.empty(0, HASH)
    data = np.frombuffer(column.buffers()[2], HASH)
    return data[column.offset : column.offset + len(column)]


def rows(
    path: Path,
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], pa.RecordBatch]]:
    """A shard by row groups: flat ids, offsets into them (rows + 1), and the batch itself."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False).combine_chunks()
            for batch in table.to_batches():
                column = batch.column("input_ids")
                offsets = column.offsets.to_numpy().astype(np.int64)
                flat = column.values.to_numpy()[offsets[0] : offsets[-1]]
                yield flat, offsets - offsets[0], batch
