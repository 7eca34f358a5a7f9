"""What dead writers left: known by their hosts and processes, and where it harms nobody removed."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import time
from pathlib import Path

DAY = 86400.0


def ended(temporary: Path) -> bool:
    """Whether the writer of a temporary folder was a process of this host, and has ended."""
    ours = re.search(rf"-{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}$", temporary.name)
    return bool(ours and Path("/proc/self").exists() and not Path(f"/proc/{ours[1]}").exists())


def silent(path: Path) -> bool:
    """Whether nothing was changed there for a day, if the clocks of its writer and ours agree."""
    try:
        return time.time() - path.stat().st_mtime > DAY
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Remove what dead writers left: temporary folders of this host, and day-old names of leases.

    Clocks differ between hosts, so age alone condemns nothing that is of use to somebody: what
    writers elsewhere left is for `make clean`, a lease that is held has two names, and one who
    waits for it makes his name anew.
    """
    for path in filter(ended, folder.glob(".tmp-*")):
        shutil.rmtree(path, ignore_errors=True)
    for path in filter(silent, folder.glob(".lease-*.*")):
        with contextlib.suppress(OSError):
            if path.stat().st_nlink == 1:
                path.unlink()
