"""Every Arrow type as the text column of a Parquet file: read as text, or refused by its type."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import InputError
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.formats import json_lines
from pipeline.sources.records import Record, RecordParser
from tests.sources.helpers import dataset

DOCS = Path(__file__).parents[2] / "docs" / "inputs.md"
WORDS = ["caf\u00e9", "two"]
BYTES = [word.encode() for word in WORDS]
SIXES = ["caf\u00e91".encode(), b"abcdef"]
DAY = datetime.date(2020, 1, 2)
MOMENT = datetime.datetime(2020, 1, 2, 3, 4)


def json_column() -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', '"b"']))


READ: dict[str, tuple[Callable[[], pa.Array], list[str]]] = {
    "string": (lambda: pa.array(WORDS, pa.string()), WORDS),
    "large_string": (lambda: pa.array(WORDS, pa.large_string()), WORDS),
    "string_view": (lambda: pa.array(WORDS, pa.string_view()), WORDS),
    "binary": (lambda: pa.array(BYTES, pa.binary()), WORDS),
    "large_binary": (lambda: pa.array(BYTES, pa.large_binary()), WORDS),
    "binary_view": (lambda: pa.array(BYTES, pa.binary_view()), WORDS),
    "fixed_size_binary": (lambda: pa.array(SIXES, pa.binary(6)), ["caf\u00e91", "abcdef"]),
    "dictionary": (lambda: pa.array(WORDS).dictionary_encode(), WORDS),
    "list": (lambda: pa.array([WORDS, ["x"]]), ["caf\u00e9\n\ntwo", "x"]),
    "large_list": (
        lambda: pa.array([WORDS, ["x"]], pa.large_list(pa.binary())),
        ["caf\u00e9\n\ntwo", "x"],
    ),
    "fixed_size_list": (
        lambda: pa.array([WORDS, WORDS], pa.list_(pa.string(), 2)),
        ["caf\u00e9\n\ntwo"] * 2,
    ),
    "null": (lambda: pa.nulls(2), []),
    "extension": (json_column, ['{"a": 1}', '"b"']),
}
REFUSED: dict[str, Callable[[], pa.Array]] = {
    "bool": lambda: pa.array([True, False]),
    "int64": lambda: pa.array([1, 2]),
    "double": lambda: pa.array([1.0, 2.0]),
    "decimal128": lambda: pa.array([decimal.Decimal("1.5")] * 2),
    "date32": lambda: pa.array([DAY] * 2),
    "time64": lambda: pa.array([datetime.time(1)] * 2, pa.time64("us")),
    "timestamp": lambda: pa.array([MOMENT] * 2),
    "duration": lambda: pa.array([1, 2], pa.duration("s")),
    "struct": lambda: pa.array([{"a": "x"}] * 2),
    "map": lambda: pa.array([[("a", "x")]] * 2, pa.map_(pa.string(), pa.string())),
    "list<int64>": lambda: pa.array([[1], [2]]),
    "list<list>": lambda: pa.array([[["x"]], [["y"]]]),
}


def read(path: Path, table: pa.Table, **options: Any) -> list[Any]:
    pq.write_table(table, path)
    lines = b"".join(json_lines([CompressedFile(path, path.parent)], dataset(**options)))
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize("kind", READ)
def test_a_type_that_holds_text_is_read(tmp_path: Path, kind: str) -> None:
    column, texts = READ[kind]
    rows = read(tmp_path / "c.parquet", pa.table({"text": column()}))
    parser = RecordParser("text", None, None)
    records = [parser.parse(json.dumps(row).encode()) for row in rows]
    assert [r.text for r in records if isinstance(r, Record)] == texts
    assert len(rows) == 2


@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_without_text_is_refused_by_column_and_type(tmp_path: Path, kind: str) -> None:
    column = REFUSED[kind]()
    path = tmp_path / "c.parquet"
    type_ = str(column.type).partition("<")[0]
    message = f"has no text in column text, whose type is {type_}"
    with pytest.raises(InputError, match=re.escape(message)):
        read(path, pa.table({"text": column}))
    (row,) = {json.dumps(r) for r in read(path, pa.table({"text": ["a"], "id": column[:1]}))}
    assert json.loads(row) == {"text": "a"}, "elsewhere it does no harm"


def test_the_table_in_the_docs_names_every_type() -> None:
    text = DOCS.read_text()
    assert all(f"`{kind}`" in text for kind in (*READ, *REFUSED))


def test_bytes_that_are_no_utf8_cost_their_row(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([b"a", b"caf\xe9", b"b"])})
    first, bad, last = read(tmp_path / "c.parquet", table)
    assert (first, last) == ({"text": "a"}, {"text": "b"})
    assert bad["malformed"]["line"] == 2
    assert "'utf-8' codec can't decode byte 0xe9" in bad["malformed"]["reason"]


def test_two_columns_of_one_name_are_refused_where_they_are_needed(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "x", "x"])
    path = tmp_path / "c.parquet"
    assert read(path, table) == [{"text": "a"}]
    with pytest.raises(InputError, match=r"c\.parquet has 2 columns named x\. Rename one of them"):
        read(path, table, id_field="x")


def test_a_missing_column_is_told_with_one_that_holds_text(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "body": [b"a"]})
    message = 'has no column text; its columns are id, body. Name the one with the text: ARGS="data'
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path / "c.parquet", table)


def test_a_field_is_found_by_its_name_then_by_dots(tmp_path: Path) -> None:
    table = pa.table({"a": [{"b": "nested", "c": 1}], "a.b": ["dotted"]})
    path = tmp_path / "c.parquet"
    assert read(path, table, text_field="a.b")[0]["a.b"] == "dotted"
    assert read(path, table.drop(["a.b"]), text_field="a.b") == [{"a": {"b": "nested", "c": 1}}]
    with pytest.raises(InputError, match=r"has no text in column a\.c, whose type is int64"):
        read(path, table, text_field="a.c")


def test_a_file_without_any_text_is_refused(tmp_path: Path) -> None:
    for table, message in (
        (pa.table({"input_ids": [[1]]}), "has no column text; its columns are input_ids"),
        (pa.table({}), "has no columns"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "c.parquet", table)


def test_all_columns_are_read_where_the_name_does_not_say_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "id": [1], "when": [DAY]})
    assert read(tmp_path / "c", table) == [{"text": "a", "id": 1, "when": "2020-01-02"}]
    assert read(tmp_path / "c.parquet", table) == [{"text": "a"}]
    assert read(tmp_path / "c", table, form="parquet") == [{"text": "a"}]


def test_compressed_parquet_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    path = tmp_path / "c.parquet.gz"
    path.write_bytes(gzip.compress((tmp_path / "c.parquet").read_bytes()))
    with pytest.raises(InputError, match=r"is compressed Parquet, which is not read\. Decompress"):
        list(json_lines([CompressedFile(path, tmp_path)], dataset()))
