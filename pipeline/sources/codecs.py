"""Decompress raw files (zstd, gzip, xz, bzip2, or plain) in constant memory.

`archives` reads zip and tar files.

The raw bytes are hashed in the same pass. A stream that ends inside a frame is an error: libraries
that ignore this let a truncated download pass as a short corpus.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import re
import sys
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
from pipeline.sources.data_files import COMPRESSED_SUFFIXES
from pipeline.sources.spans import Span
from pipeline.sources.zstd_frames import READ_BYTES, FrameScanner, decompressed_blocks

CHUNK_NAME = "chunk.jsonl.zst"
CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f]")  # never in text
DECODER_INPUT_BYTES = 2048  # per call of a decoder: a few KB can expand to 200 MB
MAX_WINDOW_BYTES = 2**31  # zstd --long=31
RESERVED_BYTES = 2**28  # memory for everything except the zstd window

ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16)))
CODECS: list[tuple[bytes, Callable[[], Any]]] = [
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"BZh", bz2.BZ2Decompressor),
]
CODEC_NAMES = {ZSTD_MAGICS[0]: "zstd"} | {
    magic: name for (magic, _), name in zip(CODECS, ("gzip", "xz", "bzip2"), strict=True)
}
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # with and without files in it
MAGICS = (*ZSTD_MAGICS, *(magic for magic, _ in CODECS), *ZIP_MAGICS)


class CompressedFile:
    """A file, compressed or not; iterate once to get its decompressed bytes in blocks.

    Args:
        path: The file. Its codec is detected from its first bytes, not from its name.
        unit: The unit that the file belongs to, named in errors.
        before_read: Called before each read; may raise.
        span: Read only this span of the file.

    Attributes:
        bytes_read: Raw bytes read so far.

    Raises:
        CorruptInput: While iterating, if the file is damaged or truncated.
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
        self._start = span.start if span else 0
        self._hash: Any = xxhash.xxh3_128() if span else hashlib.sha256()
        self._scanner: FrameScanner | None = None

    @property
    def digest(self) -> str:
        """Hash (hex) of the raw bytes read so far: sha256, or xxh3-128 for a span."""
        digest: str = self._hash.hexdigest()
        return digest

    def verify(self, receipt: Receipt) -> None:
        """Compare the digest, after everything was read, with the span or the unit's receipt.

        Raises:
            CorruptInput: They differ.
        """
        if self.span:
            self.verify_span(self.span)
        else:
            expect(self.digest, self.unit or self.path.parent, self.path.name, receipt)

    def verify_span(self, span: Span) -> None:
        """Compare the digest with the hash of a span; raises as `verify`."""
        if self.digest != span.xxh3:
            end = span.start + span.size
            what = f"{self.path} is damaged between bytes {span.start} and {end}"
            raise CorruptInput(what, unit=self.unit)

    @property
    def partial(self) -> bool:
        """Whether only a slice of the file is read."""
        return False

    @property
    def starts_file(self) -> bool:
        """Whether what is read begins at the beginning of the file."""
        return True

    def head(self, size: int) -> bytes:
        """The first `size` bytes of the file; they do not count as read."""
        with self._open_file() as file:
            return file.read(size)

    def hash_remaining(self) -> None:
        """Read and hash the bytes not read yet, for readers that seek in the file."""
        with self.open() as file:
            file.seek(self.bytes_read)
            while file.read(READ_BYTES):
                pass

    def __iter__(self) -> Generator[bytes]:
        with self.open() as file:
            data = file.read(READ_BYTES)
            codec = next((make for magic, make in CODECS if data.startswith(magic)), None)
            if data.startswith(ZSTD_MAGICS):
                yield from self._read_zstd(data, file)
            elif codec:
                yield from self._read_frames(codec, data, file)
            else:
                self._check_plain(data)
                while data:
                    yield data
                    data = file.read(READ_BYTES)

    def _open_file(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            hint = "Another task may have found it damaged: run the same command again"
            raise CorruptInput(f"{self.path} is gone", hint) from None

    @contextmanager
    def open(self) -> Iterator[_ObservedFile]:
        """The raw file, for readers that seek in it; what is read of it in order is hashed."""
        with self._open_file() as file:
            yield _ObservedFile(file, self.span, self._before_read, self._hash_read)

    def _hash_read(self, offset: int, data: bytes) -> None:
        """Hash what follows the bytes hashed so far; a zip file is not read in order."""
        new = data[self.bytes_read - offset :] if offset <= self.bytes_read else b""
        self._hash.update(new)
        self.bytes_read += len(new)
        if self._scanner:
            self._scanner.feed(new)

    def _check_plain(self, head: bytes) -> None:
        """Accept text in a file named as compressed, but not one with a damaged first byte.

        Raises:
            CorruptInput: The file is neither compressed nor text.
        """
        if not head or self.path.suffix.lower() not in COMPRESSED_SUFFIXES:
            return
        if CONTROL_BYTES.search(head) or any(magic.startswith(head) for magic in MAGICS):
            raise CorruptInput(
                f"{self.path} is neither compressed, as its name says, nor text: at byte "
                f"{self._start} it has {head[:6].hex(' ')}",
                unit=self.unit,
            )

    def _read_zstd(self, data: bytes, file: _ObservedFile) -> Iterator[bytes]:
        self._scanner = scanner = FrameScanner()
        scanner.feed(data)
        file.seek(0)
        # zstd refuses a larger window before it allocates it
        max_window = min(MAX_WINDOW_BYTES, max(memory() - RESERVED_BYTES, 2**23))
        try:
            yield from decompressed_blocks(file, max_window)
        except zstandard.ZstdError as error:
            if "memory" in str(error) or "Dictionary" in str(error):
                self._check_frames(scanner.starts, max_window)
            offset = self.bytes_read if scanner.invalid_at is None else scanner.invalid_at
            raise self._damaged(offset, error) from None
        if not scanner.complete:
            raise self._truncated()

    def _read_frames(
        self, codec: Callable[[], Any], data: bytes, file: _ObservedFile
    ) -> Iterator[bytes]:
        """Decompress one or more concatenated gzip, xz or bzip2 streams."""
        decoder, at = codec(), 0
        while data:
            piece = data[at : at + DECODER_INPUT_BYTES]
            if decoder.eof:  # zeros may pad the end of a stream
                unpadded = piece.lstrip(b"\0")
                at += len(piece) - len(unpadded)
                piece = unpadded
                decoder = codec() if piece else decoder
            if piece:
                try:
                    block = decoder.decompress(piece)
                except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                    raise self._damaged(self.bytes_read - len(data) + at, error) from None
                if block:
                    yield block
                at += len(piece) - (len(decoder.unused_data) if decoder.eof else 0)
            if at == len(data):
                data, at = file.read(READ_BYTES), 0
        if not decoder.eof:
            raise self._truncated()

    def _damaged(self, offset: int, error: Exception) -> CorruptInput:
        what = f"{self.path} cannot be decompressed near byte {self._start + offset}: {error}"
        return CorruptInput(what, unit=self.unit)

    def _truncated(self) -> CorruptInput:
        end = self._start + self.bytes_read
        what = f"{self.path} ends in the middle of a compressed frame, at byte {end}"
        return CorruptInput(what, unit=self.unit)

    def _check_frames(self, starts: list[int], max_window: int) -> None:
        """Raise an error that says more if a frame at one of `starts` needs more than the file.

        Raises:
            CorruptInput: It needs a dictionary, or its header is damaged.
            UserError: It needs a larger window than `max_window`. A window that zstd itself never
                writes is damage, for which nothing is raised here.
        """
        with self.path.open("rb") as file:
            for start in starts:  # the scanner is ahead of the decoder
                file.seek(self._start + start)
                frame = zstandard.get_frame_parameters(file.read(18))
                if frame.dict_id:
                    raise CorruptInput(
                        f"{self.path} was compressed with a dictionary (id {frame.dict_id}, at "
                        f"byte {self._start + start}), which the file does not contain",
                        "Decompress it with zstd -d -D DICTIONARY and pass the result as FILE=",
                        unit=self.unit,
                    )
                if max_window < frame.window_size <= MAX_WINDOW_BYTES:
                    raise UserError(
                        f"{self.path} was compressed with a window of {frame.window_size >> 20} MB "
                        f"(zstd --long), and {memory() >> 20} MB of memory are available",
                        "Give decompress more memory (`mem` in the profile), or compress the file "
                        "again with --long=27",
                    )


class _ObservedFile:
    """A file, or a span of one, that reports each read and its offset."""

    def __init__(
        self,
        file: IO[bytes],
        span: Span | None,
        before_read: Callable[[], None],
        after_read: Callable[[int, bytes], None],
    ) -> None:
        self._file, self._before_read, self._after_read = file, before_read, after_read
        self._start, self._size = (span.start, span.size) if span else (0, sys.maxsize)
        self.seekable = file.seekable
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = self._start if whence == os.SEEK_SET else 0
        return self._file.seek(offset + start, whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def read(self, size: int = -1) -> bytes:
        self._before_read()
        offset = self.tell()
        left = max(0, self._size - offset)
        if self._size < sys.maxsize:
            size = left if size < 0 else min(size, left)
        data = self._file.read(size)
        self._after_read(offset, data)
        return data
