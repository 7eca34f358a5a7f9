"""Shards: Parquet files of token ids, one row per document.

A shard opens with `datasets.load_dataset("parquet", …)`. Training and scoring read a cache that is
built from the shards, see `pipeline.dataset.token_cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tokenize.parquet_writer import (
    BYTE_ARRAY,
    BYTE_STREAM_SPLIT,
    INT32,
    INT64,
    Column,
    ParquetWriter,
    byte_stream_split,
    list_levels,
)

COLUMNS = (
    Column("id", BYTE_ARRAY, utf8=True),
    Column("input_ids", INT32, is_list=True, encoding=BYTE_STREAM_SPLIT),
    Column("tokens", INT32),
    Column("bytes", INT64),
    # not of fixed size, which `datasets` before 5.2 cannot read
    Column("hash", BYTE_ARRAY, compressed=False),
)
ROW_GROUP_TOKENS = 1 << 20
PAGE_BUFFER_BYTES = 8 * ROW_GROUP_TOKENS  # the larger page of an enormous document is not kept
HASH_DTYPE = np.dtype("V16")
SIZED_HASH_DTYPE = np.dtype([("size", "<u4"), ("hash", HASH_DTYPE)])  # PLAIN encoding of a hash

Hashes = npt.NDArray[np.void]


@dataclass(frozen=True)
class EncodedDocuments:
    """Rows of a shard.

    `names`: id of each document. `ids`: token ids of all documents, end to end. `offsets`: where
    each document begins in `ids`, (documents + 1,), from 0. `sizes`: UTF-8 bytes of each text.
    `hashes`: hash of each text.
    """

    names: list[str]
    ids: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    hashes: Hashes


class ShardWriter:
    """Writes one shard.

    A row group ends with the batch that fills it to a million tokens. So the bytes depend only on
    the rows and their batches, which the chunk decides.

    Token ids are stored by BYTE_STREAM_SPLIT: with zstd this takes half the time of PLAIN and is as
    small.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = ParquetWriter(path, COLUMNS)
        self.rows = self.tokens = self.bytes = 0
        self._pending: list[EncodedDocuments] = []
        self._pending_tokens = 0
        # reused: fresh memory for each page would double its cost
        self._page_buffer = np.empty(PAGE_BUFFER_BYTES, np.uint8)

    def add(self, batch: EncodedDocuments) -> None:
        """Add documents; at least one."""
        self._pending.append(batch)
        self._pending_tokens += len(batch.ids)
        self.rows += len(batch.names)
        self.tokens += len(batch.ids)
        self.bytes += int(batch.sizes.sum())
        if self._pending_tokens >= ROW_GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        batches = self._pending
        names = [name.encode() for batch in batches for name in batch.names]
        lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
        sizes = np.concatenate([batch.sizes for batch in batches])
        hashes = np.concatenate([batch.hashes for batch in batches])
        sized_names = b"".join([len(name).to_bytes(4, "little") + name for name in names])
        sized_hashes = np.empty(len(names), SIZED_HASH_DTYPE)
        sized_hashes["size"], sized_hashes["hash"] = HASH_DTYPE.itemsize, hashes
        values = int(np.maximum(lengths, 1).sum())  # an empty list counts as one value
        count = len(names)
        pages = (
            (count, sized_names),
            (values, self._id_page(lengths)),
            (count, lengths.astype(np.int32).tobytes()),
            (count, sizes.tobytes()),
            (count, sized_hashes.tobytes()),
        )
        self._file.add(count, pages)
        self._pending, self._pending_tokens = [], 0

    def _id_page(self, lengths: npt.NDArray[np.int64]) -> memoryview:
        """The page of token ids: list levels, then values."""
        levels = list_levels(lengths)
        size = len(levels) + 4 * self._pending_tokens
        fits = size <= PAGE_BUFFER_BYTES
        page = self._page_buffer[:size] if fits else np.empty(size, np.uint8)
        page[: len(levels)] = np.frombuffer(levels, np.uint8)
        byte_stream_split([batch.ids for batch in self._pending], page[len(levels) :])
        return page.data

    def close(self) -> None:
        """Write the remaining rows and the footer."""
        if self._pending:
            self._flush()
        self._file.close()

    def abandon(self) -> None:
        """Close the file without a footer. Does nothing after `close`."""
        self._file.abandon()


def read_hashes(path: Path) -> Hashes:
    """The text hashes of a shard, 16 bytes per row."""
    with pq.ParquetFile(path) as file:  # `read_table` would import more than is needed here
        table = file.read(columns=["hash"], use_threads=False)
    return np.concatenate([np.empty(0, HASH_DTYPE), *map(hash_array, table["hash"].chunks)])


def hash_array(column: pa.BinaryArray) -> Hashes:
    """A column of text hashes as an array of 16 bytes each, without a copy."""
    if not len(column):
        return np.empty(0, HASH_DTYPE)
    data = np.frombuffer(column.buffers()[2], HASH_DTYPE)
    return data[column.offset : column.offset + len(column)]


def read_row_groups(
    path: Path,
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], pa.RecordBatch]]:
    """Read a shard by row groups.

    Yields:
        Token ids end to end; where each row begins in them, (rows + 1,); and a record batch with
        the columns `bytes` and `hash`.
    """
    columns = ["input_ids", "bytes", "hash"]
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False).combine_chunks()
            for batch in table.to_batches():
                column = batch.column("input_ids")
                offsets = column.offsets.to_numpy().astype(np.int64)
                flat = column.values.to_numpy()[offsets[0] : offsets[-1]]
                yield flat, offsets - offsets[0], batch
