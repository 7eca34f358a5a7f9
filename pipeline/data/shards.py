"""Shards: Parquet files of token ids, one row a document.

A shard opens with `datasets.load_dataset("parquet", …)`. Training and scoring read what is made
from it, see `pipeline.data.corpus`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.parquet import (
    BYTE_ARRAY,
    BYTE_STREAM_SPLIT,
    FIXED_LEN_BYTE_ARRAY,
    INT32,
    INT64,
    Column,
    File,
    levels,
    split,
)

SPLITS = ("train", "validation", "test")
COLUMNS = (
    Column("id", BYTE_ARRAY, text=True),
    Column("input_ids", INT32, listed=True, encoding=BYTE_STREAM_SPLIT),
    Column("tokens", INT32),
    Column("bytes", INT64),
    Column("hash", FIXED_LEN_BYTE_ARRAY, size=16, packed=False),
)
ROW_GROUP_TOKENS = 1 << 20
HASH = np.dtype("V16")

Hashes = npt.NDArray[np.void]


@dataclass(frozen=True)
class Documents:
    """Rows of a shard.

    `names`: their ids. `ids`: token ids, end to end; `offsets`: where each document begins in them,
    from 0 on: (documents + 1). `sizes`: UTF-8 bytes of each text. `hashes`: of each text.
    """

    names: list[str]
    ids: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    hashes: Hashes


class Writer:
    """One Parquet shard. Row groups end by token count, so the bytes depend on the rows alone.

    The bytes of ids stand apart by their place in the number: with zstd that costs half the time of
    plain ids, and is as small.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = File(path, COLUMNS)
        self.rows = self.tokens = self.bytes = 0
        self._pending: list[Documents] = []
        self._held = 0
        self._page = np.empty(0, np.uint8)  # fresh memory for each would cost as much as filling it

    def add(self, some: Documents) -> None:
        """Add documents."""
        self._pending.append(some)
        self._held += len(some.ids)
        self.rows += len(some.names)
        self.tokens += len(some.ids)
        self.bytes += int(some.sizes.sum())
        if self._held >= ROW_GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        held = self._pending
        names = [name.encode() for some in held for name in some.names]
        lengths = np.concatenate([np.diff(some.offsets) for some in held])
        sizes = np.concatenate([some.sizes for some in held])
        hashes = np.concatenate([some.hashes for some in held])
        named = b"".join([len(name).to_bytes(4, "little") + name for name in names])
        count = len(names)
        pages = (
            (count, named),
            (int(np.maximum(lengths, 1).sum()), self._ids(lengths)),
            (count, lengths.astype(np.int32).tobytes()),
            (count, sizes.astype(np.int64).tobytes()),
            (count, hashes.tobytes()),
        )
        self._file.add(count, pages)
        self._pending, self._held = [], 0

    def _ids(self, lengths: npt.NDArray[np.int64]) -> memoryview:
        """The page of token ids."""
        head = levels(lengths)
        size = len(head) + 4 * self._held
        if len(self._page) < size:
            self._page = np.empty(size, np.uint8)
        self._page[: len(head)] = np.frombuffer(head, np.uint8)
        split([some.ids for some in self._pending], self._page[len(head) : size])
        return self._page[:size].data

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._pending:
            self._flush()
        self._file.close()


def read_hashes(path: Path) -> Hashes:
    """The text hashes of a shard, 16 bytes a row."""
    with pq.ParquetFile(path) as file:  # `read_table` would import more than this reads
        table = file.read(columns=["hash"], use_threads=False)
    return np.concatenate([np.empty(0, HASH), *map(hashes, table["hash"].chunks)])


def hashes(column: pa.FixedSizeBinaryArray) -> Hashes:
    """A column of text hashes as an array of 16 bytes each, without a copy."""
    if not len(column):
        return np.empty(0, HASH)
    data = np.frombuffer(column.buffers()[1], HASH)
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
