"""Lower bounds for our own cost: the same work without tokenization, in the same environment.

    python -m bench.lower_bound write OUT.parquet IDS.npy CHUNK.jsonl.zst …
    python -m bench.lower_bound write-own OUT.parquet IDS.npy CHUNK.jsonl.zst …
    python -m bench.lower_bound decode CORPUS.jsonl.zst
    python -m bench.lower_bound read SHARD.parquet …

`write` does everything that tokenizing a chunk does except BPE, with library code: decode
(zstandard), parse (msgspec), and write precomputed ids to the same columns (pyarrow with its
cheapest settings: zstd level 1 and BYTE_STREAM_SPLIT). `write-own` uses the product's ShardWriter
instead of pyarrow's. `decode` only decompresses. `read` reads the ids of shards into flat arrays,
with the other columns that training reads; it prints (tokens, CPU seconds of reading alone).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.tokenize.shards import EncodedDocuments

BLOCK_BYTES = 4 << 20


def decode(path: Path) -> Iterator[memoryview]:
    """Yield the decompressed bytes of a file in blocks, each valid until the next one."""
    import zstandard

    block = bytearray(BLOCK_BYTES)
    reader = zstandard.ZstdDecompressor(max_window_size=2**31)
    with path.open("rb") as file, reader.stream_reader(file, read_across_frames=True) as stream:
        while size := stream.readinto(block):
            yield memoryview(block)[:size]


def write(out: Path, pool: Path, chunks: list[Path], own_writer: bool) -> None:
    """Decode, parse and write. The ids are real ones from a pool, one for four bytes of text."""
    import msgspec
    import numpy as np
    import xxhash

    from pipeline.tokenize.shards import EncodedDocuments, ShardWriter

    class Line(msgspec.Struct):
        text: str

    ids, decoder = np.load(pool).astype(np.uint32), msgspec.json.Decoder(Line)
    writer = ShardWriter(out) if own_writer else PyarrowWriter(out)
    start = number = 0
    for chunk in chunks:
        for lines in _complete_lines(chunk):
            data = [line.text.encode() for line in decoder.decode_lines(lines)]
            sizes = np.fromiter(map(len, data), np.int64, len(data))
            ends = np.cumsum(np.concatenate([[0], sizes // 4]))
            start = 0 if start + ends[-1] > len(ids) else start
            chunk_ids = ids[start : start + ends[-1]]
            digests = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, data)), "V16")
            names = [str(number + n) for n in range(len(data))]
            offsets = np.minimum(ends, len(chunk_ids))
            writer.add(EncodedDocuments(names, chunk_ids, offsets, sizes, digests))
            start, number = start + int(ends[-1]), number + len(data)
    writer.close()


class PyarrowWriter:
    """Writes the columns of a shard with pyarrow, in row groups of about a million tokens.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = pa.list_(pa.field("element", pa.int32(), nullable=False))
        types = pa.string(), ids, pa.int32(), pa.int64(), pa.binary(16)
        names = ("id", "input_ids", "tokens", "bytes", "hash")
        columns = zip(names, types, strict=True)
        self._schema = pa.schema([pa.field(name, t, nullable=False) for name, t in columns])
        compressed = dict.fromkeys(["id", "input_ids.list.element", "tokens", "bytes"], "zstd")
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression={**compressed, "hash": "none"},
            compression_level=dict.fromkeys(compressed, 1),
            use_dictionary=False,
            column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
            data_page_size=1 << 23,
            write_statistics=False,
        )
        self._tables: list[Any] = []
        self._buffered_tokens = 0

    def add(self, documents: EncodedDocuments) -> None:
        """Buffer documents, and write a row group when enough are there."""
        import numpy as np
        import pyarrow as pa

        lists = pa.ListArray.from_arrays(
            pa.array(documents.offsets.astype(np.int32)),
            pa.array(documents.ids.view(np.int32)),
            type=self._schema.field("input_ids").type,
        )
        tokens = pa.array(np.diff(documents.offsets).astype(np.int32))
        hash_type = self._schema.field("hash").type
        hashes = pa.Array.from_buffers(
            hash_type, len(tokens), [None, pa.py_buffer(documents.hashes)]
        )
        columns = [pa.array(documents.names), lists, tokens, pa.array(documents.sizes), hashes]
        self._tables.append(pa.Table.from_arrays(columns, schema=self._schema))
        self._buffered_tokens += len(documents.ids)
        if self._buffered_tokens >= 1 << 20:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._tables)
        self._file.write_table(table, row_group_size=len(table))
        self._tables, self._buffered_tokens = [], 0

    def close(self) -> None:
        """Write the last row group and close the file."""
        if self._tables:
            self._flush()
        self._file.close()


def _complete_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for block in decode(path):
        data = bytes(block)
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
    if rest:
        yield rest


def read(shards: list[Path]) -> tuple[int, float]:
    """Tokens in shards, and CPU seconds of reading them by row groups, as training does.

    Batches of 4096 rows, 50 MB for long documents, would cost twice as much, because the kernel
    clears the memory of each batch.
    """
    import pyarrow as pa

    from pipeline.tokenize.shards import read_row_groups

    def ids(path: Path) -> int:
        return sum(len(flat) for flat, _, _ in read_row_groups(path))

    pa.set_cpu_count(1)
    ids(
        min(shards, key=lambda path: path.stat().st_size)
    )  # warm-up: the first read loads libraries
    started = time.process_time()
    return sum(map(ids, shards)), time.process_time() - started


def main() -> None:
    """Run the mode named on the command line."""
    mode, *paths = sys.argv[1:]
    files = [Path(path) for path in paths]
    if mode in ("write", "write-own"):
        write(files[0], files[1], files[2:], mode == "write-own")
    elif mode == "decode":
        sum(len(block) for block in decode(files[0]))
    else:
        print(json.dumps(read(files)))


if __name__ == "__main__":
    main()
