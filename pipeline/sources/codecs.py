"""Raw files to bytes: zstd, gzip, xz, bzip2, zip or plain, streamed in constant memory.

The raw bytes are hashed in the same pass. A stream that ends inside a frame is an error: libraries
that hide this let a broken download pass for a short corpus.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash
import zstandard

from pipeline.core.cgroup_memory import memory
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import Receipt, expect
from pipeline.sources.spans import Span
from pipeline.sources.zstd_frames import READ, FrameScanner, blocks

CHUNK_NAME = "chunk.jsonl.zst"
COMPRESSED_SUFFIXES = (".zst", ".gz", ".xz", ".bz2", ".zip")
UNPRINTED = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f]")
FEED = 2048  # raw bytes a decoder is given at once: a few KB may hold 200 MB
LONGEST_WINDOW = 2**31  # bytes, of --long=31
BESIDE = 2**28  # bytes of memory for everything but the window

ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16)))
CODECS: list[tuple[bytes, Callable[[], Any]]] = [
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"BZh", bz2.BZ2Decompressor),
]
MAGIC = [magic for magic, _ in CODECS]
ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # with a file in it, and without


class RawFile:
    """The decompressed bytes of a file, in blocks: iterate over it, once.

    Args:
        path: The file; its codec is known by its first bytes, not by its name.
        unit: The unit it belongs to, named in errors.
        before_read: Called before each read; it may raise.
        span: Read only that of the file.

    Attributes:
        read: Raw bytes read so far.

    Raises:
        CorruptInput: While iterating, where the file is damaged or cut off.
    """

    def __init__(
        self,
        path: Path,
        unit: Path | None = None,
        before_read: Callable[[], None] = lambda: None,
        span: Span | None = None,
    ) -> None:
        self.path, self.unit, self._before_read, self.span = path, unit, before_read, span
        self.bytes_read = 0
        self._begin = span.start if span else 0
        self._hash: Any = xxhash.xxh3_128() if span else hashlib.sha256()
        self._walk: FrameScanner | None = None

    @property
    def digest(self) -> str:
        """Hash (hex) of the raw bytes read so far: sha256, or of a span xxh3-128."""
        digest: str = self._hash.hexdigest()
        return digest

    def verify(self, receipt: Receipt) -> None:
        """Compare what was read, to its end, with its span or the receipt of its unit.

        Raises:
            CorruptInput: It is another one.
        """
        if self.span:
            self.verify_span(self.span)
        else:
            expect(self.digest, self.unit or self.path.parent, self.path.name, receipt)

    def verify_span(self, span: Span) -> None:
        """Compare what was read of a span, to its end, with its hash; raises as `check`."""
        if self.digest != span.xxh3:
            end = span.start + span.size
            why = f"{self.path} is damaged between its bytes {span.start} and {end}"
            raise CorruptInput(why, unit=self.unit)

    def head(self, size: int) -> bytes:
        """The first bytes of the file; they do not count as read."""
        with self._plain() as file:
            return file.read(size)

    def _plain(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            again = "Another task may have found it damaged: run the same command again"
            raise CorruptInput(f"{self.path} is gone", again) from None

    @contextmanager
    def _open(self) -> Iterator[_Watched]:
        with self._plain() as plain:
            yield _Watched(plain, self.span, self._saw, self._before_read)

    def __iter__(self) -> Generator[bytes]:
        with self._open() as file:
            data = file.read(READ)
            codec = next((make for magic, make in CODECS if data.startswith(magic)), None)
            if data.startswith(ZSTD):
                yield from self._zstd(data, file)
            elif codec:
                yield from self._decode(codec, data, file)
            elif data.startswith(ZIP):
                yield from self._unzip(file)
            else:
                self._look_plain(data)
                while data:
                    yield data
                    data = file.read(READ)

    def _look_plain(self, head: bytes) -> None:
        """Text under the name of a compressed file is taken; a damaged first byte makes no text."""
        if not head or self.path.suffix.lower() not in COMPRESSED_SUFFIXES:
            return
        if UNPRINTED.search(head) or any(magic.startswith(head) for magic in (*ZSTD, *MAGIC, *ZIP)):
            raise CorruptInput(
                f"{self.path} is not compressed as its name says, nor text: at byte "
                f"{self._begin} it has {head[:6].hex(' ')}",
                unit=self.unit,
            )

    def hash_remaining(self) -> None:
        """Read what was not read yet only to hash it, for a reader that jumps about in it."""
        with self._open() as file:
            file.seek(self.bytes_read)
            while file.read(READ):
                pass

    def _saw(self, place: int, data: bytes) -> None:
        """Hash what follows on the bytes hashed so far: a zip is read at its end first."""
        new = data[self.bytes_read - place :] if place <= self.bytes_read else b""
        self._hash.update(new)
        self.bytes_read += len(new)
        if self._walk:
            self._walk.feed(new)

    def _zstd(self, data: bytes, file: _Watched) -> Iterator[bytes]:
        self._walk = walk = FrameScanner()
        walk.feed(data)
        file.seek(0)
        # compared with what a frame asks for before the memory is taken
        window = min(LONGEST_WINDOW, max(memory() - BESIDE, 2**23))
        try:
            yield from blocks(file, window)
        except zstandard.ZstdError as error:
            if "memory" in str(error):
                self._blame_memory(walk.starts, window)
            place = self.bytes_read if walk.lost is None else walk.lost
            raise self._damaged(place, error) from None
        if not walk.whole:
            raise self._cut_off()

    def _decode(self, codec: Callable[[], Any], data: bytes, file: _Watched) -> Iterator[bytes]:
        decoder, start = codec(), 0
        while data:
            fed = data[start : start + FEED]
            try:
                if decoder.eof:
                    decoder = codec()
                block = decoder.decompress(fed)
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise self._damaged(self.bytes_read - len(data) + start, error) from None
            if block:
                yield block
            start += len(fed) - (len(decoder.unused_data) if decoder.eof else 0)
            if start == len(data):
                data, start = file.read(READ), 0
        if not decoder.eof:
            raise self._cut_off()

    def _damaged(self, place: int, error: Exception) -> CorruptInput:
        why = f"{self.path} cannot be decompressed near byte {self._begin + place}: {error}"
        return CorruptInput(why, unit=self.unit)

    def _cut_off(self) -> CorruptInput:
        place = self._begin + self.bytes_read
        why = f"{self.path} ends in the middle of a compressed frame, at byte {place}"
        return CorruptInput(why, unit=self.unit)

    def _blame_memory(self, starts: list[int], limit: int) -> None:
        """Tell which window of the frames at `starts` was too long, if zstd makes such a one."""
        with self.path.open("rb") as file:
            for begins in starts:  # known ahead of what is decoded
                file.seek(self._begin + begins)
                window = zstandard.get_frame_parameters(file.read(18)).window_size
                if window > limit:
                    break
            else:
                return
        if window <= LONGEST_WINDOW:
            raise UserError(
                f"{self.path} was compressed with a window of {window >> 20} MB (zstd --long), and "
                f"{memory() >> 20} MB of memory are given",
                "Give decompress more (`mem` in the profile), or compress it again with --long=27",
            )

    def _unzip(self, file: _Watched) -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) != 1:
                    raise zipfile.BadZipFile(f"it holds {len(members)} files, not one")
                with archive.open(members[0]) as stream:
                    while block := stream.read(READ):
                        yield block
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise CorruptInput(
                f"{self.path} is cut off or no sound zip "
                f"(read up to byte {self.bytes_read}): {error}",
                unit=self.unit,
            ) from None
        file.seek(self.bytes_read)
        while file.read(READ):
            pass


class _Watched:
    """A file, or a span of one, that says what is read of it, and where."""

    def __init__(
        self,
        file: IO[bytes],
        span: Span | None,
        saw: Callable[[int, bytes], None],
        before_read: Callable[[], None],
    ) -> None:
        self._file, self._saw, self._before_read = file, saw, before_read
        self._begin, self._size = (span.start, span.size) if span else (0, sys.maxsize)
        self.seekable = file.seekable
        self.seek(0)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(place + self._begin * (whence == os.SEEK_SET), whence) - self._begin

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def read(self, size: int = -1) -> bytes:
        self._before_read()
        place = self.tell()
        left = max(0, self._size - place)
        if self._size < sys.maxsize:
            size = left if size < 0 else min(size, left)
        data = self._file.read(size)
        self._saw(place, data)
        return data
