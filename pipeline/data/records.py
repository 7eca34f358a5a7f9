"""Raw files to lines, lines to records.

`Lines` streams any of zstd, gzip, xz, bzip2 or plain text in constant memory, over any number of
frames, and hashes the raw bytes in the same pass. A stream that ends inside a frame is an error:
libraries that hide this let a broken download pass for a short corpus.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from pipeline.errors import CorruptInput

READ = 256 * 1024
FEED = 2048  # raw bytes a decoder is given at once: 20 KB of JSON can hold 200 MB
ZSTD_WINDOW = 2**31
SURROGATES = re.compile("[\ud800-\udfff]")

CODECS: list[tuple[bytes, Callable[[], Any]]] = [
    (b"\x28\xb5\x2f\xfd", lambda: _zstd()),
    *((bytes([0x50 + n]) + b"\x2a\x4d\x18", lambda: _zstd()) for n in range(16)),  # skippable
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"BZh", bz2.BZ2Decompressor),
]


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()


class Lines:
    """The decompressed bytes of a file, handed out in pieces that end at line ends.

    Args:
        path: The file; its codec is known by its first bytes, not by its name.
        unit: The unit it belongs to, named in errors.

    Attributes:
        read: Raw bytes read so far.
        line: Lines handed out so far.
        offset: Decompressed bytes handed out so far.
    """

    def __init__(self, path: Path, unit: Path | None = None) -> None:
        self.path, self.unit = path, unit
        self.read = self.line = self.offset = 0
        self._hash = hashlib.sha256()
        self._blocks = self._decode()
        self._rest = b""

    @property
    def sha256(self) -> str:
        """sha256 (hex) of the raw bytes read so far."""
        return self._hash.hexdigest()

    def more(self) -> bool:
        """Whether there is anything left to hand out."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._rest = block
        return True

    def pieces(self, size: int) -> Iterator[bytes]:
        """Hand out at least `size` bytes, up to the end of the line that reaches them.

        The cut depends on the text alone. The last line of the file gets the line end it may lack.
        """
        taken = 0
        while self.more():
            block, self._rest = self._rest, b""
            cut = block.find(b"\n", max(0, size - taken - 1)) + 1
            if cut:
                block, self._rest = block[:cut], block[cut:]
            taken += len(block)
            yield self._count(block)
            if cut:
                return
            last = block[-1:]
        if taken and last != b"\n":
            yield self._count(b"\n")

    def _count(self, block: bytes) -> bytes:
        self.line += block.count(b"\n")
        self.offset += len(block)
        return block

    def _raw(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while data := file.read(READ):
                self.read += len(data)
                self._hash.update(data)
                yield data

    def _decode(self) -> Iterator[bytes]:
        raw = self._raw()
        data = next(raw, b"")
        codec = next((make for magic, make in CODECS if data.startswith(magic)), None)
        if codec is None:
            yield data
            yield from raw
            return
        decoder, start = codec(), 0
        while data:
            fed = data[start : start + FEED]
            try:
                if decoder.eof:
                    decoder = codec()
                block = decoder.decompress(fed)
            except (zstandard.ZstdError, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                place = self.read - len(data) + start
                raise CorruptInput(
                    f"{self.path} cannot be decompressed near byte {place}: {error}", unit=self.unit
                ) from None
            if block:
                yield block
            start += len(fed) - (len(decoder.unused_data) if decoder.eof else 0)
            if start == len(data):
                data, start = next(raw, b""), 0
        if not decoder.eof:
            raise CorruptInput(
                f"{self.path} ends in the middle of a compressed frame, at byte {self.read}",
                unit=self.unit,
            )


@dataclass(frozen=True)
class Record:
    """A document: its text, its id, and the value that decides its split."""

    text: str
    id: str
    split_by: str


@dataclass(frozen=True)
class Bad:
    """A line that is no record, and why."""

    reason: str


class Reader:
    """Lines of JSON to records.

    Args:
        text_field: Where the text stands; dots go into nested objects. A list of strings is joined
            by blank lines.
        id_field: Where the id stands; without it, or where it is missing, the place is the id.
        split_by: Where the value stands that decides the split; without it, the text does.
    """

    def __init__(self, text_field: str, id_field: str | None, split_by: str | None) -> None:
        self.text_field = text_field.split(".")
        self.id_field = id_field.split(".") if id_field else None
        self.split_by = split_by.split(".") if split_by else None

    def parse(self, line: bytes, place: str) -> Record | Bad | None:
        """A record, the reason why there is none, or None where the line or its text is blank."""
        line = line.strip(b"\xef\xbb\xbf\r\n\t ")
        if not line:
            return None
        try:
            value = _decode(line)
        except ValueError as error:
            return Bad(f"not JSON: {error}")
        text = value if isinstance(value, str) else _at(value, self.text_field)
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = "\n\n".join(text)
        if text is None:
            return Bad(f"no field {'.'.join(self.text_field)}")
        if not isinstance(text, str):
            return Bad(f"field {'.'.join(self.text_field)} is {type(text).__name__}, not text")
        if not text.strip():
            return None
        name = _at(value, self.id_field) if self.id_field else None
        group = _at(value, self.split_by) if self.split_by else None
        return Record(
            text, place if name is None else str(name), text if group in (None, "") else str(group)
        )


def _decode(line: bytes) -> Any:
    """JSON to Python. A lone surrogate escape, which UTF-8 cannot hold, becomes U+FFFD."""
    try:
        return msgspec.json.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # the standard library also takes lone surrogates, and NaN as pandas writes it
    try:
        return _repair(json.loads(line))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _repair(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_repair(k): _repair(v) for k, v in value.items()}
    return [_repair(v) for v in value] if isinstance(value, list) else value


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
