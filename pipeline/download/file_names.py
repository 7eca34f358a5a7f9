"""The names of the files of a corpus, and the URLs that each is downloaded from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from pipeline.core import receipt
from pipeline.core.errors import InputError
from pipeline.core.receipt import hash_json
from pipeline.core.registry import Dataset
from pipeline.sources.data_files import DATA_SUFFIXES, choose_data, format_suffix

MAX_NAME_BYTES = 255  # limit of common file systems
MAX_SHOWN_FILES = 5
RESERVED_NAMES = (receipt.RECEIPT_FILE, ".", "..")


def url_to_path(url: str) -> Path:
    """The path in a URL; for `file://`, a path on this machine. It may contain any bytes.

    People write `#`, `?` and `%` in file:// URLs as they are. Where there is no file of the decoded
    name, it is taken as it is written.
    """
    if not url.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))
    written = "/" + url.removeprefix("file://").partition("/")[2]
    decoded = Path(os.fsdecode(unquote_to_bytes(written)))
    return decoded if decoded.exists() or not Path(written).exists() else Path(written)


def local_path(url: str) -> Path | None:
    """The path that a file:// URL names; None for other URLs."""
    return url_to_path(url) if url.startswith("file:") else None


def corpus_files(dataset: Dataset) -> dict[str, list[str]]:
    """The mirrors of each file of the corpus, by the name of the downloaded file.

    Raises:
        InputError: A local folder has no corpus in it, or a part of it cannot be read.
    """
    folder = local_path(dataset.urls[0])
    if folder is None or not folder.is_dir():
        return {_name(dataset, stem, urls[0]): urls for stem, urls in dataset.files.items()}
    if dataset.sha256 or dataset.size is not None:
        raise InputError(f"{folder} is a folder; sha256 and size are for one file", "Remove them")
    names = choose_data(sorted(_list_files(folder)), dataset.form)
    if not names:
        raise InputError(
            f"{folder} has no corpus in it",
            f"Files that end in {', '.join(DATA_SUFFIXES)} are used, and compressed files",
        )
    return {_escaped(name): [(folder / name).as_uri()] for name in names}


def passed_over(dataset: Dataset) -> list[str]:
    """The files of a local folder that are no corpus, by their relative path, in order.

    Raises:
        InputError: A part of the folder cannot be read.
    """
    folder = local_path(dataset.urls[0])
    if folder is None or not folder.is_dir():
        return []
    names = sorted(_list_files(folder))
    chosen = set(choose_data(names, dataset.form))
    return [name for name in names if name not in chosen]


def describe_files(names: list[str]) -> str:
    """The files that `passed_over` lists, in a few words."""
    shown = ", ".join(names[:MAX_SHOWN_FILES]) + (", …" if len(names) > MAX_SHOWN_FILES else "")
    return f"{len(names)} other file{'s' * (len(names) > 1)} in the folder: {shown}"


def _list_files(folder: Path) -> Iterator[str]:
    """Relative paths of all files in a folder, without hidden ones; symlinks are followed."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real not in seen:
            seen.add(real)
            yield from (
                str((Path(parent) / name).relative_to(folder))
                for name in files
                if not name.startswith(".")
            )


def _name(dataset: Dataset, stem: str, url: str) -> str:
    """The name of a downloaded file: as in its URL, or its year."""
    name = url_to_path(url).name
    if dataset.years is None:
        return _escaped(name) or "corpus"
    return stem + (format_suffix(name) if dataset.form == "auto" else "")


def _escaped(name: str) -> str:
    """A path as the name of a file in a unit, where some names are reserved.

    Slashes and bytes that are not UTF-8 are percent-encoded; a name that is too long is truncated
    and ends in a hash.
    """
    name = re.sub(r"[%/\0\udc80-\udcff]", lambda match: f"%{os.fsencode(match[0])[0]:02X}", name)
    raw = name.encode()
    if len(raw) > MAX_NAME_BYTES:
        tail = f"~{hash_json(name)[:16]}{format_suffix(name)}"
        return raw[: MAX_NAME_BYTES - len(tail)].decode(errors="ignore") + tail
    return f"%{ord(name[0]):X}{name[1:]}" if name in RESERVED_NAMES else name
