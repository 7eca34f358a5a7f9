"""Raw files, lines and records: every codec, every block size, every kind of damage."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import CorruptInput
from pipeline.sources import codecs, zstd_frames
from pipeline.sources.archives import members
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.records import LineReader, MalformedRecord, MissingField, Record, RecordParser
from tests.helpers.examples import examples

TEXT = b"".join(b'{"text": "line %d %s"}\n' % (n, b"x" * (n % 50)) for n in range(400))
NO_TEXT = struct.pack("<II", 0x184D2A53, 5) + b"hello"


def frames(text: bytes, compress: Callable[[bytes], bytes], size: int = 997) -> bytes:
    """The text as many frames that split lines; one frame is empty."""
    parts = [text[n : n + size] for n in range(0, len(text), size)]
    return b"".join(map(compress, [*parts[:3], b"", *parts[3:]]))


def streamed(text: bytes) -> bytes:
    """A zstd frame without its content size, as `zstd < pipe` writes it."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as sink:
        sink.write(text)
    return out.getvalue()


def zipped(text: bytes) -> bytes:
    """A zip with one file in a folder; the folder has an entry, too."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("folder/", (2026, 1, 1, 0, 0, 0)), b"")
        archive.writestr(zipfile.ZipInfo("folder/corpus", (2026, 1, 1, 0, 0, 0)), text, 8)
    return out.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "zip": zipped,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "zst streamed": streamed,
    "zst checked": zstandard.ZstdCompressor(write_checksum=True).compress,
    "gz frames": lambda text: frames(text, gzip.compress),
    "bz2 frames": lambda text: frames(text, bz2.compress),
    "xz frames": lambda text: frames(text, lzma.compress),
    "zst frames": lambda text: frames(text, zstandard.compress),
    "zst skippable in front": lambda text: NO_TEXT + zstandard.compress(text),
    "zst skippable between": lambda text: frames(text, lambda t: zstandard.compress(t) + NO_TEXT),
    "zst, then nothing": lambda text: zstandard.compress(text) + zstandard.compress(b""),
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "corpus"
    path.write_bytes(data)
    return path


@contextmanager
def reading(size: int) -> Iterator[None]:
    """Read blocks of `size` raw bytes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("READ_BYTES", "DECODER_INPUT_BYTES"):
            patch.setattr(codecs, name, size)
        for name in ("READ_BYTES", "FRAME_TEXT_BYTES"):
            patch.setattr(zstd_frames, name, size)
        yield


def cut(path: Path, size: int) -> list[bytes]:
    lines = LineReader(content(CompressedFile(path)))
    found = []
    while lines.has_more():
        found.append(b"".join(lines.next_lines(size)))
    return found


def content(file: CompressedFile) -> Iterator[bytes]:
    """What is in a file, or in the files of an archive."""
    return (block for member in members(file, "jsonl") for block in member.blocks)


def tried(path: Path) -> bytes | str:
    """The whole text, or the message of the error."""
    try:
        return b"".join(cut(path, 1000))
    except CorruptInput as error:
        return str(error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [8, 31, 1 << 18])
def test_every_form_gives_the_text_and_the_hash_of_the_file(
    tmp_path: Path, form: str, block: int
) -> None:
    data = FORMS[form](TEXT)
    file = CompressedFile(write(tmp_path, data))
    lines = LineReader(content(file))
    with reading(block):
        found = []
        while lines.has_more():
            found.append(b"".join(lines.next_lines(3000)))
    assert b"".join(found) == TEXT
    assert file.digest == hashlib.sha256(data).hexdigest()
    assert (file.bytes_read, lines.bytes_read, lines.lines_read) == (len(data), len(TEXT), 400)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "plain"])
