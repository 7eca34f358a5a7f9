"""Free space of file systems, what steps will write, and sizes as people read them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

# Bytes of JSON lines in a byte of a compressed corpus: NIH of the Pile has 2.2 GB in 664 MB, and
# version 1 of it 2.1 GB in 631 MB.
TEXT_RATIO = 3.3
# Bytes of a base model for each parameter: fp32, or fp16 beside the files it was converted from.
MODEL_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class FreeSpace:
    """Bytes and files that can still be written; each None if the file system reports no limit.

    Quotas are not included, because there is no common way to ask for them.
    """

    bytes: int | None
    files: int | None


@dataclass(frozen=True)
class RunSizes:
    """What is known of a run's sizes before it starts; None if unknown.

    Attributes:
        raw: Bytes of the corpus as published, without files that will be linked.
        text: Bytes of the corpus as JSON lines.
        model: Bytes of the base model.
        files: Files of the corpus.
    """

    raw: int | None
    text: int | None
    model: int | None
    files: int = 1

    @property
    def parameters(self) -> float:
        """About how many parameters the base model has; 0 if unknown."""
        return (self.model or 0) / MODEL_BYTES_PER_PARAMETER

    def part_count(self, part_bytes: int) -> int:
        """About how many parts the corpus is divided into.

        Raw bytes are estimated from the text, because `raw` leaves out linked files.
        """
        return -(-int((self.text or 0) / TEXT_RATIO) // part_bytes)

    def chunk_count(self, chunk_bytes: int, part_bytes: int) -> int:
        """How many chunks of `chunk_bytes` text the parts have; each part ends in a smaller one."""
        return -(-(self.text or 0) // chunk_bytes) + self.part_count(part_bytes)


@dataclass(frozen=True)
class DiskNeed:
    """Bytes and files (folders included) that a step will write."""

    bytes: float = 0.0
    files: int = 0


def free_space(folder: Path) -> FreeSpace:
    """What this user can still write where a folder is, or will be.

    Raises:
        OSError: The file system does not answer.
    """
    status = os.statvfs(existing_folder(folder))
    # btrfs creates inodes on demand and reports 0; some file systems in user space report nothing
    return FreeSpace(
        status.f_bavail * status.f_frsize if status.f_blocks else None,
        status.f_favail if status.f_files else None,
    )


def existing_folder(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))


def size(value: float) -> str:
    """A number of bytes in a unit that needs at most three digits."""
    if value < 1000:
        return f"{value:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:,.4g} TB"


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # renamed in the meantime
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
