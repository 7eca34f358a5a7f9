"""The files of records in a raw file: itself, or the members of a zip or tar archive.

Members are read in the order of the archive, in constant memory, however the archive is compressed.
"""

from __future__ import annotations

import errno
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import IO, Any, Self

from pipeline.core.errors import CorruptInput, InputError
from pipeline.sources.codecs import ZIP_MAGICS, CompressedFile
from pipeline.sources.data_files import ARCHIVE, DATA_SUFFIXES, format_of, is_data
from pipeline.sources.file_kinds import UNPACK, is_tar, unread_kind
from pipeline.sources.zstd_frames import READ_BYTES

HEAD_BYTES = 1 << 16  # what is looked at to tell what a file is
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError),
)
"""What the libraries raise for damaged archives. An `OSError` of the system is no damage."""


@dataclass(frozen=True)
class Member:
    """A file of records.

    `raw`: the file that it is, or is in. `name`: its own name. `where`: both, for messages. `head`:
    its first bytes. `blocks`: its bytes, from the first one; to be read once. `whole`: whether they
    begin at the beginning of the file.
    """

    raw: CompressedFile
    name: str
    where: str
    head: bytes
    blocks: Iterable[bytes]
    whole: bool = True

    def refusal(self, problem: str, hint: str = "") -> InputError:
        """The error for a file that is not read."""
        return InputError(f"{self.where} {problem}", hint)

    def damage(self, problem: str, hint: str = "") -> CorruptInput:
        """The error for a file that may be damaged; the raw file is then compared with its hash."""
        return CorruptInput(f"{self.where} {problem}", hint, unit=self.raw.unit)


def members(raw: CompressedFile, form: str) -> Iterator[Member]:
    """The files of records in a raw file.

    Args:
        raw: The file.
        form: The format of its records; `auto` if names say it.

    Raises:
        CorruptInput: The file is damaged.
        InputError: It is of a kind that is not read, or an archive without records.
    """
    if not raw.starts_file:  # a later slice
        yield Member(raw, raw.path.name, str(raw.path), b"", raw, whole=False)
    elif raw.head(4) in ZIP_MAGICS:
        yield from _zip_members(raw, form)
    else:
        head, blocks = peek(raw)
        if format_of(raw.path.name) == ARCHIVE and not is_tar(head):
            what = f"{raw.path} is an empty tar archive, or none at all"
            raise CorruptInput(what, "Pack it again", unit=raw.unit)
        if is_tar(head):
            yield from _tar_members(raw, blocks, form)
        else:
            yield _member(raw, raw.path.name, head, blocks)


def _member(raw: CompressedFile, name: str, head: bytes, blocks: Iterable[bytes]) -> Member:
    where = str(raw.path) if name == raw.path.name else f"{raw.path}: {name}"
    member = Member(raw, name, where, head, blocks)
    if kind := unread_kind(head, in_archive=name != raw.path.name):
        what, hint = kind
        raise member.refusal(f"{what}, which is not read", hint)
    return member


