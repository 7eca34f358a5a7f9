"""How much memory this process may use, so that a decoder does not get the job killed."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2 and 1


@cache
def memory() -> int:
    """Memory limit in bytes: the least of the machine, the job's cgroups and `ulimit -v`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [soft] if soft != resource.RLIM_INFINITY else []
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, *limits, *_cgroups(Path("/proc/self/cgroup"), MOUNT))


def _cgroups(table: Path, mount: Path) -> Iterator[int]:
    """The limits of the cgroups of a process and of their parents."""
    try:
        rows = [row.split(":", 2) for row in table.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, name in rows:
        if controllers and "memory" not in controllers.split(","):
            continue
        root = mount / "memory" if controllers else mount
        # in a container the name may be that of the host, and the limit is at the root
        cgroup = root / name.lstrip("/")
        for folder in (cgroup, *cgroup.parents):
            for file in LIMITS:
                try:
                    yield int((folder / file).read_text())
                except (OSError, ValueError):  # there is none, or it is `max`
                    continue
            if folder == root:
                break
