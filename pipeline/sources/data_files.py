"""What the names of files say: how their records are written, and which are no data at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

COMPRESSED_SUFFIXES = (".zst", ".gz", ".xz", ".bz2", ".zip")
FORMAT_BY_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".txt": "text",
}  # fmt: skip
ARCHIVE_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz")
DATA_SUFFIXES = (*FORMAT_BY_SUFFIX, *ARCHIVE_SUFFIXES)
ARCHIVE = "archive"  # the format of a tar archive, whose members have formats of their own

NOT_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|contributing|citation|changelog|requirements"
    r"|manifest|urls?|checksums|(sha\d+|md5)sums)([_-][a-z-]+)?(\.(txt|json|md|rst))?"
    r"|(dataset_infos?|dataset_dict|state|metadata|config|croissant|package|schema)\.json"
    r"|.*\.(md5|sha1|sha256|sha512)\.txt",
    re.IGNORECASE,
)
"""Names of the files that lie beside data, in folders and archives."""


def format_of(name: str) -> str | None:
    """The format of a file by its name, compressed or not; None if the name does not say it."""
    path = PurePath(name.lower())
    if path.suffix in ARCHIVE_SUFFIXES:
        return ARCHIVE
    if path.suffix in COMPRESSED_SUFFIXES:
        inner = PurePath(path.stem).suffix
        if inner in ARCHIVE_SUFFIXES:
            return ARCHIVE
        return FORMAT_BY_SUFFIX.get(inner) if inner else "jsonl"
    return FORMAT_BY_SUFFIX.get(path.suffix)


def format_suffix(name: str) -> str:
    """The end of a file's name that says its format, such as `.csv.gz`; empty if there is none."""
    path = PurePath(name)
    compressed = path.suffix.lower() in COMPRESSED_SUFFIXES
    return "".join(path.suffixes[-2 if compressed else -1 :]) if format_of(name) else ""


def is_data(name: str) -> bool:
    """Whether a file may hold records: not a README, a license, or one that is hidden."""
    parts = PurePath(name).parts
    hidden = any(re.match(r"\.[^.]|__MACOSX$", part) for part in parts)
    return bool(parts) and not hidden and not NOT_DATA.fullmatch(parts[-1])


def choose_data(names: Iterable[str], form: str) -> list[str]:
    """The files of a folder that are a corpus, in the given order.

    Args:
        names: Relative paths.
        form: The format of all files; `auto` if their names say it. Then text files are a corpus
            only where no other file is one.
    """
    data = [name for name in names if is_data(name)]
    if form != "auto":
        return data
    formats = {name: format_of(name) for name in data}
    records = [name for name in data if formats[name] not in (None, "text")]
    return records or [name for name in data if formats[name]]
