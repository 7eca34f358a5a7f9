"""Reports are built without drawing their figures, which takes most of the time."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def figures_are_blank(blank_figures: None) -> None:
    """In every test here that lacks the marker `figures`."""