def test_a_file_that_ends_early_is_told_with_the_byte(tmp_path: Path, form: str) -> None:
    small = TEXT[:3000]
    raw = FORMS[form](small)
    ends = {len(FORMS[form](b""))} if "," in form else set()
    errors = 0
    for size in range(6, len(raw)):  # enough to detect the codec
        path = write(tmp_path, raw[:size])
        found = tried(path)
        if isinstance(found, str):
            errors += 1
            assert str(path) in found, "names the file"
            assert f"byte {size}" in found, "and the offset"
        else:
            # a cut between two frames cannot be detected
            assert "frames" in form or "skippable" in form or ends, size
            assert small.startswith(found.removesuffix(b"\n"))
    assert errors >= len(raw) - 6 - 2 * (raw.count(NO_TEXT) + 6)


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", "zst checked"])
def test_a_flipped_byte_never_gives_another_text(tmp_path: Path, form: str) -> None:
    raw = FORMS[form](TEXT)
    harmless = 0
    for place in range(6, len(raw), 7):
        found = tried(write(tmp_path, raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]))
        harmless += found == TEXT
        assert isinstance(found, str) or found == TEXT
    assert harmless <= 2, "only unused header fields have no checksum"


@pytest.mark.slow
def test_a_flipped_byte_in_a_zip_never_gives_another_text(tmp_path: Path) -> None:
    raw = zipped(TEXT)
    changed = 0
    for place in range(4, len(raw)):  # the first four are the magic number
        found = tried(write(tmp_path, raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]))
        changed += found != TEXT
        assert isinstance(found, str) or found == TEXT
    assert changed > len(raw) // 2


def test_garbage_after_a_frame_is_reported_with_its_byte(tmp_path: Path) -> None:
    raw = zstandard.compress(TEXT)
    path = write(tmp_path, raw + b"garbage")
    with pytest.raises(CorruptInput, match=f"near byte {len(raw)}"):
        cut(path, 1000)


@pytest.mark.parametrize("name", ["zst", "gz", "xz", "bz2", "zip"])
def test_a_damaged_first_byte_is_not_taken_for_text(tmp_path: Path, name: str) -> None:
    raw, path = FORMS[name](TEXT), tmp_path / f"x.jsonl.{name}"
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(
        CorruptInput, match="neither compressed, as its name says, nor text: at byte 0"
    ):
        list(content(CompressedFile(path)))
    path.write_bytes(raw[:2])
    with pytest.raises(CorruptInput, match="at byte"):
        list(content(CompressedFile(path)))
    path.write_bytes(TEXT)
    assert b"".join(CompressedFile(path)) == TEXT, "text with such a name is text"


def test_damage_names_the_unit(tmp_path: Path) -> None:
    path = write(tmp_path, zstandard.compress(TEXT)[:-5])
    with pytest.raises(CorruptInput) as caught:
        list(LineReader(CompressedFile(path, unit=tmp_path)).next_lines(10**9))
    assert caught.value.unit == tmp_path


def test_nothing_comes_out_of_an_empty_file(tmp_path: Path) -> None:
    for empty in (b"", zstandard.compress(b""), gzip.compress(b""), NO_TEXT):
        lines = LineReader(CompressedFile(write(tmp_path, empty)))
        assert not lines.has_more()
        assert list(lines.next_lines(10)) == []


def expected(text: bytes, size: int) -> list[bytes]:
    """Reference: the first line end at or after `size` bytes ends a group."""
    text += b"" if text.endswith(b"\n") or not text else b"\n"
    groups = []
    while text:
        end = text.find(b"\n", size - 1) + 1 or len(text)
        groups.append(text[:end])
        text = text[end:]
    return groups


# they begin with a hyphen, as some bytes would be the magic number of a file that is not read
texts = st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=40).map(
    lambda lines: b"-" * bool(lines) + b"\n".join(lines)
)


@settings(max_examples=examples(200), deadline=None)
@given(
    text=texts,
    size=st.integers(1, 120),
    block=st.integers(8, 50),
    form=st.sampled_from(["plain", "gz", "zst", "zst frames"]),
)
def test_cuts_depend_on_the_text_alone(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, size: int, block: int, form: str
) -> None:
    known = codecs.MAGICS
    if text.startswith(known) and form == "plain":
        return
    path = write(tmp_path_factory.getbasetemp(), FORMS[form](text))
    with reading(block):
        found = cut(path, size)
    assert found == expected(text, size)
    assert all(group.endswith(b"\n") for group in found)


