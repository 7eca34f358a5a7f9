"""zstd frames: finding their ends, and compressing with several threads."""

from __future__ import annotations

import hashlib
import io
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
import zstandard

from pipeline.sources.zstd_frames import (
    FRAME_TEXT_BYTES,
    FrameScanner,
    FrameWriter,
    decompressed_blocks,
)
from tests.sources.helpers import frames


@pytest.mark.parametrize("seed", range(20))
def test_the_ends_of_frames_are_found_without_decompressing(seed: int) -> None:
    chance = random.Random(seed)
    made = frames(chance)
    data, ends, starts = b"".join(made), [0], []
    for frame in made:
        if frame[:4] == b"\x28\xb5\x2f\xfd":
            starts.append(ends[-1])
        ends.append(ends[-1] + len(frame))
    step = chance.choice([7, 1000, 1 << 18]) if len(data) < 20_000 else 1 << 16
    scanner = FrameScanner()
    for at in range(0, len(data), step):
        scanner.feed(data[at : at + step])
    assert scanner.complete
    assert scanner.starts == starts
    for place in {*chance.sample(range(len(data)), min(50, len(data))), *ends}:
        scanner = FrameScanner()
        scanner.feed(data[:place])
        assert scanner.complete == (place in ends)


def test_garbage_after_a_frame_is_found() -> None:
    frame = zstandard.compress(b"text")
    scanner = FrameScanner()
    scanner.feed(frame + b"garbage")
    assert scanner.invalid_at == len(frame)
    assert not scanner.complete


def text_blocks(seed: int = 0) -> Iterator[bytes]:
    chance = random.Random(seed)
    for size in (5, FRAME_TEXT_BYTES, 1000, 3 * FRAME_TEXT_BYTES, FRAME_TEXT_BYTES - 1, 7):
        yield chance.randbytes(size // 4) * 4


def write_frames(path: Path | None, threads: int) -> tuple[str, str]:
    with FrameWriter(path, 1, threads) as writer:
        for block in text_blocks():
            writer.add(block)
        text = writer.finish()
    return text, writer.sha256


@pytest.mark.slow
def test_threads_change_no_byte(tmp_path: Path) -> None:
    one, four = tmp_path / "one", tmp_path / "four"
    assert write_frames(one, 1) == write_frames(four, 4)
    assert one.read_bytes() == four.read_bytes()
    assert write_frames(one, 2)[1] == hashlib.sha256(one.read_bytes()).hexdigest()
    assert write_frames(None, 2)[0] == write_frames(one, 2)[0], "the same digest without a file"
    with one.open("rb") as file:
        assert b"".join(decompressed_blocks(file, 1 << 27)) == b"".join(text_blocks())


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [1, 100, FRAME_TEXT_BYTES - 1, FRAME_TEXT_BYTES, FRAME_TEXT_BYTES + 1, 3 * FRAME_TEXT_BYTES],
)
def test_frames_depend_only_on_the_text(tmp_path: Path, size: int) -> None:
    text = b"".join(text_blocks())[: 200_000 if size < 1000 else None]
    with FrameWriter(tmp_path / "parts") as parts, FrameWriter(tmp_path / "whole") as whole:
        for at in range(0, len(text), size):
            parts.add(text[at : at + size])
        whole.add(text)
        assert parts.finish() == whole.finish()
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_frame_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_frames(tmp_path / "x", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_blocks_have_one_size_for_any_frames() -> None:
    texts = [b"a" * 10, b"b" * FRAME_TEXT_BYTES, b"", b"c" * (2 * FRAME_TEXT_BYTES + 5)]
    file = io.BytesIO(b"".join(map(zstandard.compress, texts)))
    found = list(decompressed_blocks(file, 1 << 27))
    assert [len(block) for block in found] == [
        FRAME_TEXT_BYTES,
        FRAME_TEXT_BYTES,
        FRAME_TEXT_BYTES,
        15,
    ]
    assert xxhash.xxh3_128(b"".join(found)).digest() == xxhash.xxh3_128(b"".join(texts)).digest()
