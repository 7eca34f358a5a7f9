"""Permissions of files."""

from __future__ import annotations

import stat
from pathlib import Path


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))
