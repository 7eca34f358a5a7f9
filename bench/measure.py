"""Measure a command from outside: CPU of its process tree, wall time, memory.

    python -m bench.measure RESULT.json [--core N] -- COMMAND …

The measuring process is a child subreaper: it also waits for processes whose parent has ended, such
as a forkserver or a daemon, so `RUSAGE_CHILDREN` covers the whole tree. Processes that are never
waited for (SIGCHLD ignored) are covered by polling /proc; the larger of the two figures counts. The
memory of the tree is polled: resident pages of all processes, shared pages counted once per
process. The memory of the largest process comes from the kernel.
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
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_SECONDS = 0.05  # one poll of a hundred processes takes 2 ms
ORPHAN_GRACE_SECONDS = 10.0  # for processes that outlive the command
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU and wall seconds, peak bytes of the tree and of its largest process, exit code."""

    cpu: float
    wall: float
    tree: int
    process: int
    code: int


class CommandFailed(Exception):
    """A measured command failed; the message has the end of its output."""


def measure(
    command: list[str],
    *,
    core: int | None = None,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    timeout: float = 3600,
) -> Usage:
    """Run a command and measure its cost.

    Args:
        command: The command and its arguments.
        core: The core to which it is bound; None for all cores.
        cwd: Its working directory.
        environment: Variables added to the environment.
        timeout: Seconds after which `subprocess.TimeoutExpired` is raised.

    Raises:
        CommandFailed: The command ended with an exit code other than 0.
    """
    with tempfile.TemporaryDirectory() as name:
        result, output = Path(name) / "usage.json", Path(name) / "output"
        affinity = [] if core is None else ["--core", str(core)]
        measuring = [sys.executable, "-m", "bench.measure", str(result), *affinity, "--", *command]
        with output.open("wb") as log:
            subprocess.run(
                measuring,
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            )
        end = output.read_text(errors="replace").strip()[-2000:]
        if not result.exists():
            raise CommandFailed(end)
        usage = Usage(**json.loads(result.read_text()))
    if usage.code:
        raise CommandFailed(f"{' '.join(command[:6])} ended with code {usage.code}: {end}")
    return usage


def run_measured(command: list[str]) -> Usage:
    """Run a command as a child of this process; call it at most once per process."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    cpu_by_pid: dict[int, float] = {}
    tree = 0
    started = time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None:
        tree = max(tree, _poll(cpu_by_pid))
        time.sleep(POLL_SECONDS)
    wall = time.monotonic() - started
    _reap()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = max(usage.ru_utime + usage.ru_stime, sum(cpu_by_pid.values()))
    largest = usage.ru_maxrss * 1024
    return Usage(cpu, wall, max(tree, largest), largest, process.returncode)


def _reap() -> None:
    """Wait for processes that outlived the command; kill them after the grace period."""
    deadline = time.monotonic() + ORPHAN_GRACE_SECONDS
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            for pid in _descendants(os.getpid()):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _poll(cpu_by_pid: dict[int, float]) -> int:
    """Record the CPU seconds of every process of the tree; return their resident bytes."""
    total = 0
    for pid, fields in _descendants(os.getpid()).items():
        cpu_by_pid[pid] = (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
        total += int(fields[21]) * PAGE_BYTES
    return total


def _descendants(root: int) -> dict[int, list[str]]:
    """All descendants of a process, with the fields of /proc/PID/stat after the process name."""
    stats: dict[int, list[str]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stats[int(name)] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended
    descendants: dict[int, list[str]] = {}
    generation = {root}
    while generation:
        generation = {pid for pid, fields in stats.items() if int(fields[1]) in generation}
        descendants |= {pid: stats[pid] for pid in generation}
    return descendants


def main() -> None:
    """Measure the command that follows `--` on the command line."""
    separator = sys.argv.index("--")
    result, *options = sys.argv[1:separator]
    if options:
        os.sched_setaffinity(0, {int(options[1])})
    usage = run_measured(sys.argv[separator + 1 :])
    Path(result).write_text(json.dumps(asdict(usage)))


if __name__ == "__main__":
    main()
