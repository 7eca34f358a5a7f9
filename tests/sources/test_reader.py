"""Random documents in every format and codec, intact or damaged: read back, or an error."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import CorruptInput, Failure
from pipeline.sources import codecs, zstd_frames
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.formats import json_lines
from pipeline.sources.records import SURROGATES, LineReader, RecordParser
from pipeline.tokenize.batch_reader import BatchReader
from tests.helpers.examples import examples
from tests.sources.helpers import dataset

BOM = "\ufeff".encode()
JUNK = [b"{", b"\xfe\xfd", b'{"text": 3}', b'{"txet": "x"}', b"[1", b"<html>", b'{"text": "\x00"}']
SKIPPABLE = [b"\x53\x2a\x4d\x18\x05\x00\x00\x00hello", b"\x50\x2a\x4d\x18\x00\x00\x00\x00"]
CHECKED = zstandard.ZstdCompressor(write_checksum=True)
FRAMED: dict[str, Callable[[bytes], bytes]] = {
    ".zst": CHECKED.compress,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@dataclass
class Written:
    """A file that was written: its bytes and their content.

    `texts` in order; `bad`: line numbers of malformed records; `ends`: offsets of frame ends.
    """

    texts: list[str] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    data: bytes = b""
    ends: set[int] = field(default_factory=set)

    def add_text(self, text: str, line: bytes) -> None:
        self.data += line
        if text.strip():
            self.texts.append(text)

    def add_malformed(self, line: bytes) -> None:
        self.bad.append(self.data.count(b"\n") + 1)
        self.data += line


HOSTILE = [
    "\ud800", "\udfff", "\ud83d\ude00", "\U0001f600", "\0", "\r", "\n", "\r\n", "\x0b", "\x1a",
    "\x85", "\u2028", "\ufeff", '"', "\\", "\t", ",", "PAR1",
]  # fmt: skip
texts = st.lists(
    st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8), st.text("ab ", max_size=300)),
    max_size=6,
).map("".join)
# a document, or None for a malformed line
documents = st.lists(st.one_of(texts, texts, texts, st.none()), max_size=12)


def as_jsonl(draw: Any, documents: list[str | None]) -> Written:
    written, end = Written(), draw(st.sampled_from([b"\n", b"\r\n"]))
    written.data = draw(st.sampled_from([b"", BOM]))
    for text in documents:
        if text is None:
            written.add_malformed(draw(st.sampled_from(JUNK)) + end)
            continue
        escaped = draw(st.booleans()) or SURROGATES.search(text)
        between = (",", draw(st.sampled_from([": ", ":\r", "\t:"])))  # all of these are white space
        value = {"id": 1, "text": text}
        line = json.dumps(value, ensure_ascii=bool(escaped), separators=between).encode() + end
        # adjacent halves of a surrogate pair are one character
        written.add_text(SURROGATES.sub("\ufffd", json.loads(line)["text"]), line)
    return written


def as_table(separator: str) -> Callable[[Any, list[str | None]], Written]:
    def write(draw: Any, documents: list[str | None]) -> Written:
        written, end = Written(), draw(st.sampled_from(["\n", "\r\n"]))
        written.data = draw(st.sampled_from([b"", BOM])) + f"id{separator}text{end}".encode()
        for text in documents:
            if text is None:
                written.add_malformed(f"only one column{end}".encode())
                continue
            text, line = SURROGATES.sub("?", text), io.StringIO()
            # Python before 3.13 leaves a bare \r unquoted, which then looks like a line end
            quoting = csv.QUOTE_ALL if "\r" in text or draw(st.booleans()) else csv.QUOTE_MINIMAL
            writer = csv.writer(line, delimiter=separator, lineterminator=end, quoting=quoting)
            writer.writerow(["1", text])
            written.add_text(text, line.getvalue().encode())
        return written

    return write


def as_parquet(draw: Any, documents: list[str | None]) -> Written:
    written, sink = Written(), io.BytesIO()
    kept = [SURROGATES.sub("?", text) for text in documents if text is not None]
    table = pa.table({"id": pa.array([1] * len(kept)), "text": pa.array(kept, pa.string())})
    pq.write_table(table, sink, row_group_size=draw(st.integers(1, 5)))
    written.data, written.texts = sink.getvalue(), [text for text in kept if text.strip()]
    return written


AS = {".jsonl": as_jsonl, ".csv": as_table(","), ".tsv": as_table("\t"), ".parquet": as_parquet}


def zipped(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("x", (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def compress(draw: Any, written: Written, codec: str) -> None:
    """Compress a file, as one frame or many."""
    if codec == ".zip":
        written.data = zipped(written.data)
    elif codec:
        cuts = sorted(draw(st.lists(st.integers(0, len(written.data)), max_size=4)))
        edges = [0, *cuts, len(written.data)]
        parts = [FRAMED[codec](written.data[a:b]) for a, b in pairwise(edges)]
        if codec == ".zst":
            places = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(SKIPPABLE)), max_size=2)
            for place, part in draw(places):
                parts.insert(place, part)
        written.data = b"".join(parts)
        written.ends = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}


@st.composite
def files(draw: Any, formats: list[str], suffixes: list[str]) -> tuple[str, Written]:
    """The suffix of a file's name, and the file."""
    form = draw(st.sampled_from(formats))
    codec = draw(st.sampled_from(suffixes)) if form != ".parquet" else ""
    written: Written = AS[form](draw, draw(documents))
    if form != ".parquet" and draw(st.booleans()):
        written.data = written.data.removesuffix(b"\n").removesuffix(b"\r")
    compress(draw, written, codec)
    return form + codec, written


