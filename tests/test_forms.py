"""Corpora in the forms that people have them in: whatever the form, the same documents."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import typing
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import advance
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, resolve
from pipeline.dag import find
from pipeline.data import forms
from pipeline.data.forms import FORMS, form_of, json_lines
from pipeline.data.raw import Raw
from pipeline.errors import CorruptInput, InputError
from pipeline.receipt import hash_file
from pipeline.registry import Dataset
from pipeline.stages.download import files_of

ROWS = [
    {"text": "plain", "id": "1"},
    {"text": 'with, "quotes"\tand\nline ends — ü 🙂', "id": "2"},
    {"text": "", "id": "3"},
]


def table(separator: str) -> bytes:
    quoted = ['"' + row["text"].replace('"', '""') + '"' for row in ROWS]
    lines = [f"{text}{separator}{row['id']}" for text, row in zip(quoted, ROWS, strict=True)]
    return "\r\n".join([f"text{separator}id", *lines]).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def zipped(data: bytes) -> bytes:
    sink = BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("inside", data)
    return sink.getvalue()


CONTENT = {
    "jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "csv": table(","),
    "tsv": table("\t"),
    "parquet": parquet(ROWS),
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".zst": zstandard.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zip": zipped,
}


def read(path: Path, form: str = "auto") -> list[Any]:
    raw = Raw(path, path.parent)
    lines = b"".join(json_lines([raw], form))
    assert raw.sha256 == hash_file(path)
    return [json.loads(line) for line in lines.splitlines()]


def test_every_form_that_the_registry_knows_can_be_read() -> None:
    field = Dataset.model_fields["form"]
    assert set(typing.get_args(field.annotation)) == {"auto", *FORMS}


@pytest.mark.parametrize("compressed", COMPRESSORS)
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_each_form_is_known_by_its_name_however_compressed(
    tmp_path: Path, form: str, compressed: str
) -> None:
    path = tmp_path / f"Corpus.{form.upper()}{compressed}"
    path.write_bytes(COMPRESSORS[compressed](CONTENT[form]))
    assert read(path) == ROWS


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x"])
def test_parquet_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENT["parquet"])
    assert read(path) == ROWS


def test_parquet_brings_its_nested_columns(tmp_path: Path) -> None:
    rows = [{"body": {"text": "a"}, "parts": ["b", "c"], "when": None}] * 2500
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet(rows))
    assert read(path) == rows


@pytest.mark.parametrize("cut", [10, 100, -1])
def test_damaged_parquet_is_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(CONTENT["parquet"][:cut])
    with pytest.raises(CorruptInput, match=r"x\.parquet cannot be read as Parquet") as told:
        read(path)
    assert told.value.unit == tmp_path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"\xef\xbb\xbfTwo\nlines\n")
    assert read(path) == [{"text": "Two\nlines\n", "meta": {"file": "letter.txt"}}]
    path.write_bytes(b"caf\xe9")
    (line,) = read(path)
    assert line["malformed"].startswith("letter.txt: 'utf-8' codec can't decode byte 0xe9")


def test_a_text_file_beyond_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.txt"
    path.write_bytes(b"x" * 2_000_000)
    monkeypatch.setattr(forms, "LONGEST", 1 << 20)
    with pytest.raises(CorruptInput, match="more than 1 MB, and a text file is one document"):
        read(path)


def test_a_csv_may_be_cp1252_in_places_and_uneven_in_others(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,id\ncaf\xe9,1\ncaf\xc3\xa9,2\none,two,three\n")
    *sound, bad = read(path)
    assert sound == [{"text": "café", "id": "1"}, {"text": "café", "id": "2"}]
    assert bad == {"malformed": "x.csv, line 4: 3 columns, 2 expected"}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=40)


@given(rows=st.lists(st.fixed_dictionaries({"text": TEXT, "id": TEXT}), min_size=1, max_size=6))
def test_what_python_writes_as_csv_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "id"])
        writer.writeheader()
        writer.writerows(rows)
    assert read(path) == rows


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl.zst", "jsonl"),
        ("a.zst", "jsonl"),
        ("A.CSV.GZ", "csv"),
        ("a.b.txt", "text"),
        ("a.parquet", "parquet"),
        ("README.md", None),
        ("a", None),
        ("csv", None),
    ],
)
def test_the_name_tells_the_form(name: str, form: str | None) -> None:
    assert form_of(name) == form


def folder(path: Path) -> Path:
    """A corpus of 40 documents in every form, and other things beside it."""
    texts = [f"Document {n}. " + "The grant supports research on cells. " * 5 for n in range(40)]
    (path / "deep" / "er").mkdir(parents=True)
    rows = [{"text": text} for text in texts]
    jsonl = "\n".join(json.dumps(row) for row in rows[:10]).encode()
    (path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl))
    (path / "deep" / "a.parquet").write_bytes(parquet(rows[10:20]))
    (path / "deep" / "er" / "100%.csv").write_text("text\n" + "\n".join(texts[20:30]))
    for number in range(30, 40):
        (path / f"{number}.txt").write_text(texts[number])
    (path / "README.md").write_text("not a document")
    (path / ".hidden.txt").write_text("nor this")
    return path


def test_a_folder_is_a_corpus(tmp_path: Path, small: Callable[..., Config]) -> None:
    corpus = folder(tmp_path / "my corpus")
    config = small().model_copy(
        update={"dataset": resolve("nih", "opt-125m", file=str(corpus)).dataset}
    )
    root = tmp_path / "root"
    seal = advance(config, root, "tokenize.seal").done["seal"]
    assert sum(split["documents"] for split in seal.facts["splits"].values()) == 40
    assert seal.facts["quarantined"] == 0
    assert list(files_of(config.dataset))[-1] == "deep%2Fer%2F100%25.csv"
    assert find(config, root, "download.corpus").complete
    (corpus / "30.txt").write_text("changed")
    assert not find(config, root, "download.corpus").complete


def test_a_folder_without_a_corpus_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    dataset = resolve("nih", "opt-125m", file=str(tmp_path)).dataset
    assert dataset.sha256 is None
    with pytest.raises(InputError, match=r"has no corpus in it.*\.jsonl"):
        files_of(dataset)
