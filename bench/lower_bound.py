"""What it costs without tokenizing: the floor under our own cost, in the same environment.

    python -m bench.lower_bound write OUT.parquet IDS.npy CHUNK.jsonl.zst …
    python -m bench.lower_bound write-own OUT.parquet IDS.npy CHUNK.jsonl.zst …
    python -m bench.lower_bound decode CORPUS.jsonl.zst
    python -m bench.lower_bound read SHARD.parquet …

`write` does all that tokenizing a chunk does but BPE, by the libraries: decode (zstandard), parse
(msgspec), and write ids that were made before as the same columns (pyarrow at its cheapest: zstd 1
and BYTE_STREAM_SPLIT). `write-own` has the product's own Writer in place of pyarrow's. `decode`
only decompresses. `read` brings the ids of shards back into flat arrays, with what training reads
beside them; it prints (tokens, CPU seconds of reading alone).
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

BLOCK = 4 << 20


def decode(path: Path) -> Iterator[memoryview]:
    """The decompressed bytes of a file, in blocks that are good until the next one."""
    import zstandard

    block = bytearray(BLOCK)
    reader = zstandard.ZstdDecompressor(max_window_size=2**31)
    with path.open("rb") as file, reader.stream_reader(file, read_across_frames=True) as stream:
        while size := stream.readinto(block):
            yield memoryview(block)[:size]


def write(out: Path, pool: Path, chunks: list[Path], own: bool) -> None:
    """Decode, parse and write; the ids are real ones from a pool, one for four bytes of text."""
    import msgspec
    import numpy as np
    import xxhash

    from pipeline.tokenize.shards import EncodedDocuments, ShardWriter

    class Line(msgspec.Struct):
        text: str

    ids, decoder = np.load(pool).astype(np.uint32), msgspec.json.Decoder(Line)
    writer = ShardWriter(out) if own else Plain(out)
    at = number = 0
    for chunk in chunks:
        for lines in _whole_lines(chunk):
            data = [line.text.encode() for line in decoder.decode_lines(lines)]
            sizes = np.fromiter(map(len, data), np.int64, len(data))
            ends = np.cumsum(np.concatenate([[0], sizes // 4]))
            at = 0 if at + ends[-1] > len(ids) else at
            chosen = ids[at : at + ends[-1]]
            digests = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, data)), "V16")
            names = [str(number + n) for n in range(len(data))]
            offsets = np.minimum(ends, len(chosen))
            writer.add(EncodedDocuments(names, chosen, offsets, sizes, digests))
            at, number = at + int(ends[-1]), number + len(data)
    writer.close()


class Plain:
    """The columns of a shard by pyarrow's writer, a row group for a million tokens.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = pa.list_(pa.field("element", pa.int32(), nullable=False))
        kinds = pa.string(), ids, pa.int32(), pa.int64(), pa.binary(16)
        names = ("id", "input_ids", "tokens", "bytes", "hash")
        named = zip(names, kinds, strict=True)
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in named])
        packed = dict.fromkeys(["id", "input_ids.list.element", "tokens", "bytes"], "zstd")
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression={**packed, "hash": "none"},
            compression_level=dict.fromkeys(packed, 1),
            use_dictionary=False,
            column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
            data_page_size=1 << 23,
            write_statistics=False,
        )
        self._tables: list[Any] = []
        self._held = 0

    def add(self, some: EncodedDocuments) -> None:
        """Add documents."""
        import numpy as np
        import pyarrow as pa

        lists = pa.ListArray.from_arrays(
            pa.array(some.offsets.astype(np.int32)),
            pa.array(some.ids.view(np.int32)),
            type=self._schema.field("input_ids").type,
        )
        tokens = pa.array(np.diff(some.offsets).astype(np.int32))
        kind = self._schema.field("hash").type
        hashes = pa.Array.from_buffers(kind, len(tokens), [None, pa.py_buffer(some.hashes)])
        columns = [pa.array(some.names), lists, tokens, pa.array(some.sizes), hashes]
        self._tables.append(pa.Table.from_arrays(columns, schema=self._schema))
        self._held += len(some.ids)
        if self._held >= 1 << 20:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._tables)
        self._file.write_table(table, row_group_size=len(table))
        self._tables, self._held = [], 0

    def close(self) -> None:
        """Write what is left."""
        if self._tables:
            self._flush()
        self._file.close()


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for block in decode(path):
        cut = bytes(block)
        end = cut.rfind(b"\n") + 1
        if end:
            yield rest + cut[:end]
            rest = cut[end:]
        else:
            rest += cut
    if rest:
        yield rest


def read(shards: list[Path]) -> tuple[int, float]:
    """Tokens in shards, and CPU seconds of reading them as training does, by row groups.

    In batches of 4096 rows, of long documents 50 MB at once, it would cost twice as much: the
    kernel has to clear the memory for each.
    """
    import pyarrow as pa

    from pipeline.tokenize.shards import read_row_groups

    def ids(path: Path) -> int:
        return sum(len(flat) for flat, _, _ in read_row_groups(path))

    pa.set_cpu_count(1)
    ids(min(shards, key=lambda path: path.stat().st_size))  # the first loads what it needs
    started = time.process_time()
    return sum(map(ids, shards)), time.process_time() - started


def main() -> None:
    """Do what the command line says."""
    what, *paths = sys.argv[1:]
    files = [Path(path) for path in paths]
    if what in ("write", "write-own"):
        write(files[0], files[1], files[2:], what == "write-own")
    elif what == "decode":
        sum(len(block) for block in decode(files[0]))
    else:
        print(json.dumps(read(files)))


if __name__ == "__main__":
    main()
