"""Recognize a Git LFS pointer: the small text file that Git holds in place of a large file.

A clone without Git LFS, or a copy of one, has pointers where the weights or the corpus should be.
"""

from __future__ import annotations

LFS_HINT = "Type git lfs pull in that folder, or copy the file itself"
_FIRST_LINE = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file is a Git LFS pointer, by its first bytes (at least 64, or all of them)."""
    return head.startswith(_FIRST_LINE)
