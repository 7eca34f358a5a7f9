"""Recognize files that are not records, whatever their name says, and refuse them by what they are.

`DESCRIPTIONS` lists their first bytes. Text in UTF-16 or UTF-32 is converted, see `text_encoding`.
"""

from __future__ import annotations

import tarfile

from pipeline.sources.codecs import CODEC_NAMES, CONTROL_BYTES
from pipeline.sources.lfs_pointer import LFS_HINT, is_lfs_pointer

TAR_HEADER_BYTES = 512
DECOMPRESS = "Decompress it and pass the file as FILE="
UNPACK = "Unpack it and pass the folder as FILE="
CONVERT = "Convert it to JSON lines or Parquet and pass the file as FILE="
DESCRIPTIONS: dict[bytes, tuple[str, str]] = {
    b"\x04\x22\x4d\x18": ("is compressed with lz4", DECOMPRESS),
    b"\x02\x21\x4c\x18": ("is compressed with lz4", DECOMPRESS),
    b"\x1f\x9d": ("is compressed with compress (.Z)", DECOMPRESS),
    b"LZIP": ("is compressed with lzip", DECOMPRESS),
    b"\xff\x06\x00\x00sNaPpY": ("is compressed with snappy", DECOMPRESS),
    b"7z\xbc\xaf\x27\x1c": ("is a 7z archive", UNPACK),
    b"Rar!\x1a\x07": ("is a RAR archive", UNPACK),
    b"PK\x03\x04": ("is a zip inside another archive", UNPACK),
    b"%PDF-": ("is a PDF", "Extract its text and pass that as FILE="),
    b"ARROW1": ("is an Arrow or Feather file", CONVERT),
    b"\xff\xff\xff\xff": (
        "is an Arrow stream, as datasets.save_to_disk writes it",
        'Write it as Parquet: datasets.load_from_disk("…").to_parquet("corpus.parquet")',
    ),
    b"ORC": ("is an ORC file", CONVERT),
    b"Obj\x01": ("is an Avro file", CONVERT),
    b"SQLite format 3\x00": ("is an SQLite database", CONVERT),
    b"\x89HDF\r\n\x1a\n": ("is an HDF5 file", CONVERT),
    b"\x80\x04\x95": ("is a Python pickle, which may contain code", CONVERT),
    b"\x93NUMPY": ("is a NumPy array", CONVERT),
}
"""First bytes of a file that is not read → what it is, and what to do."""
WORDS = (b"LZIP", b"ARROW1", b"ORC")  # a text may begin with them, too


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar archive."""
    try:
        tarfile.TarInfo.frombuf(head[:TAR_HEADER_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:  # its checksum, which also the oldest form has
        return False
    return True


def unread_kind(head: bytes, in_archive: bool) -> tuple[str, str] | None:
    """What a file is that is not read, and what to do; None if it may hold records.

    Args:
        head: Its first bytes, decompressed once if it is compressed.
        in_archive: Whether it is in an archive.
    """
    if is_lfs_pointer(head):
        return "is a Git LFS pointer in place of the file", LFS_HINT
    is_text = not CONTROL_BYTES.search(head)
    for magic, name in CODEC_NAMES.items():
        if head.startswith(magic) and not is_text:  # a text may begin like bzip2
            if in_archive:
                return f"is compressed with {name} inside an archive", UNPACK
            return f"is compressed twice, inside with {name}", DECOMPRESS
    if is_tar(head):
        return "is a tar archive inside another archive", UNPACK
    kinds = (magic for magic in DESCRIPTIONS if head.startswith(magic))
    found = (DESCRIPTIONS[magic] for magic in kinds if magic not in WORDS or not is_text)
    return next(found, None)