def read(path: Path, size: int, block: int) -> tuple[list[str], list[int]]:
    """The texts and the lines of malformed records, as decompress and tokenize read them.

    Raises:
        CorruptInput: As they do.
    """
    found, bad, number = [], [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstd_frames, "READ_BYTES", block)
        patch.setattr(zstd_frames, "FRAME_TEXT_BYTES", 3 * block)
        patch.setattr(codecs, "READ_BYTES", block + 64)  # enough to detect the codec
        patch.setattr(codecs, "DECODER_INPUT_BYTES", block)
        lines = LineReader(json_lines([CompressedFile(path)], dataset("auto")))
        chunks = []
        while lines.has_more():
            chunks.append(b"".join(lines.next_lines(size)))
        if not chunks:
            raise CorruptInput("holds no text")
    reader = BatchReader(RecordParser("text", "id", None))
    for chunk in chunks:
        for lines_of_it in LineReader([chunk]).whole_lines(size // 2 + 1, 1_000_000):
            batch = reader.read(lines_of_it)
            found += batch.texts
            bad += [why.line or number + index + 1 for index, _, why in batch.malformed]
            number += batch.count
    return found, bad


def tried(path: Path, size: int, block: int) -> tuple[list[str], list[int]] | str:
    """The same, or the message of the error."""
    try:
        return read(path, size, block)
    except Failure as error:
        return str(error)


# the last, because a damaged header may ask for more memory than there is
PLACE = r"byte \d+|no column|has no header|at line \d+|holds no text|zstd --long"
sizes = st.integers(1, 400)
blocks = st.sampled_from([8, 61, 2048, 1 << 18])


def put(factory: pytest.TempPathFactory, ending: str, data: bytes) -> Path:
    path = factory.getbasetemp() / f"reader{ending}"
    path.write_bytes(data)
    return path


@pytest.mark.slow
@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(file=files([*AS], ["", ".zip", *FRAMED]), size=sizes, block=blocks)
def test_documents_come_back_whatever_they_are_written_in(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, Written], size: int, block: int
) -> None:
    ending, written = file
    found = tried(put(tmp_path_factory, ending, written.data), size, block)
    if found != "holds no text" or written.texts or written.bad:
        assert found == (written.texts, written.bad)


@pytest.mark.slow
@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(
    file=files([".jsonl", ".csv", ".tsv"], [".zip", *FRAMED]),
    size=sizes,
    block=blocks,
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7) | st.none(),
)
def test_damage_is_reported_and_never_gives_another_text(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[str, Written],
    size: int,
    block: int,
    place: float,
    bit: int | None,
) -> None:
    ending, written = file
    at = int(place * len(written.data))
    data = bytearray(written.data)
    if bit is None:  # truncated; between two frames, this cannot be detected
        del data[at + (at in written.ends) :]
    else:
        data[at] ^= 1 << bit
    found = tried(put(tmp_path_factory, ending, bytes(data)), size, block)
    if isinstance(found, str):
        assert re.search(PLACE, found)
    elif found != (written.texts, written.bad):
        # the codec is not detected any more, and uncompressed parts may still be readable
        assert at < 6
        left = iter(written.texts)
        assert all(text in left for text in found[0])
        assert found[1]


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(file=files([".jsonl"], [""]), size=sizes, block=blocks, place=st.floats(0, 1))
def test_truncation_loses_only_the_last_line_and_is_reported(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[str, Written],
    size: int,
    block: int,
    place: float,
) -> None:
    ending, written = file
    data = written.data[: int(place * len(written.data))]
    found = tried(put(tmp_path_factory, ending, data), size, block)
    if isinstance(found, str):
        assert (found, data.strip(BOM)) == ("holds no text", b"")
        return
    texts, bad = found
    assert texts == written.texts[: len(texts)]
    last = data[data.rfind(b"\n") + 1 :].strip(BOM + b"\r")
    whole = last in [line.strip(BOM + b"\r") for line in written.data.split(b"\n")]
    before = [line for line in written.bad if line <= data.count(b"\n")]
    assert bad[: len(before)] == before
    if last and not whole:
        assert bad == [*before, data.count(b"\n") + 1]
