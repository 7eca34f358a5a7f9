"""Files that a file:// URL names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from pipeline.core.errors import InputError
from pipeline.download.response import ResponseAction
from pipeline.download.resume import ContentIdentity


def url_to_path(url: str) -> Path:
    """The path in a URL; for `file://`, a path on this machine. It may contain any bytes."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))


def local_path(url: str) -> Path | None:
    """The path that a file:// URL names; None for other URLs."""
    return url_to_path(url) if url.startswith("file:") else None


def identify(url: str) -> ContentIdentity:
    """The identity of the file at a file:// URL: its size and modification time.

    Raises:
        InputError: There is no such file, or it is empty.
    """
    path = url_to_path(url)
    if not path.is_file():
        raise InputError(f"{url}: there is no such file")
    stat = path.stat()
    if not stat.st_size:
        hint = "Remove it, or replace it by a valid copy"
        raise InputError(f"{url}: {ResponseAction.EMPTY.value}", hint)
    return ContentIdentity(url, None, str(stat.st_mtime_ns), stat.st_size)
