"""Who may look at what a run leaves: its owner, or the group too that the profile names.

The folders at the top are made here. What is made in them later gets its rights from the umask, and
its group from the folder it is in (setgid); both hold for every library that writes, too.
"""

from __future__ import annotations

import grp
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError

SHARED = ("data", "models", "cache")
OWNER, GROUP = 0o077, 0o027


def open_run(root: Path, name: str, group: str | None) -> None:
    """Make the folders of a root and of a run in it, and set the umask for what goes into them.

    What is there already stays as it is, and who may look at the run's folder decides for what is
    added to it.

    Raises:
        UserError: There is no such group, we are not in it, or a folder that is there is not open
            to it.
    """
    gid = None if group is None else _find(group)
    os.umask(OWNER if gid is None else GROUP)
    run = root / "runs" / name
    tops = [*(root / folder for folder in SHARED), run.parent]
    for folder in (*tops, run):
        _make(folder, gid)
    closed = [folder for folder in tops if gid is not None and not _is_of(folder, gid)]
    if closed:
        names = shlex.join(map(str, closed))
        raise UserError(
            f"{', '.join(map(str, closed))}: not open to the group {group} that the profile names",
            f"chgrp -R {group} {names} && chmod -R g+rX {names} && "
            f"find {names} -type d -exec chmod g+s {{}} +",
        )
    follow(run)


def follow(run: Path) -> None:
    """Set the umask so that what is made is as open as the folder of the run."""
    os.umask(~run.stat().st_mode & OWNER)


def open_like(run: Path, to: Path) -> Callable[[Path], None]:
    """Make way for a folder that is to be as open as that of a run, wherever it is.

    Args:
        run: The run's folder.
        to: The folder that is to be, in folders that are made here where they are not there.

    Returns:
        What gives an empty folder to the group that the run is open to, if to any.
    """
    follow(run)
    found = run.stat()
    mine = not os.geteuid() or found.st_gid in {*os.getgroups(), os.getegid()}
    gid = found.st_gid if mine and found.st_mode & stat.S_IRGRP else None
    if gid is None:
        os.umask(OWNER)  # what others may see of a run, they see by way of its group
    _make(to.parent, gid)

    def give(folder: Path) -> None:
        if gid is not None:
            os.chown(folder, -1, gid)
            folder.chmod(stat.S_ISGID | stat.S_IMODE(folder.stat().st_mode))

    return give


def _make(folder: Path, gid: int | None) -> None:
    """Make a folder, and those above it; none that is there is touched."""
    if folder.is_dir():
        return
    _make(folder.parent, gid)
    folder.mkdir(exist_ok=True)  # another process may be quicker
    if gid is not None:
        os.chown(folder, -1, gid)
        folder.chmod(stat.S_ISGID | 0o777 & ~GROUP)


def _is_of(folder: Path, gid: int) -> bool:
    found = folder.stat()
    open_to_it = stat.S_ISGID | stat.S_IRGRP | stat.S_IXGRP
    return found.st_gid == gid and found.st_mode & open_to_it == open_to_it


def _find(group: str) -> int:
    """The id of a group that we are in."""
    mine = {*os.getgroups(), os.getegid()}
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        raise UserError(f"there is no group {group!r}", "see your groups with: id -Gn") from None
    if gid not in mine and os.geteuid():
        raise UserError(f"you are not in the group {group}", "see your groups with: id -Gn")
    return gid
