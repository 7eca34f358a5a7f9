"""Files that are not records are refused by what they are; padded and converted ones are read."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.core.errors import CorruptInput, InputError
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.file_kinds import DESCRIPTIONS
from pipeline.sources.formats import json_lines
from tests.sources.helpers import dataset

ROWS = [{"text": "first — ü"}, {"text": "second 🙂"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def read(path: Path, data: bytes, form: str = "auto") -> list[Any]:
    path.write_bytes(data)
    lines = b"".join(json_lines([CompressedFile(path, path.parent)], dataset(form)))
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize("magic", DESCRIPTIONS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_of_another_kind_is_refused_by_name(
    tmp_path: Path, magic: bytes, compressed: bool
) -> None:
    data = magic + b"\0" * 100
    if magic.startswith(b"PK") and not compressed:
        return  # a zip is read
    name = "c.jsonl.gz" if compressed else "c.jsonl"
    with pytest.raises(InputError) as caught:
        read(tmp_path / name, gzip.compress(data) if compressed else data)
    problem, hint = DESCRIPTIONS[magic]
    assert str(caught.value) == f"{tmp_path / name} {problem}, which is not read. {hint}"


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.jsonl.zst", "c.parquet", "c.txt"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=r"is a Git LFS pointer in place of the file, which is not read\. Type git"
    ):
        read(tmp_path / name, POINTER)


def test_what_is_compressed_twice_is_named(tmp_path: Path) -> None:
    twice = gzip.compress(zstandard.compress(LINES.encode()))
    with pytest.raises(InputError, match=r"is compressed twice, inside with zstd, .*Decompress"):
        read(tmp_path / "c.jsonl.zst.gz", twice)


def test_a_dictionary_that_is_not_there_is_named(tmp_path: Path) -> None:
    chance = random.Random(0)
    samples = [f"grant {chance.random()} on cells and {n}".encode() * 3 for n in range(500)]
    trained = zstandard.train_dictionary(2000, samples)
    data = zstandard.ZstdCompressor(dict_data=trained).compress(LINES.encode())
    message = rf"with a dictionary \(id {trained.dict_id()}, at byte 0\).*zstd -d -D"
    with pytest.raises(CorruptInput, match=message):
        read(tmp_path / "c.jsonl.zst", data)


@pytest.mark.parametrize("padding", [4, 512, 5000])
@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_zeros_after_a_stream_are_padding(tmp_path: Path, compress: Any, padding: int) -> None:
    streams = [compress(line.encode()) + b"\0" * padding for line in LINES.splitlines(True)]
    assert read(tmp_path / "c.jsonl.gz", b"".join(streams)) == ROWS
    with pytest.raises(CorruptInput, match="cannot be decompressed near byte"):
        read(tmp_path / "c.jsonl.gz", b"".join(streams) + b"garbage")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "text"])
def test_text_with_a_byte_order_mark_is_read(tmp_path: Path, form: str, encoding: str) -> None:
    text = {"jsonl": LINES, "text": "first — ü"}.get(form)
    separator = "\t" if form == "tsv" else ","
    text = text or f"id{separator}text\r\n1{separator}first — ü\r\n2{separator}second 🙂\r\n"
    mark = "\ufeff" if encoding.endswith("be") else ""
    found = read(tmp_path / f"c.{form}", (mark + text).encode(encoding), form)
    assert [row["text"] for row in found] == [row["text"] for row in ROWS[: len(found)]]
    assert len(found) == (1 if form == "text" else 2)


def test_utf_16_without_a_mark_or_cut_off_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seems to be UTF-16 without a byte order mark\. Con"):
        read(tmp_path / "c.jsonl", LINES.encode("utf-16-le"))
    with pytest.raises(InputError, match="is not valid UTF-16: truncated data"):
        read(tmp_path / "c.jsonl", LINES.encode("utf-16")[:-1])


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_lines_may_end_in_a_carriage_return(tmp_path: Path, form: str) -> None:
    text = LINES if form == "jsonl" else "text\nfirst — ü\nsecond 🙂\n"
    assert read(tmp_path / f"c.{form}", text.replace("\n", "\r").encode()) == ROWS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "is one JSON array, not JSON lines"),
        (b'[{"text": "a"}, {"text": "b"}]', "is one JSON array, not JSON lines"),
        (b'[{"text": "a"},\n {"text": "b"}]\n', "is one JSON array, not JSON lines"),
        (b'{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "is JSON over several lines"),
    ],
)
def test_json_that_is_not_one_record_a_line_is_named(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=f"{message}.*Convert it: jq -c"):
        read(tmp_path / "c.json", data)


def test_a_malformed_first_line_does_not_refuse_the_file(tmp_path: Path) -> None:
    for first in (b'[{"text": "a list"}]\n', b"{\n", b'["a"]\n', b"[]\n"):
        path = tmp_path / "c.jsonl"
        path.write_bytes(first + LINES.encode())
        raw = CompressedFile(path, tmp_path)
        assert b"".join(json_lines([raw], dataset())) == first + LINES.encode()


def test_text_may_begin_like_another_kind(tmp_path: Path) -> None:
    for start in ("ORCID", "LZIP is old"):
        assert read(tmp_path / "c.csv", f"{start},text\n1,a\n".encode())[0]["text"] == "a"
