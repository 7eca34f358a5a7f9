"""What a command costs: CPU of its whole process tree, wall, memory, watched from outside.

    python -m bench.measure RESULT.json [--core N] -- COMMAND …

The process that runs this is the reaper of all that the command leaves behind: a forkserver or a
daemon whose parent has ended is waited for here, too, so the kernel's account (`RUSAGE_CHILDREN`)
has all of it. Should somebody let the kernel reap its children (SIGCHLD ignored), what was seen of
them in /proc counts instead, whichever is more. Memory is polled: resident pages of all processes
together, in which shared pages count more than once; the largest process is the kernel's figure.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
POLL = 0.05  # a look at a hundred processes takes 2 ms
GRACE = 10.0  # seconds that what is left behind may still run
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU and wall seconds; peak bytes of the whole tree, and of its largest process; exit code."""

    cpu: float
    wall: float
    tree: int
    process: int
    code: int


class Failed(Exception):
    """A measured command that did not end well, with the end of what it said."""


def measure(
    words: list[str],
    *,
    core: int | None = None,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    timeout: float = 3600,
) -> Usage:
    """Run a command and say what it cost.

    Args:
        words: The command.
        core: The one core that it may use; None for all.
        cwd: Where it runs.
        environment: What is added to the environment.
        timeout: Seconds after which it is given up.

    Raises:
        Failed: It ended with another code than 0.
    """
    with tempfile.TemporaryDirectory() as name:
        result, said = Path(name) / "usage.json", Path(name) / "said"
        bound = [] if core is None else ["--core", str(core)]
        own = [sys.executable, "-m", "bench.measure", str(result), *bound, "--", *words]
        with said.open("wb") as log:
            subprocess.run(
                own,
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            )
        end = said.read_text(errors="replace").strip()[-2000:]
        if not result.exists():
            raise Failed(end)
        usage = Usage(**json.loads(result.read_text()))
    if usage.code:
        raise Failed(f"{' '.join(words[:6])} ended with code {usage.code}: {end}")
    return usage


def watch(words: list[str]) -> Usage:
    """Run a command in this process's care; may be called once in a process."""
    if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    seen: dict[int, float] = {}
    tree = 0
    started = time.monotonic()
    process = subprocess.Popen(words)
    while process.poll() is None:
        tree = max(tree, _look(seen))
        time.sleep(POLL)
    wall = time.monotonic() - started
    _reap()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = max(used.ru_utime + used.ru_stime, sum(seen.values()))
    largest = used.ru_maxrss * 1024
    return Usage(cpu, wall, max(tree, largest), largest, process.returncode)


def _reap() -> None:
    """Wait for what the command has left behind; end what does not end by itself."""
    deadline = time.monotonic() + GRACE
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            for pid in _descendants(os.getpid()):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL)


def _look(seen: dict[int, float]) -> int:
    """Note the CPU of every process of the tree; returns their resident bytes."""
    total = 0
    for pid, fields in _descendants(os.getpid()).items():
        seen[pid] = (int(fields[11]) + int(fields[12])) / TICK
        total += int(fields[21]) * PAGE
    return total


def _descendants(root: int) -> dict[int, list[str]]:
    """The processes below one, with the fields of /proc/PID/stat that follow the name."""
    stats: dict[int, list[str]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stats[int(name)] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
    found: dict[int, list[str]] = {}
    below = {root}
    while below:
        below = {pid for pid, fields in stats.items() if int(fields[1]) in below}
        found |= {pid: stats[pid] for pid in below}
    return found


def main() -> None:
    """Measure the command on the command line."""
    cut = sys.argv.index("--")
    result, *options = sys.argv[1:cut]
    if options:
        os.sched_setaffinity(0, {int(options[1])})
    usage = watch(sys.argv[cut + 1 :])
    Path(result).write_text(json.dumps(asdict(usage)))


if __name__ == "__main__":
    main()
