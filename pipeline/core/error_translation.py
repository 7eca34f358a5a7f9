"""Translate exceptions about the machine into one line for the user: disk, permissions, packages.

Libraries report these in many ways: an `OSError` with or without its number, or an error of their
own with the number in its text or in its cause.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from pipeline.core.disk import existing_folder, free_space, size
from pipeline.core.errors import Failure, InputError, UserError

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ERROR_PATTERNS = {
    # Rust's, and numpy's that does not give the number
    r"\(os error 28\)|No space left on device|\d+ requested and \d+ written": errno.ENOSPC,
    r"\(os error 122\)|Disk quota exceeded": errno.EDQUOT,
    r"\(os error 27\)": errno.EFBIG,
}
RESUME_HINT = "then run the same command again: it resumes where it stopped"
OUR_PACKAGES = ("pipeline", "jobs")


def translate(error: Exception, folder: Path) -> Failure | None:
    """Translate an exception into a user-facing failure; None if it is not about the machine.

    Args:
        error: What was raised.
        folder: The folder to name, if the error names none.
    """
    if isinstance(error, ImportError):
        return _missing(error)
    if full := disk_full_error(error, folder):
        return full
    if not isinstance(error, OSError):
        return None
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return _denied(path, reason)
    if error.errno == errno.EROFS:
        return UserError(
            f"{shown(path)} is on a file system that is mounted read-only",
            f"Have it mounted for writing, or choose another folder with RUNS=…, {RESUME_HINT}",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{reason} ({path})", "Choose another folder with RUNS=…")
    return InputError(f"{reason} ({path})", "Run the same command again: finished work stays")


def disk_full_error(error: BaseException, folder: Path) -> UserError | None:
    """The failure for a full disk, a quota or a file size limit; None for any other error.

    Args:
        error: What was raised; its causes are searched, too.
        folder: The folder to name, if the error names none. Call this before cleaning up there.
    """
    for cause in _chain(error):
        number = _number(cause)
        if number in DISK_FULL_ERRNOS:
            name = getattr(cause, "filename", None)
            return _full(number, Path(name).parent if isinstance(name, str) else folder)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next(
        (number for pattern, number in ERROR_PATTERNS.items() if re.search(pattern, str(error))),
        None,
    )


def _full(number: int | None, folder: Path) -> UserError:
    visible, reason = shown(folder), os.strerror(number or errno.ENOSPC)
    if number == errno.EDQUOT:
        what = f"your quota for {visible} is used up ({reason})"
        return UserError(what, f"Make room, or choose another folder with RUNS=…, {RESUME_HINT}")
    if number == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        limit_text = f" of {size(limit)}" if limit != resource.RLIM_INFINITY else ""
        what = f"a file in {visible} reached the limit{limit_text} on the size of files ({reason})"
        return UserError(what, f"Raise it with ulimit -f unlimited, {RESUME_HINT}")
    try:
        free = free_space(folder)
    except OSError:
        free = None
    left = f"{size(free.bytes)} are" if free and free.bytes is not None else ""
    if free and free.files == 0:
        free_text = f", though {left}" if left else ""
        what = f"{visible} can hold no more files: no inodes are left{free_text}"
        return UserError(
            what, f"Remove files there, or choose another folder with RUNS=…, {RESUME_HINT}"
        )
    what = f"{visible} is full ({reason}" + (f", {left} left)" if left else ")")
    return UserError(what, f"Make room, or choose another folder with RUNS=…, {RESUME_HINT}")


def _denied(path: Path, reason: str) -> UserError:
    """Which permission is missing, and on which path."""
    for folder in reversed(path.parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return UserError(
                f"you have no permission to enter {folder} ({_owner(folder)})",
                f"Ask its owner for chmod +rx, or choose another path, {RESUME_HINT}",
            )
    if os.path.exists(path) and not os.access(path, os.R_OK):
        return UserError(
            f"you have no permission to read {path} ({_owner(path)})",
            f"Ask its owner for chmod +r, or choose another one, {RESUME_HINT}",
        )
    folder = shown(path)
    return UserError(
        f"you have no permission to write to {folder} ({_owner(folder)}): {reason}",
        f"Choose another folder with RUNS=…, or another NAME=, {RESUME_HINT}",
    )


def shown(path: Path) -> Path:
    """The nearest existing folder that the user knows, not the temporary one of a commit."""
    visible = [part for part in (path, *path.parents) if not part.name.startswith(".tmp-")]
    return existing_folder(visible[0])


def _owner(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "its owner is not known"
    try:
        owner = path.owner()
    except (KeyError, OSError):
        owner = f"user {status.st_uid}"
    return f"it belongs to {owner}, mode {status.st_mode & 0o7777:04o}"


def _missing(error: ImportError) -> UserError | None:
    """A package that is missing or does not load. A failing import of our own is a bug."""
    name = (error.name or "").partition(".")[0]
    if name in OUR_PACKAGES:
        return None
    gone = isinstance(error, ModuleNotFoundError | PackageNotFoundError) and name
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    what = f"the Python package {name} is not installed" if gone else f"a package fails: {reason}"
    return UserError(
        f"{what} (in {sys.prefix})",
        f"Install the packages with: {sys.executable} -m pip install -r env/requirements.txt",
    )
