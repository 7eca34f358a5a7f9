"""Shards: Parquet files of token ids, one row a document.

A shard opens with `datasets.load_dataset("parquet", …)`. Training and scoring read what is made
from it, see `pipeline.dataset.token_cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tokenize import parquet_writer as parquet

SPLITS = ("train", "validation", "test")
COLUMNS = (
    parquet.Column("id", parquet.BYTE_ARRAY, text=True),
    parquet.Column("input_ids", parquet.INT32, listed=True, encoding=parquet.BYTE_STREAM_SPLIT),
    parquet.Column("tokens", parquet.INT32),
    parquet.Column("bytes", parquet.INT64),
    # not of fixed size, which `datasets` before 5.2 cannot read
    parquet.Column("hash", parquet.BYTE_ARRAY, packed=False),
)
ROW_GROUP_TOKENS = 1 << 20
PAGE = 8 * ROW_GROUP_TOKENS  # bytes; a larger one, of an enormous document, is not kept
HASH = np.dtype("V16")
HASHED = np.dtype([("size", "<u4"), ("hash", HASH)])

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
    """One Parquet shard.

    Row groups end with the batch that makes them a million tokens, so the bytes depend on nothing
    but the rows and their batches, which the chunk decides.

    The bytes of ids stand apart by their place in the number: with zstd that costs half the time of
    plain ids, and is as small.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = parquet.File(path, COLUMNS)
        self.rows = self.tokens = self.bytes = 0
        self._pending: list[Documents] = []
        self._held = 0
        self._page = np.empty(PAGE, np.uint8)  # fresh memory each time would cost as much again

    def add(self, some: Documents) -> None:
        """Add documents; there are some."""
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
        hashed = np.empty(len(names), HASHED)
        hashed["size"], hashed["hash"] = HASH.itemsize, hashes
        slots = int(np.maximum(lengths, 1).sum())  # an empty list has one, too
        count = len(names)
        pages = (
            (count, named),
            (slots, self._ids(lengths)),
            (count, lengths.astype(np.int32).tobytes()),
            (count, sizes.tobytes()),
            (count, hashed.tobytes()),
        )
        self._file.add(count, pages)
        self._pending, self._held = [], 0

    def _ids(self, lengths: npt.NDArray[np.int64]) -> memoryview:
        """The page of token ids."""
        head = parquet.levels(lengths)
        size = len(head) + 4 * self._held
        page = self._page[:size] if size <= PAGE else np.empty(size, np.uint8)
        page[: len(head)] = np.frombuffer(head, np.uint8)
        parquet.planes([some.ids for some in self._pending], page[len(head) :])
        return page.data

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._pending:
            self._flush()
        self._file.close()

    def abandon(self) -> None:
        """Let go of the file, which may have no footer; nothing happens to one that is closed."""
        self._file.abandon()


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
    """A shard by row groups: flat ids, offsets into them (rows + 1), and its sizes and hashes."""
    columns = ["input_ids", "bytes", "hash"]
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False).combine_chunks()
            for batch in table.to_batches():
                column = batch.column("input_ids")
                offsets = column.offsets.to_numpy().astype(np.int64)
                flat = column.values.to_numpy()[offsets[0] : offsets[-1]]
                yield flat, offsets - offsets[0], batch
