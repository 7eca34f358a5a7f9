"""Write small files atomically: complete at every instant, also after a power failure."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a file, or replace it, by one rename.

    Args:
        path: The file.
        text: Its whole content.
        durable: Whether to fsync before the rename; progress files need not.
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
    """Give the files in a folder the permissions that the umask allows.

    safetensors and transformers write files that only the owner can read.
    """
    os.umask(mask := os.umask(0))
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this path to an `OSError` that names no file, as errors of writing do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
