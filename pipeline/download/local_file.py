"""Files that a file:// URL names."""

from __future__ import annotations

from pipeline.core.errors import InputError
from pipeline.download.file_names import url_to_path
from pipeline.download.response import ResponseAction
from pipeline.download.resume import RemoteContent


def identify(url: str) -> RemoteContent:
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
    return RemoteContent(url, None, str(stat.st_mtime_ns), stat.st_size)