def peek(blocks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first `HEAD_BYTES` or more of a stream, and all of it."""
    stream, first = iter(blocks), list[bytes]()
    while sum(map(len, first)) < HEAD_BYTES and (block := next(stream, None)) is not None:
        first.append(block)
    return b"".join(first), chain(first, stream)


class _Chooser:
    """Which members of an archive are read: those with records, all of one kind."""

    def __init__(self, raw: CompressedFile, form: str) -> None:
        self._raw, self._form = raw, form
        self._first: dict[bool, str] = {}  # by whether it is a text file
        self._others: list[str] = []

    def wants(self, name: str) -> bool:
        """Whether to read a member.

        Raises:
            InputError: Text files stand beside files of records.
        """
        if not is_data(name):
            return False
        form = self._form if self._form != "auto" else format_of(name)
        if form is None:
            self._others.append(name)
            return False
        self._first.setdefault(form == "text", name)
        if len(self._first) > 1:
            raise InputError(
                f"{self._raw.path} holds text files ({self._first[True]}) beside files of records "
                f"({self._first[False]})",
                "Unpack it, keep one kind, and pass the folder as FILE=",
            )
        return True

    def link(self, name: str, command: str) -> InputError:
        """The error for a member that is a link to another file."""
        what = f"{self._raw.path} holds a link in place of a file ({name})"
        return InputError(what, f"Pack the file itself, with {command}")

    def check(self) -> None:
        """Raise `CorruptInput` if no member was read; a damaged zip may list none."""
        if not self._first:
            held = f"only {', '.join(self._others[:3])}" if self._others else "no files"
            raise CorruptInput(
                f"{self._raw.path} is an archive with {held} (read up to byte "
                f"{self._raw.bytes_read}), and no file that ends in {', '.join(DATA_SUFFIXES)}",
                "Pack one of these, or say what the files hold: dataset.form=jsonl",
                unit=self._raw.unit,
            )


class _TarEntry(tarfile.TarInfo):
    """A header of a tar archive. tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header.

        Raises:
            ReadError: It is damaged.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header is damaged ({error})") from None


@contextmanager
def _damage(raw: CompressedFile, kind: str) -> Iterator[None]:
    """Turn the errors of damaged archives into `CorruptInput`."""
    try:
        yield
    except NotImplementedError as error:
        raise CorruptInput(
            f"{raw.path} is a {kind} whose compression is not supported "
            f"(read up to byte {raw.bytes_read}): {error}",
            UNPACK,
            unit=raw.unit,
        ) from None
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise CorruptInput(
            f"{raw.path} is truncated or not a valid {kind} "
            f"(read up to byte {raw.bytes_read}): {error}",
            unit=raw.unit,
        ) from None


def _tar_members(raw: CompressedFile, blocks: Iterator[bytes], form: str) -> Iterator[Member]:
    if raw.partial:
        what = f"{raw.path} is a tar archive, but its name does not say so"
        raise InputError(what, "Let its name end in .tar.zst")
    chooser, stream, kind = _Chooser(raw, form), _Stream(blocks), "tar archive"
    with _damage(raw, kind):
        archive: Any = tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarEntry)  # noqa: SIM115
    while True:
        with _damage(raw, kind):
            entry = archive.next()
        if entry is None:
            break
        archive.members = []  # else it keeps all of them
        if entry.isdir() or not chooser.wants(entry.name):
            continue
        file = archive.extractfile(entry) if entry.isreg() else None
        if file is None:
            raise chooser.link(entry.name, "tar -h")
        yield _member(raw, entry.name, *peek(_blocks(raw, kind, file)))
    with _damage(raw, kind):
        while block := archive.fileobj.read(READ_BYTES):
            if block.strip(b"\0"):
                raise tarfile.ReadError("data follow its end")
        if stream.tail.strip(b"\0"):  # tarfile takes any end for the end
            raise tarfile.ReadError("its end is missing")
    chooser.check()


class _Stream(io.RawIOBase):
    """Blocks of bytes as a file that is read once.

    Attributes:
        tail: The last bytes that were read, as many as end a tar archive.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._held = blocks, memoryview(b"")
        self.tail = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and (block := next(self._blocks, None)) is not None:
            self._held = memoryview(block)
        piece = self._held[: len(buffer)]
        buffer[: len(piece)] = piece
        self.tail = (self.tail + bytes(piece[-tarfile.BLOCKSIZE :]))[-tarfile.BLOCKSIZE :]
        self._held = self._held[len(piece) :]
        return len(piece)


def _blocks(raw: CompressedFile, kind: str, file: IO[bytes]) -> Iterator[bytes]:
    while True:
        with _damage(raw, kind):
            block = file.read(READ_BYTES)
        if not block:
            return
        yield block


def _zip_members(raw: CompressedFile, form: str) -> Iterator[Member]:
    with raw.open() as file:
        file.read(READ_BYTES)  # for the place in messages, if it is no zip after all
        with _damage(raw, "zip"):
            archive = zipfile.ZipFile(file)
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        _check_zip(raw, entries)
        data = [entry for entry in entries if is_data(entry.filename)]
        chooser = _Chooser(raw, form)
        alone = len(data) == 1  # whatever its name is
        for entry in data:
            if not alone and not chooser.wants(entry.filename):
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise chooser.link(entry.filename, "zip without -y")
            known = format_of(entry.filename) or not alone
            name = entry.filename if known else PurePath(raw.path.name).stem
            with _damage(raw, "zip"):
                stream = archive.open(entry)
            with stream:
                yield _member(raw, name, *peek(_blocks(raw, "zip", stream)))
        if not alone:
            chooser.check()
    raw.hash_remaining()


def _check_zip(raw: CompressedFile, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse zip files of other programs, and encrypted ones."""
    problem = ""
    if any(entry.filename == "[Content_Types].xml" for entry in entries):
        problem, hint = "is an Office document, not a zip of records", "Save it as CSV in UTF-8"
    elif any(entry.flag_bits & 1 for entry in entries):
        problem, hint = "is encrypted", "Unpack it with its password and pass the file as FILE="
    if problem:
        what = f"{raw.path} {problem} (read up to byte {raw.bytes_read})"
        raise CorruptInput(what, hint, unit=raw.unit)
