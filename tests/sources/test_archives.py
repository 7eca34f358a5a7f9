"""Archives are read member by member, however they are named and compressed, or refused by name."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.core.errors import CorruptInput, InputError
from pipeline.core.receipt import hash_file
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.formats import json_lines
from tests.sources.helpers import dataset

LINE = b'{"text": "one"}\n'
FILES = {
    "c/README.md": b"not a document",
    "c/a.jsonl": LINE * 2,
    "c/._a.jsonl": b"\0\5\x16\7 of a Mac",
    "__MACOSX/c/._b.csv": b"\0\5\x16\7",
    "c/LICENSE.txt": b"not a document",
    "c/b.csv": b"id,text\n1,two\n",
    "c/notes.md": b"no form",
}
EXPECTED = [{"text": "one"}] * 2 + [{"id": "1", "text": "two"}]


def tar(files: dict[str, bytes], links: Sequence[str] = ("c/LICENSE",)) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for link in links:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return sink.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def read(path: Path, data: bytes, form: str = "auto") -> list[Any]:
    path.write_bytes(data)
    raw = CompressedFile(path, path.parent)
    lines = b"".join(json_lines([raw], dataset(form)))
    assert raw.digest == hash_file(path), "all of it is hashed"
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("c.tar", tar(FILES)),
        ("c.tar.gz", gzip.compress(tar(FILES))),
        ("c.tgz", gzip.compress(tar(FILES))),
        ("c.jsonl.gz", gzip.compress(tar(FILES))),
        ("c.tar.zst", zstandard.compress(tar(FILES))),
        ("c.tar.xz", lzma.compress(tar(FILES))),
        ("c.tbz2", bz2.compress(tar(FILES))),
        ("c", tar(FILES)),
        ("c.zip", zipped(FILES)),
        ("c.jsonl.zip", zipped(FILES)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_members_with_records_are_read(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(tmp_path / name, data) == EXPECTED


def test_a_form_holds_for_all_members(tmp_path: Path) -> None:
    files = {"a.dat": LINE, "README": b"no", "b": LINE}
    assert read(tmp_path / "c.tar", tar(files), "jsonl") == [{"text": "one"}] * 2


def test_the_only_file_of_a_zip_is_read_whatever_its_name(tmp_path: Path) -> None:
    files = {"__MACOSX/._data": b"\0\5\x16\7", "data": b"id,text\n1,two\n"}
    assert read(tmp_path / "c.csv.zip", zipped(files)) == [{"id": "1", "text": "two"}]


def test_text_files_of_an_archive_are_documents(tmp_path: Path) -> None:
    files = {"x/a.txt": b"first", "x/requirements.txt": b"no", "x/b.txt": b"second"}
    found = read(tmp_path / "c.tar", tar(files))
    assert [row["text"] for row in found] == ["first", "second"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            tar({"a.jsonl": LINE, "b.txt": b"x"}),
            "holds text files (b.txt) beside files of records (a.jsonl)",
        ),
        (
            tar({"x.bin": b"1", "README.md": b""}),
            "is an archive with only x.bin (read up to byte 10240), and no file",
        ),
        (tar({}), "is an archive with no files"),
        (tar({}, []), "is an empty tar archive, or none at all"),
        (LINE, "is an empty tar archive, or none at all"),
        (zipped({}), "is an archive with no files"),
        (zipped({"a.bin": b"1", "b.bin": b"2"}), "is an archive with only a.bin, b.bin"),
        (
            tar({"d.jsonl.zst": zstandard.compress(LINE)}),
            "d.jsonl.zst is compressed with zstd inside an archive",
        ),
        (tar({"d.jsonl": tar({"a.jsonl": LINE})}), "d.jsonl is a tar archive inside another"),
        (tar({"d.jsonl": zipped({"a.jsonl": LINE})}), "d.jsonl is a zip inside another archive"),
        (tar({"p.parquet": b"PAR1" * 9}), "p.parquet is Parquet inside an archive"),
        (
            tar({"a.jsonl": LINE}, ["c/link.jsonl"]),
            "holds a link in place of a file (c/link.jsonl). Pack the file itself, with tar -h",
        ),
        (
            zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}),
            "is an Office document",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_what_it_is(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "c.tar", data)
    assert message in str(caught.value)
    assert caught.value.hint


def test_an_encrypted_zip_is_refused_as_that(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.jsonl": LINE}))
    data[6] |= 1  # of the local header
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(InputError, match=r"is encrypted \(read up to byte \d+\)\. Unpack it"):
        read(tmp_path / "c.zip", bytes(data))


def test_a_truncated_tar_is_damage(tmp_path: Path) -> None:
    data = tar({"a.jsonl": LINE * 200, "b.jsonl": LINE * 200})
    end = len(data.rstrip(b"\0"))
    for size in [*range(300, end, 257), *range(512, end, 512)]:
        with pytest.raises(CorruptInput, match="tar archive"):
            read(tmp_path / "c.tar", data[:size])


def test_a_changed_bit_in_a_tar_loses_no_member(tmp_path: Path) -> None:
    files = {f"{name}.jsonl": LINE * 10 for name in "abcd"}
    data = tar(files)
    for header in (1024, 2048, 3072):
        for place in (0, 124, 148, 156):
            with pytest.raises(CorruptInput, match="not a valid tar archive"):
                read(tmp_path / "c.tar", _flipped(data, header + place))


def test_an_archive_after_an_archive_is_not_lost(tmp_path: Path) -> None:
    one, other = tar({"a.jsonl": LINE}), tar({"b.jsonl": LINE})
    for name, data in (
        ("c.tar", one + other),
        ("c.tar.gz", gzip.compress(one) + gzip.compress(other)),
    ):
        with pytest.raises(CorruptInput, match="data follow its end"):
            read(tmp_path / name, data)


def test_damage_deep_in_a_member_is_reported(tmp_path: Path) -> None:
    text = b"".join(b'{"text": "%d"}\n' % n for n in range(200_000))
    with pytest.raises(CorruptInput, match="not a valid tar archive"):
        read(tmp_path / "c.tar", tar({"a.jsonl": text})[:1_500_000])
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jsonl", text)
    with pytest.raises(CorruptInput, match=r"not a valid zip.*CRC"):
        read(tmp_path / "c.zip", _flipped(sink.getvalue(), 2_000_000))


def test_an_error_of_the_system_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "c.tar").write_bytes(tar(FILES))

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        list(json_lines([CompressedFile(tmp_path / "c.tar", tmp_path, fail)], dataset()))


def test_the_oldest_form_of_tar_is_read(tmp_path: Path) -> None:
    header = bytearray(tar({"a.jsonl": LINE}, [])[:1024])
    header[257:265] = bytes(8)  # without its magic number
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    assert read(tmp_path / "c.jsonl", bytes(header) + bytes(1024)) == [{"text": "one"}]


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
