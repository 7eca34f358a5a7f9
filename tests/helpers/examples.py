"""How many examples a property test tries: a few in `make test`, all of them in `make test-all`."""

from __future__ import annotations

import os

from hypothesis import settings

THOROUGH = "GRISTMILL_THOROUGH"
QUICK_SHARE = 8
MIN_EXAMPLES = 25
thorough = bool(os.environ.get(THOROUGH))


def examples(count: int) -> int:
    """`max_examples` of a test that tries `count` in `make test-all`."""
    return count if thorough else min(count, max(MIN_EXAMPLES, count // QUICK_SHARE))


def register_profile() -> None:
    """Load the profile of tests that name no number."""
    settings.register_profile("gristmill", max_examples=examples(100), deadline=None)
    settings.load_profile("gristmill")
