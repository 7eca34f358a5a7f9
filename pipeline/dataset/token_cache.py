"""The token cache: all token ids of a split in one memory-mapped array, without duplicates.

Training and scoring read it. It is built once, from verified shards: the place of each shard in it
is known, so several are read at the same time. It is verified each time it is opened.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core import commit as commits
from pipeline.core import receipt as receipts
from pipeline.core.errors import Busy, CorruptInput
from pipeline.core.lease import Lease
from pipeline.core.receipt import UnitIdentity, hash_json
from pipeline.core.stage import Context
from pipeline.tokenize.facts import SealContent
from pipeline.tokenize.shards import HASH_DTYPE, Hashes, hash_array, read_row_groups

CACHE_VERSION = 2
POLL_SECONDS = 2.0  # between looks at a cache that another process builds


@dataclass(frozen=True)
class SealedShards:
    """Shards and the seal that lists them.

    `folder`: holds the units of the shards; the cache goes beside them. `seal`: unit folder of the
    seal. `content`: its `seal.json`. `digest`: its content digest.
    """

    folder: Path
    seal: Path
    content: SealContent
    digest: str

    @classmethod
    def load(cls, folder: Path, seal: Path, digest: str) -> SealedShards:
        """Read `seal.json`, which the caller has verified."""
        return cls(folder, seal, json.loads((seal / "seal.json").read_text()), digest)


@dataclass(frozen=True)
class TokenizedSplit:
    """One split, memory-mapped. Document d is `ids[offsets[d]:offsets[d + 1]]`.

    `ids`: token ids, uint16 or uint32. `offsets`: int64, (documents + 1,). `bytes`: UTF-8 bytes of
    each text, int64, (documents,). `hashes`: text hash of each document, 16 bytes, (documents,).
    `digest`: content digest.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    hashes: Hashes
    digest: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of a document, int64, without special tokens around it."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)


def open_token_cache(sealed: SealedShards, split: str, ctx: Context) -> TokenizedSplit:
    """Open the token cache of a split and verify it; build it first where there is none.

    One process builds it. Others that want it meanwhile wait.

    Args:
        sealed: The shards.
        split: One of `SPLITS`.
        ctx: Context of the step that reads the split; `ctx.cpus` shards are read at a time.

    Raises:
        CorruptInput: A shard is damaged. The error names its unit, so that it is rebuilt.
    """
    name, check = f"cache-{split}", ctx.stop.check
    step_key = hash_json(["cache", CACHE_VERSION])
    identity = UnitIdentity(
        key=step_key, own=step_key, inputs={"seal": sealed.digest}, code=ctx.code
    )
    unit = sealed.folder / name
    while receipts.load_current(unit, identity) is None:
        check()
        try:
            with Lease(
                sealed.folder / f".lease-{name}", ctx.label, ctx.has_ended, check=check
            ) as lease:
                if receipts.load_current(unit, identity) is None:
                    with commits.commit(sealed.folder, name, identity, lease.confirm) as draft:
                        _build(sealed, split, draft.path, ctx)
        except Busy:  # a second copy of a large cache would take as much disk as the shards
            time.sleep(POLL_SECONDS)
    receipt = receipts.load_current(unit, identity)
    if receipt is None:
        raise CorruptInput(f"{unit} vanished while it was used")
    receipt.verify(unit, check)
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in unit.glob("*.npy")}
    return TokenizedSplit(
        arrays["ids"], arrays["offsets"], arrays["bytes"], arrays["hashes"], receipt.digest
    )


def _build(sealed: SealedShards, split: str, out: Path, ctx: Context) -> None:
    """Write the arrays of a split into the folder `out`."""
    kept = np.array(sealed.content["kept"][split], dtype=np.int64).reshape(-1, 2)
    starts = np.concatenate([np.zeros((1, 2), np.int64), kept.cumsum(axis=0)])
    documents, tokens = starts[-1].tolist()
    arrays = _Arrays(
        _allocate_ids(out / "ids.npy", tokens, sealed.content["vocabulary"]),
        np.zeros(documents + 1, dtype=np.int64),
        np.zeros(documents, dtype=np.int64),
        np.zeros(documents, dtype=HASH_DTYPE),
    )
    duplicates = np.load(sealed.seal / "duplicates.npz")[split]

    def copy(index: int) -> None:
        ctx.stop.check()
        unit = sealed.folder / sealed.content["shards"][index]
        receipt = receipts.load(unit)
        if receipt is None:
            raise CorruptInput(f"{unit} has no receipt", unit=unit)
        path = receipts.verify(unit, f"{split}.parquet", receipt, ctx.stop.check)
        dropped = duplicates[duplicates[:, 0] == index][:, 1]
        arrays.copy_shard(path, dropped, *starts[index].tolist())

    with ThreadPoolExecutor(ctx.cpus) as pool:
        list(pool.map(copy, range(len(kept))))
    arrays.ids.flush()
    np.save(out / "offsets.npy", arrays.offsets)
    np.save(out / "bytes.npy", arrays.bytes)
    np.save(out / "hashes.npy", arrays.hashes)


def _allocate_ids(path: Path, tokens: int, vocabulary_size: int) -> np.memmap[Any, Any]:
    """A memory-mapped array of token ids, uint16 where they fit, with all its disk space."""
    dtype = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    ids = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=(tokens,))
    with path.open("r+b") as file:
        # a full disk must be an error here, not a SIGBUS at a later write
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size or 1)
    return ids


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a cache that is being built; see `TokenizedSplit`."""

    ids: np.memmap[Any, Any]
    offsets: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    hashes: Hashes

    def copy_shard(
        self, path: Path, dropped: npt.NDArray[np.int64], document: int, token: int
    ) -> None:
        """Copy a shard without its `dropped` rows; it begins at `document` and at `token`."""
        row = 0
        for flat, begins, batch in read_row_groups(path):
            lengths = np.diff(begins)
            keep = np.ones(len(lengths), dtype=bool)
            keep[dropped[(dropped >= row) & (dropped < row + len(lengths))] - row] = False
            row += len(lengths)
            if not keep.all():
                flat, lengths = flat[np.repeat(keep, lengths)], lengths[keep]
            n, m = len(lengths), len(flat)
            self.ids[token : token + m] = flat
            self.offsets[document + 1 : document + n + 1] = token + np.cumsum(lengths)
            self.bytes[document : document + n] = batch.column("bytes").to_numpy()[keep]
            self.hashes[document : document + n] = hash_array(batch.column("hash"))[keep]
            document, token = document + n, token + m
