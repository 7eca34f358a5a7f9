"""Small files, written so that they are whole at every instant and after a power cut."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Put a file in the place of the one there, by one rename.

    Args:
        path: The file.
        text: Its whole content.
        durable: Whether it has to be on disk before; news need not be.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_as_umask(folder: Path) -> None:
    """Give the files in a folder the rights that the umask says.

    safetensors and transformers make theirs for the owner only, which a group cannot read.
    """
    os.umask(mask := os.umask(0))
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error that names no file, as those of writing do, name this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Bring a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
