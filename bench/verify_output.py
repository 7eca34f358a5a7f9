"""What came out: the same ids as the tokenizer's own, how large, and how fast to read back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench.corpora import Corpus
from bench.model import END

BATCH = 1000
READINGS = 5
Ids = npt.NDArray[np.uint16]


def reference(corpus: Corpus, model: Path) -> tuple[Ids, npt.NDArray[np.int64]]:
    """What `encode_batch` of Hugging Face's tokenizers makes of every document; kept.

    Returns:
        All ids end to end, and where each document begins (documents + 1).
    """
    path = Path(corpus.folder) / f"{corpus.name}.ids.npz"
    if not path.exists() or path.stat().st_mtime < corpus.plain.stat().st_mtime:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        flat: list[Ids] = []
        with corpus.plain.open("rb") as file:
            while lines := list(islice(file, BATCH)):
                texts = [msgspec.json.decode(line)["text"] for line in lines]
                found = tokenizer.encode_batch(texts, add_special_tokens=False)
                flat += [np.array(encoding.ids, dtype=np.uint16) for encoding in found]
        starts = np.cumsum([0, *map(len, flat)])
        np.savez(path, ids=np.concatenate(flat), starts=starts)
    with np.load(path) as kept:
        return kept["ids"], kept["starts"]


def save_pool(ids: Ids, path: Path) -> None:
    """Keep enough ids that zstd does not see them come round again, as the writer takes them."""
    np.save(path, ids[:4_000_000].astype(np.int32))


def compare(
    shards: list[Path], ids: Ids, starts: npt.NDArray[np.int64], blank: set[int]
) -> tuple[int, int]:
    """How many documents of shards hold exactly the ids they should; how many should be there.

    Documents of nothing but white space are left out by design.
    """
    right: set[int] = set()
    for path in shards:
        for number, found in _rows(path):
            if np.array_equal(found, ids[starts[number] : starts[number + 1]]):
                right.add(number)
    return len(right), len(starts) - 1 - len(blank - right)


def _rows(path: Path) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096, columns=["id", "input_ids"]):
            column = batch.column("input_ids")
            cuts, flat = column.offsets.to_numpy(), column.values.to_numpy()
            for row, name in enumerate(batch.column("id").to_pylist()):
                yield int(name), flat[cuts[row] : cuts[row + 1]]


def blank(corpus: Corpus) -> set[int]:
    """The documents of nothing but white space, by number."""
    with corpus.plain.open("rb") as file:
        return {
            number
            for number, line in enumerate(file)
            if not msgspec.json.decode(line)["text"].strip()
        }


def same_counts(files: list[Path], ids: Ids) -> bool:
    """Whether flat uint16 files hold every id as often as it should come, whatever the order."""
    found = np.concatenate([np.fromfile(path, dtype=np.uint16) for path in files])
    counts = [np.bincount(each, minlength=1 << 16) for each in (found, ids)]
    for count in counts:
        count[END] = 0  # put after each document by all of them, and some texts name it
    return np.array_equal(*counts)


def column_bytes(shards: list[Path]) -> int:
    """Compressed bytes of the ids in shards."""
    return sum(_stored(path, "input_ids") for path in shards)


def binary_bytes(shards: list[Path], scratch: Path) -> int:
    """The same ids, row groups kept, as one binary value of uint16 a document, zstd level 1."""
    total = 0
    for path in shards:
        with pq.ParquetFile(path) as file:
            schema = pa.schema([("ids", pa.large_binary())])
            with pq.ParquetWriter(
                scratch, schema, compression="zstd", compression_level=1, use_dictionary=False
            ) as writer:
                for group in range(file.num_row_groups):
                    column = file.read_row_group(group, columns=["input_ids"]).column(0)
                    values = column.combine_chunks()
                    flat = values.flatten().to_numpy().astype(np.uint16)
                    cuts = 2 * np.cumsum([0, *values.value_lengths().to_numpy()])
                    buffers = [None, pa.py_buffer(cuts.astype(np.int64)), pa.py_buffer(flat)]
                    array = pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
                    writer.write_table(pa.Table.from_arrays([array], schema=schema))
        total += _stored(scratch, "ids")
        scratch.unlink()
    return total


def _stored(path: Path, name: str) -> int:
    found = pq.read_metadata(path)
    groups = [found.row_group(index) for index in range(found.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] == name)


def read_rate(shards: list[Path], core: int) -> float:
    """Tokens read back per CPU second, the median of some processes of their own."""
    rates = []
    for _ in range(READINGS):
        done = subprocess.run(
            [sys.executable, "-m", "bench.lower_bound", "read", *map(str, shards)],
            capture_output=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        tokens, seconds = msgspec.json.decode(done.stdout.splitlines()[-1])
        rates.append(tokens / seconds)
    return float(median(rates))


def size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