def test_a_line_longer_than_any_block_is_not_cut(tmp_path: Path) -> None:
    long = b"y" * 3_000_000
    path = write(tmp_path, zstandard.compress(b"a\n" + long + b"\nb"))
    assert cut(path, 2) == [b"a\n", long + b"\n", b"b\n"]


HUNGRY = """
import resource, sys
from pathlib import Path
from pipeline.sources.archives import members
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.records import LineReader
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file = CompressedFile(Path(sys.argv[1]))
lines = LineReader(block for member in members(file, "jsonl") for block in member.blocks)
while lines.has_more():
    for piece in lines.next_lines(256_000_000):
        pass
print(lines.bytes_read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zst", "gz", "xz", "bz2 frames", "zip"])
def test_memory_stays_small_whatever_the_ratio(tmp_path: Path, form: str) -> None:
    text = b'{"text": "all work and no play makes jack a dull boy"}\n' * 3_800_000
    if form == "bz2 frames":
        raw = bz2.compress(text[: 55 * 16_000]) * (3_800_000 // 16_000)
        text = text[: 55 * 16_000 * (3_800_000 // 16_000)]
    elif form == "zip":
        raw = zipped(text)
    elif form == "xz":
        raw = lzma.compress(text, preset=0)
    else:
        raw = gzip.compress(text, 1) if form == "gz" else zstandard.compress(text)
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, str(write(tmp_path, raw))],
        cwd=Path(codecs.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    offset, grown = map(int, done.stdout.split())
    assert offset == len(text) > 200_000_000
    assert grown < 100_000, f"{len(raw)} bytes took {grown} KB"


def parse(line: bytes, text: str = "text", name: str | None = None, by: str | None = None):
    return RecordParser(text, name, by).parse(line)


def test_a_record_has_text_id_and_the_value_that_decides_its_split() -> None:
    line = b'{"text": "T", "meta": {"id": 12, "case": "Roe"}}'
    assert parse(line, "text", "meta.id", "meta.case") == Record("T", "12", "Roe")
    assert parse(line) == Record("T", None, None)
    assert parse(line, "text", "meta.none", "text.none") == Record("T", None, None)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a\\ud800b"}', "a�b"),
        (b'{"text": "a\\ud83d\\ude00b"}', "a😀b"),
        (b'{"text": ["one", "t\\ud800wo"]}', "one\n\nt�wo"),
        (b'\xef\xbb\xbf{"text": "after a byte order mark"}', "after a byte order mark"),
        (b'{"text": "CRLF"}\r', "CRLF"),
        (b'  \t{"text": " spaces stay "}  ', " spaces stay "),
        (b'{"text": ["a", "b"]}', "a\n\nb"),
        (b'"a line that is only a string"', "a line that is only a string"),
        (b'{"text": "nul \\u0000 stays"}', "nul \0 stays"),
        (b'{"text": "first", "text": "last"}', "last"),
        ('{"text": "naïve \\u0041"}'.encode(), "naïve A"),
    ],
)
def test_text_is_read_as_it_is(line: bytes, text: str) -> None:
    record = parse(line)
    assert isinstance(record, Record)
    assert record.text == text
    record.text.encode()


@pytest.mark.parametrize(
    "line", [b"", b"   ", b"\r", b"\xef\xbb\xbf", b'{"text": ""}', b'{"text": " \\n\\t"}', b'""',
             b'{"text": []}', b'{"text": [""]}', b'{"text": null}'],
)  # fmt: skip
def test_blank_lines_and_blank_texts_are_passed_over(line: bytes) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"{'text': 'single quotes'}", "not JSON"),
        (b'{"text": "cut o', "not JSON"),
        (b'{"text": "cut \\u00', "not JSON"),
        (b'{"text": "latin \xe9"}', "not JSON"),
        (b'{"text": "latin \xe9 \\u0041"}', "not JSON"),
        (b'{"text": "\\x"}', "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": "\\ud800", "a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"text": 12}', "field text is int, not text"),
        (b'{"text": ["a", 1]}', "field text is list, not text"),
        (b'{"text": {"a": 1}}', "field text is dict, not text"),
        (b"{}", "no field text"),
        (b'{"body": "x"}', "no field text; its fields are body"),
        (b"12", "no field text: it is int, not an object"),
        (b"[1]", "no field text: it is list, not an object"),
    ],
)
def test_invalid_line_gives_a_reason(line: bytes, reason: str) -> None:
    bad = parse(line)
    assert isinstance(bad, MalformedRecord)
    assert reason in bad.reason


def test_dots_go_into_nested_objects() -> None:
    assert parse(b'{"a": {"b": {"c": "deep"}}}', "a.b.c") == Record("deep", None, None)
    assert parse(b'{"a": {"b": 1}}', "a.b.c") == MalformedRecord(
        "no field a.b.c; its fields are a.b", missing=MissingField("a.b.c", "a.b")
    )


@pytest.mark.parametrize(
    ("value", "fields", "suggestion"),
    [
        ({"id": "7", "body": "long"}, "id, body", "body"),
        ({"id": 7, "meta": {"note": "x", "deep": {"body": "longer"}}}, None, "meta.deep.body"),
        ({"id": 7, "meta": {}}, "id, meta", ""),
        ({"a.b": "long", "c d": "longer", "e": "x"}, "a.b, c d, e", "a.b"),
        ({f"f{n}": n for n in range(20)}, ", ".join(f"f{n}" for n in range(12)) + "…", ""),
    ],
)
def test_missing_text_field_error_names_existing_fields(
    value: Any, fields: str | None, suggestion: str
) -> None:
    bad = parse(json.dumps(value).encode())
    assert isinstance(bad, MalformedRecord)
    assert bad.missing
    assert (bad.missing.field, bad.missing.suggestion) == ("text", suggestion)
    if fields:
        assert bad.missing.names == fields
        assert bad.reason == f"no field text; its fields are {fields}"
    if suggestion:
        assert isinstance(parse(json.dumps(value).encode(), suggestion), Record)


def test_a_line_that_is_too_long_is_malformed() -> None:
    line = b'{"text": "x"}'
    assert isinstance(RecordParser("text", None, None, len(line)).parse(line), Record)
    message = f"longer than {len(line) - 1} bytes, see tokenize.max_line_bytes"
    assert RecordParser("text", None, None, len(line) - 1).parse(line) == MalformedRecord(message)


@pytest.mark.slow
@pytest.mark.parametrize("longest", [10, 11, 4000])
@pytest.mark.parametrize("block", [8, 50, 1000])
def test_too_long_line_is_not_held_in_memory(tmp_path: Path, longest: int, block: int) -> None:
    lines = [b"a", b"y" * 10, b"", b"z" * 11, b"x" * 300_000, b"b", b"w" * 4001, b"end"]
    path = write(tmp_path, b"\n".join(lines))
    with reading(block):
        blocks = list(LineReader(CompressedFile(path)).whole_lines(5, longest))
    assert all(data.endswith(b"\n") for data in blocks)
    found = b"".join(blocks).split(b"\n")[:-1]
    assert len(found) == len(lines)
    for line, whole in zip(found, lines, strict=True):
        if len(whole) <= longest:
            assert line == whole
        else:
            assert whole.startswith(line)
            assert longest < len(line) <= longest + 5 + block


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_give_record_blank_or_reason(line: bytes) -> None:
    found = parse(line.replace(b"\n", b""), "text", "id", "by")
    assert found is None or isinstance(found, Record | MalformedRecord)


def test_a_field_of_that_very_name_comes_first() -> None:
    reader = RecordParser("a.b", "m.id", None)
    both = b'{"a.b": "dotted", "a": {"b": "nested"}, "m": {"id": 1}, "m.id": 2}'
    assert reader.parse(both) == Record("dotted", "2", None)
    assert reader.parse(b'{"a": {"b": "nested"}, "m": {"id": 1}}') == Record("nested", "1", None)
    assert reader.parse(b'{"a.b": null, "a": {"b": "nested"}}') is None


def test_nuls_around_a_line_are_stripped() -> None:
    nuls = b"\0" * 500
    assert parse(nuls + b'{"text": "a"}' + nuls) == Record("a", None, None)
    assert parse(nuls) is None
    assert isinstance(parse(b'{"text": ' + nuls + b'"a"}'), MalformedRecord)
