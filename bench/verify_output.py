"""Check tokenized output: ids against the reference tokenizer, size, and read speed."""

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
from bench.model import END_ID

BATCH_DOCUMENTS = 1000
READ_REPETITIONS = 5
Ids = npt.NDArray[np.uint16]


def reference_ids(corpus: Corpus, model: Path) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Encode every document with `encode_batch` of Hugging Face's tokenizers; cached in a file.

    Returns:
        The concatenated ids, and the start of each document in them (documents + 1 numbers).
    """
    path = Path(corpus.folder) / f"{corpus.name}.ids.npz"
    if not path.exists() or path.stat().st_mtime < corpus.plain.stat().st_mtime:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        flat: list[Ids] = []
        with corpus.plain.open("rb") as file:
            while lines := list(islice(file, BATCH_DOCUMENTS)):
                texts = [msgspec.json.decode(line)["text"] for line in lines]
                encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
                flat += [np.array(encoding.ids, dtype=np.uint16) for encoding in encodings]
        starts = np.cumsum([0, *map(len, flat)])
        np.savez(path, ids=np.concatenate(flat), starts=starts)
    with np.load(path) as cached:
        return cached["ids"], cached["starts"]


def save_pool(ids: Ids, path: Path) -> None:
    """Save ids for the lower bound: enough that zstd cannot profit from their repetition."""
    np.save(path, ids[:4_000_000].astype(np.int32))


def compare(
    shards: list[Path], ids: Ids, starts: npt.NDArray[np.int64], blank: set[int]
) -> tuple[int, int]:
    """Count the documents in shards with exactly the expected ids, and the expected documents.

    Gristmill leaves out blank documents (only white space) by design.
    """
    exact: set[int] = set()
    for path in shards:
        for number, row in _rows(path):
            if np.array_equal(row, ids[starts[number] : starts[number + 1]]):
                exact.add(number)
    return len(exact), len(starts) - 1 - len(blank - exact)


def _rows(path: Path) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096, columns=["id", "input_ids"]):
            column = batch.column("input_ids")
            offsets, flat = column.offsets.to_numpy(), column.values.to_numpy()
            for row, name in enumerate(batch.column("id").to_pylist()):
                yield int(name), flat[offsets[row] : offsets[row + 1]]


def blank_documents(corpus: Corpus) -> set[int]:
    """The numbers of documents that are only white space."""
    with corpus.plain.open("rb") as file:
        return {
            number
            for number, line in enumerate(file)
            if not msgspec.json.decode(line)["text"].strip()
        }


def same_counts(files: list[Path], ids: Ids) -> bool:
    """Whether flat uint16 files hold every id as often as expected, in any order."""
    actual = np.concatenate([np.fromfile(path, dtype=np.uint16) for path in files])
    counts = [np.bincount(each, minlength=1 << 16) for each in (actual, ids)]
    for count in counts:
        count[END_ID] = 0  # appended to each document by all peers, and part of some texts
    return np.array_equal(*counts)


def column_bytes(shards: list[Path]) -> int:
    """Compressed bytes of the ids column of shards."""
    return sum(_column_bytes(path, "input_ids") for path in shards)


def binary_bytes(shards: list[Path], scratch: Path) -> int:
    """Bytes of the same ids and row groups as binary uint16 values, one per document, zstd 1."""
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
                    offsets = 2 * np.cumsum([0, *values.value_lengths().to_numpy()])
                    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(flat)]
                    array = pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
                    writer.write_table(pa.Table.from_arrays([array], schema=schema))
        total += _column_bytes(scratch, "ids")
        scratch.unlink()
    return total


def _column_bytes(path: Path, name: str) -> int:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] == name)


def read_rate(shards: list[Path], core: int) -> float:
    """Tokens read per CPU second: the median of several runs, each in a new process."""
    rates = []
    for _ in range(READ_REPETITIONS):
        done = subprocess.run(
            [sys.executable, "-m", "bench.lower_bound", "read", *map(str, shards)],
            capture_output=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        tokens, seconds = msgspec.json.decode(done.stdout.splitlines()[-1])
        rates.append(tokens / seconds)
    return float(median(rates))


def folder_bytes(path: Path) -> int:
    """Total bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
