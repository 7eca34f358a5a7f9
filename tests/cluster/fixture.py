"""The `cluster` fixture: a real SLURM for tests, never a user's cluster.

Its environment is that of the test process, so that the code under test finds the same cluster.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

NAME = "gristmill-test"
HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("GRISTMILL_CLUSTER", "/var/tmp/gristmill-test"))
NOWHERE = "/nonexistent/slurm.conf"
CLIENTS = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}
ALREADY_DONE = 2021 % 256  # ESLURM_ALREADY_DONE, as scancel exits with it
FIELDS = (
    "ArrayJobID", "ArrayTaskID", "Name", "Partition", "State", "Reason", "Dependency",
    "RestartCnt",
)  # fmt: skip


class Cluster:
    """What tests do with the cluster besides running the pipeline."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "etc" / "slurm.conf"

    def run(self, *command: str | Path, timeout: float = 60, cwd: Path | None = None) -> str:
        """The output of a command without the last newline; the command must succeed."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=os.environ | {"SLURM_CONF": str(self.conf)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip("\n")

    def submit(self, script: str, *options: str, cwd: Path) -> str:
        """Submit a bash script; returns the job id. Its output goes to `<id>.out` in `cwd`."""
        path = cwd / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = ["--output=%A.out", "--open-mode=append"]
        return self.run("sbatch", "--parsable", *output, *options, path, cwd=cwd)

    def squeue(self, *options: str) -> list[dict[str, str]]:
        """All jobs that have not ended, one entry for each array element; `id` is as in sacct.

        With "--states=all" also those that ended less than an hour (MinJobAge) ago.
        """
        wanted = ",".join(f"{field}:\t" for field in FIELDS)
        listed = self.run("squeue", "--array", "--noheader", f"--Format={wanted}", *options)
        jobs = []
        for line in listed.splitlines():
            words = (word.strip() for word in line.split("\t"))
            job = dict(zip((field.lower() for field in FIELDS), words, strict=False))
            element = job["arraytaskid"]
            job["id"] = job["arrayjobid"] + ("" if element == "N/A" else f"_{element}")
            jobs.append(job)
        return jobs

    def states(self, jobs: Iterable[str]) -> dict[str, str]:
        """The state of each job or array element. The controller knows it before sacct does."""
        known = self.squeue("--states=all", f"--jobs={','.join(jobs)}")
        return {job["id"]: job["state"] for job in known}

    def wait(
        self, jobs: str | Iterable[str], states: str | Iterable[str], timeout: float = 120
    ) -> dict[str, str]:
        """Wait until every job (with all elements of an array) is in one of the states."""
        jobs = [jobs] if isinstance(jobs, str) else list(jobs)
        states = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout
        while True:
            now = self.states(jobs)
            told = {part for job in now for part in (job, job.partition("_")[0])}
            if set(jobs) <= told and set(now.values()) <= states:
                return now
            over = {job: state for job, state in now.items() if state in OVER - states}
            if over or time.monotonic() > end:
                raise AssertionError(f"wanted {states}, but {over or now}\n{self.squeue()}")
            time.sleep(0.3)

    def signal(self, name: str, job: str) -> None:
        """Send a signal to the steps of a job, unless the job is ending already."""
        done = subprocess.run(
            ["scancel", f"--signal={name}", job],
            env=os.environ | {"SLURM_CONF": str(self.conf)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (0, ALREADY_DONE), f"{done.returncode} {done.stderr}"

    def accounted(self, jobs: Iterable[str], timeout: float = 60) -> set[tuple[str, ...]]:
        """State and nodes of ended jobs, once the accounting has them."""
        end = time.monotonic() + timeout
        command = ("sacct", "-nXP", "-o", "state,nodelist", "-j", ",".join(jobs))
        while True:
            rows = {tuple(line.split("|")) for line in self.run(*command).splitlines()}
            if not {state for state, _ in rows} & {"PENDING", "RUNNING"} or time.monotonic() > end:
                return rows
            time.sleep(0.5)

    def cancel_all(self, timeout: float = 60) -> None:
        """Kill all jobs and wait until the nodes are free."""
        end = time.monotonic() + timeout
        while jobs := {job["arrayjobid"] for job in self.squeue()}:
            assert time.monotonic() < end, f"still there: {self.squeue()}"
            # Not checked: a job may end meanwhile. TERM alone would take KillWait seconds.
            for signal in ((), ("--signal=KILL", "--full")):
                subprocess.run(
                    ["scancel", *signal, *jobs],
                    env=os.environ | {"SLURM_CONF": str(self.conf)},
                    capture_output=True,
                    timeout=60,
                )
            time.sleep(0.3)

    def set_line(self, key: str, value: str) -> str:
        """Change one line of slurm.conf and reconfigure; returns the previous value.

        "" stands for SLURM's default: the line becomes a comment, since empty values are errors.
        """
        line = re.compile(rf"^#?{re.escape(key)}=(.*)$", re.MULTILINE)
        text = self.conf.read_text()
        (before,) = line.findall(text)
        new = f"{key}={value}" if value else f"#{key}="
        temporary = self.conf.with_suffix(".tmp")
        temporary.write_text(line.sub(lambda _: new, text))
        temporary.replace(self.conf)
        self.run("scontrol", "reconfigure")
        return before


def up() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HERE / "up.sh"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The test cluster; started if necessary, and then stopped at the end."""
    ran_before = (ROOT / "env.sh").exists()
    done = up()
    if done.returncode == 3 and os.environ.get("CI") != "true":
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    here = Cluster(ROOT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(here.conf))
        config = here.run("scontrol", "show", "config")
        assert re.search(rf"^ClusterName\s*= {NAME}$", config, re.MULTILINE), "not our cluster"
        # Another user may be working on it: do not cancel their jobs.
        jobs = here.squeue()
        assert not jobs, f"{ROOT} is in use: set GRISTMILL_CLUSTER, or make cluster-down\n{jobs}"
        yield here
        here.cancel_all()
    if not ran_before:
        subprocess.run([HERE / "down.sh"], check=True, timeout=60)


@pytest.fixture(scope="session", autouse=True)
def no_scheduler() -> Iterator[None]:
    """Keep tests away from real clusters, and the user's SLURM settings away from tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(CLIENTS)]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", NOWHERE)
        yield


@pytest.fixture(autouse=True)
def only_where_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the test cluster from tests that do not use the `cluster` fixture."""
    if "cluster" not in request.fixturenames:
        monkeypatch.setenv("SLURM_CONF", NOWHERE)
