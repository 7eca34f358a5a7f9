"""Git LFS pointers are recognized; text that mentions one is text."""

from __future__ import annotations

import pytest

from pipeline.sources.lfs_pointer import is_lfs_pointer

LINE = b"version https://git-lfs.github.com/spec/v1\n"


@pytest.mark.parametrize(
    ("head", "pointer"),
    [
        (LINE + b"oid sha256:00\nsize 9\n", True),
        (LINE.replace(b"v1\n", b"v2\next-0-x sha256:00\n"), True),
        (b"", False),
        (b"\n" + LINE, False),
        (b'{"text": "version https://git-lfs.github.com/spec/v1"}', False),
        (LINE[:20], False),
    ],
)
def test_git_lfs_pointers_are_recognized(head: bytes, pointer: bool) -> None:
    assert is_lfs_pointer(head) == pointer
