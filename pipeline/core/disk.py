"""What a file system has free, and sizes as people read them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """What may still be written: bytes and files, each None where no limit is told.

    A quota is not seen by it: there is no one way to ask for quotas.
    """

    bytes: int | None
    files: int | None


def room(place: Path) -> Room:
    """What is free for us where a folder is, or will be.

    Raises:
        OSError: It cannot be told.
    """
    found = os.statvfs(standing(place))
    # btrfs makes inodes as it needs them and says that there are none; some in user space say
    # nothing at all
    return Room(
        found.f_bavail * found.f_frsize if found.f_blocks else None,
        found.f_favail if found.f_files else None,
    )


def standing(place: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (place, *place.parents) if os.path.isdir(path))


def size(value: float) -> str:
    """Bytes in the unit that suits them, three digits at most."""
    if value < 1000:
        return f"{value:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:,.4g} TB"
