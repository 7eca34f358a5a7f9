"""The same documents from corpora in every supported format."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import re
import shutil
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
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, resolve
from pipeline.core.errors import CorruptInput, InputError, Interrupted
from pipeline.core.receipt import hash_file
from pipeline.core.registry import Dataset
from pipeline.dag import find
from pipeline.download.file_names import corpus_files, describe_files, passed_over, url_to_path
from pipeline.sources import codecs, formats
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.data_files import format_of, is_data
from pipeline.sources.formats import READERS, json_lines
from tests.helpers.runs import StopAfterChecks, advance
from tests.sources.helpers import dataset

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


def read(path: Path, form: str = "auto", **settings: Any) -> list[Any]:
    raw = CompressedFile(path, path.parent)
    lines = b"".join(json_lines([raw], dataset(form, **settings)))
    assert raw.digest == hash_file(path)
    return [json.loads(line) for line in lines.splitlines()]


def test_every_format_of_the_registry_can_be_read() -> None:
    field = Dataset.model_fields["form"]
    assert set(typing.get_args(field.annotation)) == {"auto", *READERS}


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
    assert read(path, id_field="id") == ROWS


def test_parquet_brings_the_columns_that_are_needed(tmp_path: Path) -> None:
    rows = [{"body": {"text": "a", "n": 1}, "parts": ["b", "c"], "when": None, "a.b": "d"}] * 2500
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet(rows))
    needed = [{"body": {"text": "a", "n": 1}}] * 2500
    assert read(path, text_field="body.text") == needed
    assert (
        read(path, text_field="parts", id_field="a.b", split_by="body.n")
        == [{"parts": ["b", "c"], "a.b": "d", "body": {"text": "a", "n": 1}}] * 2500
    )


@pytest.mark.parametrize("cut", [10, 100, -1])
def test_damaged_parquet_is_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(CONTENT["parquet"][:cut])
    with pytest.raises(CorruptInput, match=r"x\.parquet cannot be read as Parquet") as message:
        read(path)
    assert message.value.unit == tmp_path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"\xef\xbb\xbfTwo\nlines\n")
    assert read(path) == [{"text": "Two\nlines\n", "meta": {"file": "letter.txt"}}]
    path.write_bytes(b"caf\xe9")
    (line,) = read(path)
    message = line["malformed"]
    assert message["reason"].startswith("'utf-8' codec can't decode byte 0xe9")
    assert (message["line"], message["text"]) == (1, "caf\ufffd")


def test_too_large_text_file_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.txt"
    path.write_bytes(b"x" * 2_000_000)
    monkeypatch.setattr(formats, "MAX_TEXT_FILE_BYTES", 1 << 20)
    (line,) = read(path)
    message = "longer than 1048576 bytes, and a text file is one document"
    assert line["malformed"]["reason"] == message


def test_a_row_that_json_cannot_hold_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    words = pa.array([b"good", b"caf\xe9", b"fine"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, words.buffers())
    late = pa.array([0, 0, 2**61], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"text": text, "when": late}), path)
    assert len(read(path)) == 3, "what is not needed costs no row"
    good, *bad = read(path, id_field="when")
    assert good == {"text": "good", "when": "1970-01-01T00:00:00"}
    assert [line["malformed"]["line"] for line in bad] == [2, 3]
    assert "utf-8" in bad[0]["malformed"]["reason"]
    assert "out of range" in bad[1]["malformed"]["reason"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"text" x,id\na\n', "x.csv has no header: ',' expected"),
    ],
)
def test_a_malformed_header_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    with pytest.raises(CorruptInput, match=re.escape(message)):
        read(path)


def test_empty_lines_before_a_header_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\n\r\ntext\na\n")
    assert read(path) == [{"text": "a"}]


def test_a_csv_may_be_cp1252_in_places_and_uneven_in_others(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,id\ncaf\xe9,1\ncaf\xc3\xa9,2\none,two,three\n")
    *sound, bad = read(path)
    assert sound == [{"text": "café", "id": "1"}, {"text": "café", "id": "2"}]
    message = {"reason": "3 columns, 2 expected", "line": 4, "text": "one,two,three"}
    assert bad == {"malformed": message}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=40)


@given(rows=st.lists(st.fixed_dictionaries({"text": TEXT, "id": TEXT}), min_size=1, max_size=6))
def test_csv_written_by_python_is_read_back(
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
        ("backup.tar.gz", "archive"),
        ("A.TGZ", "archive"),
        ("picture.jpg.zip", None),
        ("a.csv.gz.zst", None),
    ],
)
def test_format_of_a_name(name: str, form: str | None) -> None:
    assert format_of(name) == form


def folder(path: Path) -> Path:
    """A folder with 40 documents in all formats, and with other files."""
    texts = [f"Document {n}. " + "The grant supports research on cells. " * 5 for n in range(40)]
    (path / "deep" / "er").mkdir(parents=True)
    rows = [{"text": text} for text in texts]
    jsonl = "\n".join(json.dumps(row) for row in rows[:10]).encode()
    (path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl))
    (path / "deep" / "a.parquet").write_bytes(parquet(rows[10:20]))
    (path / "deep" / "er" / "100%.csv").write_text("text\n" + "\n".join(texts[20:30]))
    for number in range(30, 40):
        (path / f"{number}.json").write_text(json.dumps(rows[number]))
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
    assert list(corpus_files(config.dataset))[-1] == "deep%2Fer%2F100%25.csv"
    assert find(config, root, "download.corpus").complete
    (corpus / "30.json").unlink()
    (corpus / "30.json").write_text('{"text": "changed"}')
    assert not find(config, root, "download.corpus").complete
    shutil.rmtree(corpus)
    corpus.mkdir()
    assert find(config, root, "tokenize.seal").complete, "outputs stay valid"


UNHASHED = ("dataset.sha256=null", "dataset.size=null")


def local(path: Path, *words: str) -> Dataset:
    return resolve("nih", "opt-125m", file=str(path), overrides=words).dataset


def test_another_name_is_another_format_and_item(
    tmp_path: Path, small: Callable[..., Config]
) -> None:
    corpus, root = tmp_path / "corpus", tmp_path / "root"
    corpus.mkdir()
    path = corpus / "a.jsonl"
    path.write_text("text\n" + "\n".join(f"document {n}" for n in range(50)))
    config = small().model_copy(update={"dataset": local(corpus)})
    before = advance(config, root, "decompress.chunks").items
    path.rename(corpus / "a.csv")
    assert not find(config, root, "download.corpus").complete
    after = advance(config, root, "decompress.chunks")
    assert after.items != before
    (chunk,) = after.work.folder.glob("chunk-*/*.zst")
    first = zstandard.decompress(chunk.read_bytes(), max_output_size=1 << 20).split(b"\n")[0]
    assert json.loads(first) == {"text": "document 0"}


def test_the_files_of_years_keep_their_suffix(tmp_path: Path) -> None:
    urls = ["https://x/{year}/Abstracts.CSV.gz?raw"]
    years = Dataset(id="x", urls=urls, years="2020-2021")
    assert list(corpus_files(years)) == ["2020.CSV.gz", "2021.CSV.gz"]
    assert next(iter(corpus_files(resolve("nih-exporter").dataset))) == "1985"


def test_what_a_folder_may_hold(tmp_path: Path) -> None:
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    for path in (corpus, other):
        path.mkdir()
    (other / "far.csv").touch()
    (corpus / "receipt.json").touch()
    (corpus / "broken.tsv").symlink_to("nowhere")
    (corpus / "linked").symlink_to(other)
    (corpus / "round").symlink_to(corpus)
    (corpus / "numbers.dat").touch()
    names = ["%72eceipt.json", "broken.tsv", "linked%2Ffar.csv"]
    assert sorted(corpus_files(local(corpus))) == names
    csv = local(corpus, "dataset.form=csv")
    assert sorted(corpus_files(csv)) == sorted([*names, "numbers.dat"])
    with pytest.raises(InputError, match="is a folder; sha256 and size are for one file"):
        corpus_files(local(corpus, f"dataset.sha256={'a' * 64}"))


def test_names_that_are_too_long_or_no_utf8_are_taken(
    tmp_path: Path, small: Callable[..., Config]
) -> None:
    corpus = tmp_path / "corpus"
    deep = corpus / ("é" * 100) / ("d" * 250)
    deep.mkdir(parents=True)
    latin = os.fsdecode(b"caf\xe9")
    (corpus / latin).mkdir()
    places = [deep / "one.json", deep / "two.jsonl.gz", corpus / latin / f"{latin}.json"]
    places.append(corpus / ("n" * 249 + ".json"))
    places += [corpus / f"{n}.json" for n in range(60)]
    texts = {path: f"This is document {number}." for number, path in enumerate(places)}
    for path, text in texts.items():
        line = json.dumps({"text": text}).encode()
        path.write_bytes(gzip.compress(line) if path.suffix == ".gz" else line)
    config = small().model_copy(update={"dataset": local(corpus)})
    node = advance(config, tmp_path / "root", "decompress.chunks")
    chunks = sorted(node.work.folder.glob("chunk-*/*.zst"))
    lines = b"".join(zstandard.decompress(p.read_bytes(), 1 << 20) for p in chunks).splitlines()
    assert {json.loads(line)["text"] for line in lines} == set(texts.values())
    names = list(corpus_files(config.dataset))
    assert "caf%E9%2Fcaf%E9.json" in names
    ends = {name.rpartition("~")[2].partition(".")[2] for name in names if "~" in name}
    assert ends == {"json", "jsonl.gz"}, "they keep the suffix of their format"
    assert all(len(name.encode()) <= 255 for name in names)
    assert len(set(names)) == len(places)


def test_a_stop_is_heard_while_a_parquet_file_is_hashed(
    tmp_path: Path, small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet([{"text": random.Random(1).randbytes(3 << 20).hex()}]))
    config = small().model_copy(update={"dataset": local(path, *UNHASHED)})
    advance(config, tmp_path / "root", "download.model")
    monkeypatch.setattr(codecs, "READ_BYTES", 1 << 16)
    with pytest.raises(Interrupted):
        advance(config, tmp_path / "root", "decompress.chunks", StopAfterChecks(30))
    assert not list((tmp_path / "root").glob("data/*/chunks-*/chunk-*")), "no row was read"


def test_a_page_of_parquet_that_does_not_fit_its_checksum_is_told(tmp_path: Path) -> None:
    sink = BytesIO()
    table = pa.Table.from_pylist([{"text": "It was so in the beginning."}])
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False,
                   write_page_checksum=True)  # fmt: skip
    path = tmp_path / "x.parquet"
    path.write_bytes(sink.getvalue().replace(b"was so", b"was no", 1))
    with pytest.raises(CorruptInput, match="cannot be read as Parquet"):
        read(path)


@pytest.mark.parametrize(
    "path",
    ["a/..", "a/%2E%2E", "a/.", "%2E%2E%2F", "%2E%2E%2F%2E%2E%2Fb.txt", "..%5Cb", "%2Fb", "a%00b"],
)
def test_no_url_names_a_place_outside_of_the_unit(path: str) -> None:
    (name,) = corpus_files(Dataset(id="x", urls=[f"https://x/{path}"]))
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert "\0" not in name


def test_nothing_is_written_outside_of_the_root(tmp_path: Path) -> None:
    """For any names in an archive, and any symlinks in a folder."""
    corpus, other, root = (tmp_path / name for name in ("corpus", "other", "a/b/root"))
    for path in (corpus, other):
        path.mkdir()
    line = b'{"text": "A document of its own."}\n'
    members = ("../../../../../corpus/escaped.jsonl", f"{other}/escaped.jsonl", "..\\escaped.jsonl")
    for number, member in enumerate(members):
        with zipfile.ZipFile(corpus / f"{number}.jsonl.zip", "w") as archive:
            archive.writestr(member, line)
    (other / "far.jsonl").write_bytes(line)
    (other / "secret.key").write_bytes(b"not of the corpus")
    (corpus / "linked").symlink_to(other)
    (corpus / "one.jsonl").symlink_to(other / "far.jsonl")

    def outside() -> dict[Path, bytes]:
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if not path.is_relative_to(root)}

    before = outside()
    config = resolve("nih", "opt-125m", file=str(corpus), overrides=["dataset.text_field=text"])
    folder = advance(config, root, "decompress.chunks", but=("download.model",)).work.folder
    assert outside() == before
    chunks = b"".join(b"".join(CompressedFile(path)) for path in sorted(folder.glob("*/*.zst")))
    assert chunks == line * 5
    held = (path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert not any(b"not of the corpus" in content for content in held)


def test_a_folder_without_a_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    dataset = resolve("nih", "opt-125m", file=str(tmp_path)).dataset
    assert dataset.sha256 is None
    with pytest.raises(InputError, match=r"has no corpus in it.*\.jsonl"):
        corpus_files(dataset)


def test_only_data_of_a_folder_is_a_corpus(tmp_path: Path) -> None:
    names = ["README.md", "LICENSE.txt", "requirements.txt", "urls.txt", "dataset_infos.json"]
    for name in (*names, "state.json", "data/train.jsonl", "data/notes.txt", ".gitattributes"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list(corpus_files(local(tmp_path))) == ["data%2Ftrain.jsonl"]
    others = passed_over(local(tmp_path))
    assert others == sorted([*names, "data/notes.txt", "state.json"])
    message = (
        "7 other files in the folder: LICENSE.txt, README.md, data/notes.txt, dataset_infos.json"
    )
    assert describe_files(others).startswith(message)
    (tmp_path / "data/train.jsonl").unlink()
    assert list(corpus_files(local(tmp_path))) == ["data%2Fnotes.txt"], (
        "text where there is no more"
    )


@pytest.mark.parametrize(
    "name", ["c#1.jsonl", "a?b.jsonl", "50%.jsonl", "a%20b.jsonl", "ü x.jsonl"]
)
def test_a_local_path_may_hold_any_character(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for url in (f"file://{tmp_path}/{name}", (tmp_path / name).as_uri()):
        assert url_to_path(url) == tmp_path / name
    assert url_to_path(f"file://{tmp_path}/not%20there") == tmp_path / "not there"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("citation.jsonl", True), ("notice.parquet", True), ("urls.csv", True),
        ("notice_0001.txt", True), ("citations.txt", True), ("manifest.jsonl.gz", True),
        ("README", False), ("README.md", False), ("license-mit.txt", False),
        ("requirements_dev.txt", False), ("dataset_infos.json", False), (".x.jsonl", False),
        ("../x.jsonl", True), ("__MACOSX/x.jsonl", False), ("a.md5.txt", False),
    ],
)  # fmt: skip
def test_what_is_data_by_its_name(name: str, data: bool) -> None:
    assert is_data(name) == data
