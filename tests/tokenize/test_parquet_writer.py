"""pyarrow and datasets can read what our Parquet writer writes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenize import parquet_writer, shards
from pipeline.tokenize.parquet_writer import FIXED_LEN_BYTE_ARRAY, INT32, Column, ParquetWriter
from pipeline.tokenize.shards import (
    HASH_DTYPE,
    EncodedDocuments,
    ShardWriter,
    read_hashes,
    read_row_groups,
)

NAMES = ["id", "input_ids", "tokens", "bytes", "hash"]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        ("tokens", pa.int32()),
        ("bytes", pa.int64()),
        ("hash", pa.binary()),
    ]
)

# lengths around those at which the varint of a run grows by a byte
LENGTHS = st.sampled_from([0, 1, 2, 3, 63, 64, 65, 66, 8191, 8192, 8193, 8194])
BATCH = st.lists(st.tuples(st.text(max_size=5), LENGTHS, st.integers(0, 2**62)), max_size=12)


def documents(batch: list[tuple[str, int, int]], rng: np.random.Generator) -> EncodedDocuments:
    """Documents with these names, numbers of tokens and sizes."""
    lengths = [length for _, length, _ in batch]
    return EncodedDocuments(
        [name for name, _, _ in batch],
        rng.integers(0, 2**31, sum(lengths)).astype(np.uint32),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([size for _, _, size in batch], np.int64),
        np.frombuffer(rng.bytes(16 * len(batch)), HASH_DTYPE),
    )


def as_rows(batch: EncodedDocuments) -> list[tuple[Any, ...]]:
    """The rows that a reader must find."""
    cuts = list(zip(batch.offsets, batch.offsets[1:], strict=False))
    ids = [batch.ids[a:b].tolist() for a, b in cuts]
    hashes = [value.tobytes() for value in batch.hashes]
    return list(zip(batch.names, ids, map(len, ids), batch.sizes.tolist(), hashes, strict=True))


@pytest.mark.slow
@settings(deadline=None)
@given(batches=st.lists(BATCH, max_size=5), group=st.sampled_from([1, 100, 1 << 20]))
def test_pyarrow_reads_what_was_written(
    batches: list[list[tuple[str, int, int]]], group: int, tmp_path_factory: Any
) -> None:
    path, rng = tmp_path_factory.getbasetemp() / "some.parquet", np.random.default_rng(0)
    given_ = [documents(batch, rng) for batch in batches]
    wanted = [row for batch in given_ for row in as_rows(batch)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_TOKENS", group)
        writer = ShardWriter(path)
        for batch in given_:
            writer.add(batch)
        writer.close()
    table = pq.read_table(path)
    assert list(zip(*(table[name].to_pylist() for name in NAMES), strict=True)) == wanted
    assert (writer.rows, writer.tokens) == (len(wanted), sum(row[2] for row in wanted))
    flat = [(ids, np.diff(offsets)) for ids, offsets, _ in read_row_groups(path)]
    assert [n for ids, _ in flat for n in ids] == [n for row in wanted for n in row[1]]
    assert [n for _, lengths in flat for n in lengths] == [row[2] for row in wanted]
    assert read_hashes(path).tobytes() == b"".join(row[4] for row in wanted)


def test_schema_and_footer_are_correct(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_TOKENS", 1)
        writer = ShardWriter(tmp_path / "a.parquet")
        for n in range(20):  # more than a short list of Thrift holds
            writer.add(documents([(f"é{n}", 300 * n, n)], rng))
        writer.close()
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == NAMES
    assert [field.type for field in schema] == [field.type for field in SCHEMA]
    assert not any(field.nullable for field in schema)
    found = pq.read_metadata(tmp_path / "a.parquet")
    assert (found.num_rows, found.num_row_groups, found.num_columns) == (20, 19, 5)
    ends = 4
    for group in (found.row_group(n) for n in range(found.num_row_groups)):
        columns = [group.column(n) for n in range(5)]
        assert group.total_byte_size == sum(c.total_uncompressed_size for c in columns)
        for column in columns:  # each begins where the previous one ends
            assert column.data_page_offset == ends
            ends += column.total_compressed_size
        assert [c.compression for c in columns] == ["ZSTD"] * 4 + ["UNCOMPRESSED"]
        assert columns[1].encodings == ("BYTE_STREAM_SPLIT", "RLE")
    assert (tmp_path / "a.parquet").stat().st_size == ends + found.serialized_size + 8


def test_a_shard_opens_with_datasets(tmp_path: Path) -> None:
    import datasets

    batch = documents([("a", 5, 9), ("b", 0, 0), ("c", 70, 80)], np.random.default_rng(2))
    writer = ShardWriter(tmp_path / "a.parquet")
    writer.add(batch)
    writer.close()
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=tmp_path / "c"
    )
    assert [tuple(row[name] for name in NAMES) for row in found] == as_rows(batch)


def test_a_shard_without_rows(tmp_path: Path) -> None:
    ShardWriter(tmp_path / "a.parquet").close()
    table = pq.read_table(tmp_path / "a.parquet")
    assert (table.schema.names, len(table)) == (NAMES, 0)
    assert len(read_hashes(tmp_path / "a.parquet")) == 0
    assert list(read_row_groups(tmp_path / "a.parquet")) == []


def test_bytes_depend_only_on_rows_and_batches(tmp_path: Path) -> None:
    batch = documents([("a", 3000, 1), ("b", 0, 1), ("c", 9000, 1)], np.random.default_rng(3))
    for name in "ab":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "ROW_GROUP_TOKENS", 20_000)
            writer = ShardWriter(tmp_path / name)
            for _ in range(5):
                writer.add(batch)
            writer.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_metadata(tmp_path / "a").num_row_groups == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_full_disk_is_reported_once() -> None:
    writer = ShardWriter(Path("/dev/full"))
    writer.add(documents([("a", 9, 9)], np.random.default_rng(4)))
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    writer.abandon()
    del writer
    gc.collect()  # a file that is still open would write again, and fail unseen


def test_a_document_larger_than_the_page_buffer_is_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PAGE_BUFFER_BYTES", 1000)
    batch = documents([("a", 5000, 1), ("b", 10, 1)], np.random.default_rng(5))
    writer = ShardWriter(tmp_path / "a.parquet")
    for _ in range(2):
        writer.add(batch)
    writer.close()
    found = pq.read_table(tmp_path / "a.parquet")["input_ids"].to_pylist()
    assert found == [row[1] for row in as_rows(batch)] * 2


def test_a_page_that_parquet_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_writer, "MAX_PAGE_BYTES", 100)
    file = ParquetWriter(tmp_path / "a.parquet", [Column("n", INT32, compressed=False)])
    file.add(25, [(25, bytes(100))])
    with pytest.raises(OverflowError, match="104 bytes of a column in one page"):
        file.add(26, [(26, bytes(104))])


def test_values_of_fixed_size(tmp_path: Path) -> None:
    file = ParquetWriter(tmp_path / "a.parquet", [Column("n", FIXED_LEN_BYTE_ARRAY, size=3)])
    file.add(2, [(2, b"abcdef")])
    file.close()
    assert pq.read_table(tmp_path / "a.parquet")["n"].to_pylist() == [b"abc", b"def"]
