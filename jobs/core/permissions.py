"""Who may read a run: its owner, or also the group that the profile names.

The top-level folders are created here. Everything below them gets its mode from the umask and its
group from the parent folder (setgid), so this holds for files that libraries write, too.
"""

from __future__ import annotations

import grp
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError

SHARED_FOLDERS = ("data", "models", "cache")
OWNER_UMASK, GROUP_UMASK = 0o077, 0o027


def create_run_folders(root: Path, name: str, group: str | None) -> None:
    """Create the folders of a root and of a run, and set the umask for what goes into them.

    Existing folders are not changed. The mode of the run's folder decides the umask.

    Raises:
        UserError: The group does not exist, we are not a member, or an existing folder is not open
            to it.
    """
    gid = None if group is None else _group_id(group)
    os.umask(OWNER_UMASK if gid is None else GROUP_UMASK)
    run = root / "runs" / name
    top_folders = [*(root / folder for folder in SHARED_FOLDERS), run.parent]
    for folder in (*top_folders, run):
        _create(folder, gid)
    closed = [folder for folder in top_folders if gid is not None and not _is_open(folder, gid)]
    if closed:
        names = shlex.join(map(str, closed))
        raise UserError(
            f"{', '.join(map(str, closed))}: not open to the group {group} that the profile names",
            f"chgrp -R {group} {names} && chmod -R g+rX {names} && "
            f"find {names} -type d -exec chmod g+s {{}} +",
        )
    apply_umask(run)


def apply_umask(run: Path) -> None:
    """Set the umask so that new files are as open as the folder of the run."""
    os.umask(~run.stat().st_mode & OWNER_UMASK)


def prepare_parents(run: Path, target: Path) -> Callable[[Path], None]:
    """Create the parents of a folder that will be as open as a run, and set the umask.

    Args:
        run: The run's folder.
        target: The folder that will be created; its missing parents are created here.

    Returns:
        A function that gives an empty folder to the run's group, if the run is open to a group.
    """
    apply_umask(run)
    status = run.stat()
    is_member = not os.geteuid() or status.st_gid in {*os.getgroups(), os.getegid()}
    gid = status.st_gid if is_member and status.st_mode & stat.S_IRGRP else None
    if gid is None:
        os.umask(OWNER_UMASK)  # other users see a run only through its group
    _create(target.parent, gid)

    def share(folder: Path) -> None:
        if gid is not None:
            os.chown(folder, -1, gid)
            folder.chmod(stat.S_ISGID | stat.S_IMODE(folder.stat().st_mode))

    return share


def _create(folder: Path, gid: int | None) -> None:
    """Create a folder and its parents; existing ones are not changed."""
    if folder.is_dir():
        return
    _create(folder.parent, gid)
    folder.mkdir(exist_ok=True)  # another process may create it first
    if gid is not None:
        os.chown(folder, -1, gid)
        folder.chmod(stat.S_ISGID | 0o777 & ~GROUP_UMASK)


def _is_open(folder: Path, gid: int) -> bool:
    """Whether the group owns a folder, may read it, and inherits what is created in it."""
    status = folder.stat()
    wanted = stat.S_ISGID | stat.S_IRGRP | stat.S_IXGRP
    return status.st_gid == gid and status.st_mode & wanted == wanted


def _group_id(group: str) -> int:
    """The id of a group that we belong to."""
    member_of = {*os.getgroups(), os.getegid()}
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        raise UserError(f"there is no group {group!r}", "list your groups with: id -Gn") from None
    if gid not in member_of and os.geteuid():
        raise UserError(f"you are not in the group {group}", "list your groups with: id -Gn")
    return gid
