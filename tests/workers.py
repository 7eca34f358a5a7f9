"""Several workers (`-n 3`): one has all tests that need the cluster, the others share the rest.

There is one cluster, so its tests go one after another. Most of their time they wait, and the
others compute. xdist has groups for that, but loses them under pytest 9.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

FIRST = ("slurm", "model", "slow")
WHOLE = re.compile(r"^pytestmark = .*\bmark\.slurm\b", re.MULTILINE)
SINGLE = re.compile(r"^@pytest\.mark\.slurm\n(?:@.*\n)*def (\w+)", re.MULTILINE)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the slowest tests first, so that no worker is left with one at the end.

    Tests that use a model or a finished run are slow, because the first one imports transformers,
    or makes the run.
    """
    for item in items:
        if {"model", "models", "finished"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in FIRST])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a skipped test fail in CI, which has all that tests need."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the cluster's jobs go first, because the tests that wait for them take longest."""
    if hasattr(item.config, "workerinput") and not item.get_closest_marker("slurm"):
        os.setpriority(os.PRIO_PROCESS, 0, 5)


@pytest.hookimpl(optionalhook=True)  # there may be no xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """A scheduler that distributes tests one by one, and those of the cluster to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if needs_cluster(nodeid) else nodeid

    config.option.loadscopereorder = False
    return Scheduler(config, log)


def needs_cluster(nodeid: str) -> bool:
    """Whether a test is marked as slurm; the scheduler sees only node ids."""
    path, _, name = nodeid.partition("::")
    names = _marked(Path(__file__).parents[1] / path)
    return names is None or name.partition("[")[0] in names


@cache
def _marked(path: Path) -> list[str] | None:
    """The functions of a file that are marked; None if all are."""
    text = path.read_text()
    return None if WHOLE.search(text) else SINGLE.findall(text)
