"""Shards: Parquet files of token ids, one row a document; and the flat token cache made from them.

A shard opens with `datasets.load_dataset("parquet", …)`. Training and scoring read the cache: the
ids of a split end to end in one memory-mapped array, duplicates left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import receipt as receipts
from pipeline.errors import CorruptInput
from pipeline.receipt import Stamp, hash_json

SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("bytes", pa.int64()),
        ("hash", pa.binary()),
    ]
)
ROW_GROUP_TOKENS = 1 << 20
CACHE_VERSION = 1


class Writer:
    """One Parquet shard. Row groups end by token count, so the bytes depend on the rows alone.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1)
        self.rows = self.tokens = self.bytes = 0
        self._clear()

    def _clear(self) -> None:
        self._ids: list[str] = []
        self._tokens: list[npt.NDArray[np.int32]] = []
        self._bytes: list[int] = []
        self._hashes: list[bytes] = []
        self._pending = 0

    def add(self, name: str, ids: npt.NDArray[np.int32], size: int, digest: bytes) -> None:
        """Add a document: its id, token ids, UTF-8 bytes of text, and text hash."""
        self._ids.append(name)
        self._tokens.append(ids)
        self._bytes.append(size)
        self._hashes.append(digest)
        self._pending += len(ids)
        self.rows += 1
        self.tokens += len(ids)
        self.bytes += size
        if self._pending >= ROW_GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        offsets = np.zeros(len(self._ids) + 1, dtype=np.int32)
        np.cumsum([len(ids) for ids in self._tokens], out=offsets[1:])
        flat = np.concatenate(self._tokens) if self._tokens else np.empty(0, np.int32)
        columns = [
            pa.array(self._ids, pa.string()),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            pa.array(self._bytes, pa.int64()),
            pa.array(self._hashes, pa.binary()),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._clear()

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._ids:
            self._flush()
        self._file.close()


def hashes(path: Path) -> npt.NDArray[np.void]:
    """The text hashes of a shard, 16 bytes a row."""
    column = pq.read_table(path, columns=["hash"])["hash"].combine_chunks()
    flat = b"".join(value.as_py() for value in column)
    return np.frombuffer(flat, dtype="V16")


def rows(
    path: Path,
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], pa.RecordBatch]]:
    """A shard by record batches: flat ids, offsets into them (rows + 1), and the batch itself."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=4096):
            column = batch.column("input_ids")
            offsets = column.offsets.to_numpy().astype(np.int64)
            flat = column.values.to_numpy()[offsets[0] : offsets[-1]]
            yield flat, offsets - offsets[0], batch


@dataclass(frozen=True)
class Corpus:
    """One split, memory-mapped. Document d is `ids[offsets[d]:offsets[d + 1]]`.

    `ids`: token ids, uint16 or uint32. `offsets`: int64, documents + 1. `bytes`: UTF-8 bytes of
    each text, int64. `hashes`: text hash of each document, 16 bytes. `digest`: content digest.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.void]
    digest: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of a document, int64, nothing added."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)


def open_corpus(
    folder: Path, sealed: Path, seal: dict[str, Any], digest: str, split: str, code: str = ""
) -> Corpus:
    """The token cache of a split, verified; where it is missing, built from verified shards.

    Args:
        folder: Where the shards stand; the cache goes beside them.
        sealed: Unit folder of the seal.
        seal: Content of its `seal.json`.
        digest: Content digest of the seal.
        split: One of `SPLITS`.

    Raises:
        CorruptInput: A shard is damaged; so that it is rebuilt, its unit is named.
    """
    name = f"cache-{split}"
    own = hash_json(["cache", CACHE_VERSION])
    stamp = Stamp(key=own, own=own, inputs={"seal": digest}, code=code)
    unit = folder / name
    if receipts.valid(unit, stamp) is None:
        with receipts.commit(folder, name, stamp) as draft:
            _build(folder, seal, split, draft.path, sealed)
    receipt = receipts.valid(unit, stamp)
    if receipt is None:
        raise CorruptInput(f"{unit} vanished while it was used")
    receipt.verify(unit)
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in unit.glob("*.npy")}
    return Corpus(
        arrays["ids"], arrays["offsets"], arrays["bytes"], arrays["hashes"], receipt.digest
    )


def _build(folder: Path, seal: dict[str, Any], split: str, out: Path, sealed: Path) -> None:
    kept = seal["splits"][split]
    kind = np.uint16 if seal["vocabulary"] <= 1 << 16 else np.uint32
    ids = np.lib.format.open_memmap(out / "ids.npy", "w+", dtype=kind, shape=(kept["tokens"],))
    with (out / "ids.npy").open("r+b") as file:
        # a full disk shall be an error here, not a SIGBUS at some later write
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size or 1)
    offsets = np.zeros(kept["documents"] + 1, dtype=np.int64)
    size = np.zeros(kept["documents"], dtype=np.int64)
    digests = np.zeros(kept["documents"], dtype="V16")
    skip = np.load(sealed / "duplicates.npz")[split]
    document = token = 0
    for index, shard in enumerate(seal["shards"]):
        unit = folder / shard
        receipt = receipts.load(unit)
        if receipt is None:
            raise CorruptInput(f"{unit} is missing its receipt", unit=unit)
        path = receipts.verify(unit, f"{split}.parquet", receipt)
        drop = set(skip[skip[:, 0] == index][:, 1].tolist())
        row = 0
        for flat, starts, batch in rows(path):
            count = len(starts) - 1
            keep = np.array([row + i not in drop for i in range(count)], dtype=bool)
            lengths = np.diff(starts)
            chosen = flat[np.repeat(keep, lengths)]
            n, m = int(keep.sum()), len(chosen)
            ids[token : token + m] = chosen
            offsets[document + 1 : document + n + 1] = token + np.cumsum(lengths[keep])
            size[document : document + n] = batch.column("bytes").to_numpy()[keep]
            raw = b"".join(v.as_py() for v in batch.column("hash"))
            digests[document : document + n] = np.frombuffer(raw, "V16")[keep]
            document, token, row = document + n, token + m, row + count
    ids.flush()
    np.save(out / "offsets.npy", offsets)
    np.save(out / "bytes.npy", size)
    np.save(out / "hashes.npy", digests)
