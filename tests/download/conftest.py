"""A small model that a test may change, and where it is prepared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def llama(models: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny model in Hugging Face form."""
    return shutil.copytree(models("llama"), tmp_path / "llama")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "out"
