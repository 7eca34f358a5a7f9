"""A split as training and scoring read it: ids end to end, memory-mapped, without duplicates.

The cache is made from verified shards once, each of which has its known place in it, so several are
read at the same time; and it is verified whenever it is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core import receipt as receipts
from pipeline.core.errors import Busy, CorruptInput
from pipeline.core.lease import Gone, Lease
from pipeline.core.receipt import UnitIdentity, hash_json
from pipeline.tokenize.shards import HASH, Hashes, hashes, rows

VERSION = 2
WAIT = 2.0


@dataclass(frozen=True)
class Corpus:
    """One split, memory-mapped. Document d is `ids[offsets[d]:offsets[d + 1]]`.

    `ids`: token ids, uint16 or uint32. `offsets`: int64, documents + 1. `bytes`: UTF-8 bytes of
    each text, int64. `hashes`: text hash of each document, 16 bytes. `digest`: content digest.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    hashes: Hashes
    digest: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of a document, int64, nothing added."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)


def open_corpus(
    folder: Path,
    sealed: Path,
    seal: dict[str, Any],
    digest: str,
    split: str,
    *,
    code: str = "",
    workers: int = 1,
    check: Callable[[], None] = lambda: None,
    label: str = "unnamed",
    gone: Gone = lambda label: None,
) -> Corpus:
    """The token cache of a split, verified; where it is missing, built from verified shards.

    Args:
        folder: Where the shards stand; the cache goes beside them.
        sealed: Unit folder of the seal.
        seal: Content of its `seal.json`.
        digest: Content digest of the seal.
        split: One of `SPLITS`.
        code: Version of the code, for the receipt.
        workers: Shards that are read at the same time.
        check: Called before each; it may raise.
        label: See `Lease`; of several that want a cache one builds it, and the others wait.
        gone: Likewise.

    Raises:
        CorruptInput: A shard is damaged; so that it is rebuilt, its unit is named.
    """
    name = f"cache-{split}"
    own = hash_json(["cache", VERSION])
    identity = UnitIdentity(key=own, own=own, inputs={"seal": digest}, code=code)
    unit = folder / name
    while receipts.load_current(unit, identity) is None:
        check()
        try:
            with Lease(folder / f".lease-{name}", label, gone, check=check) as lease:
                if receipts.load_current(unit, identity) is None:
                    with receipts.commit(folder, name, identity, lease.confirm) as draft:
                        _build(folder, seal, split, draft.path, sealed, workers, check)
        except Busy:  # that of a large corpus is as large as its shards
            time.sleep(WAIT)
    receipt = receipts.load_current(unit, identity)
    if receipt is None:
        raise CorruptInput(f"{unit} vanished while it was used")
    receipt.verify(unit, check)
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in unit.glob("*.npy")}
    return Corpus(
        arrays["ids"], arrays["offsets"], arrays["bytes"], arrays["hashes"], receipt.digest
    )


def _build(
    folder: Path,
    seal: dict[str, Any],
    split: str,
    out: Path,
    sealed: Path,
    workers: int,
    check: Callable[[], None],
) -> None:
    kept = np.array(seal["kept"][split], dtype=np.int64).reshape(-1, 2)
    starts = np.concatenate([np.zeros((1, 2), np.int64), kept.cumsum(axis=0)])
    documents, tokens = starts[-1].tolist()
    kind = np.uint16 if seal["vocabulary"] <= 1 << 16 else np.uint32
    ids = np.lib.format.open_memmap(out / "ids.npy", "w+", dtype=kind, shape=(tokens,))
    with (out / "ids.npy").open("r+b") as file:
        # a full disk shall be an error here, not a SIGBUS at some later write
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size or 1)
    offsets = np.zeros(documents + 1, dtype=np.int64)
    size = np.zeros(documents, dtype=np.int64)
    digests = np.zeros(documents, dtype=HASH)
    skip = np.load(sealed / "duplicates.npz")[split]

    def copy(index: int) -> None:
        check()
        unit = folder / seal["shards"][index]
        receipt = receipts.load(unit)
        if receipt is None:
            raise CorruptInput(f"{unit} is missing its receipt", unit=unit)
        path = receipts.verify(unit, f"{split}.parquet", receipt, check)
        drop = skip[skip[:, 0] == index][:, 1]
        (document, token), row = starts[index].tolist(), 0
        for flat, begins, batch in rows(path):
            lengths = np.diff(begins)
            keep = np.ones(len(lengths), dtype=bool)
            keep[drop[(drop >= row) & (drop < row + len(lengths))] - row] = False
            row += len(lengths)
            if not keep.all():
                flat, lengths = flat[np.repeat(keep, lengths)], lengths[keep]
            n, m = len(lengths), len(flat)
            ids[token : token + m] = flat
            offsets[document + 1 : document + n + 1] = token + np.cumsum(lengths)
            size[document : document + n] = batch.column("bytes").to_numpy()[keep]
            digests[document : document + n] = hashes(batch.column("hash"))[keep]
            document, token = document + n, token + m

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(copy, range(len(kept))))
    ids.flush()
    np.save(out / "offsets.npy", offsets)
    np.save(out / "bytes.npy", size)
    np.save(out / "hashes.npy", digests)
