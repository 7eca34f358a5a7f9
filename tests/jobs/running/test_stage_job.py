"""What a job does when SLURM tells it to end; `test_requeue.py` tries it on the cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[3]


def test_a_signal_during_exit_is_ignored() -> None:
    """At exit Python restores the default signal handlers."""
    program = """
import os, signal
from jobs.running.stage_job import install_stop

class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGUSR2):
        kill(me, number)

late = Late()
{install_stop}
"""
    ends = {}
    for line in ("signal.signal(signal.SIGUSR2, print)", "install_stop(None)"):
        words = [sys.executable, "-c", program.format(install_stop=line)]
        ends[line] = subprocess.run(words, cwd=HERE, timeout=60).returncode
    assert list(ends.values()) == [-signal.SIGUSR2, 0]
