"""A run in the test cluster's queue, and the results of its training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from jobs.cluster.allocation import LABEL_PATTERN, pid_of
from jobs.cluster.profile import find_profile
from jobs.monitoring import progress_file
from jobs.planning.plan import Plan, read_plan
from jobs.running.submit import queue_plan
from pipeline.config import Config
from pipeline.core.receipt import load
from pipeline.core.task_log import read_status
from pipeline.dag import find
from pipeline.saved_config import save_config
from tests.cluster.fixture import Cluster
from tests.helpers.runs import SMALL

HERE = Path(__file__).parents[2]
PATIENCE = 180.0


@dataclass
class Queued:
    """A run whose jobs are queued; `jobs` has the ids of the newest submission by step."""

    cluster: Cluster
    config: Config
    root: Path
    profile: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    tree: Path = HERE

    def command(self, *words: str, code: int = 0) -> str:
        """The output of `python -m jobs …` about this run."""
        command, *rest = words
        done = subprocess.run(
            [sys.executable, "-m", "jobs", command, f"--root={self.root}", *rest],
            cwd=self.tree,
            env=os.environ | {"GRISTMILL_PROFILE": str(self.site())},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def submit(self) -> dict[str, str]:
        """Submit as `make pipeline` does; returns job ids by step."""
        self.save_config()
        self.jobs |= queue_plan(self.config, self.root, find_profile(str(self.site()))).jobs
        return self.jobs

    def save_config(self) -> None:
        """Write the run's configuration."""
        save_config(self.config, self.root)

    def plan(self) -> Plan:
        """The newest plan."""
        folder = self.root / "runs" / self.config.name / "plans"
        return read_plan(max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns))

    def words(self) -> list[str]:
        """The options that select this run."""
        dataset = Path(unquote(urlsplit(self.config.dataset.urls[0]).path)).with_name("small.yaml")
        return [f"--dataset={dataset}", f"--model={self.config.model.path}", *SMALL]

    def site(self) -> Path:
        """The profile's file."""
        path = self.root.parent / "site.yaml"
        path.write_text(yaml.safe_dump({"extends": "gristmill-test", **self.profile}))
        return path

    def completes(self) -> None:
        """Wait until every job has completed."""
        try:
            self.cluster.wait(self.jobs.values(), "COMPLETED", timeout=PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def trains(self, step: int) -> None:
        """Wait until training has reached a step."""
        end = time.monotonic() + PATIENCE
        while not any(taken >= step for taken in steps(self.config, self.root)):
            assert time.monotonic() < end, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """All logs, for the message of a failing test."""
        folder = self.root / "runs" / self.config.name / "logs"
        return "\n".join(f"== {p}\n{p.read_text()}" for p in sorted(folder.glob("*/*.out")))

    def starts(self, step: str, element: int) -> None:
        """Wait until a task is running."""
        end = time.monotonic() + PATIENCE
        while self._progress(step, element).get("state") != "running":
            assert time.monotonic() < end, self.logs()
            time.sleep(0.02)

    def ends(self, step: str, element: int) -> None:
        """Wait until an element of an array has left the queue."""
        end = time.monotonic() + PATIENCE
        while any(job["id"] == f"{self.jobs[step]}_{element}" for job in self.cluster.squeue()):
            assert time.monotonic() < end, self.logs()
            time.sleep(0.2)

    def restarts(self, step: str) -> int:
        """How often SLURM has restarted a task."""
        return int(self._progress(step).get("restarts", 0))

    def attempts(self, step: str, element: int = 0) -> list[dict[str, Any]]:
        """The recorded attempts at a task, the current one last."""
        folder = progress_file.logs_folder(self.root, self.config.name)
        before = folder / f"{step}-{element}.history.jsonl"
        rows = before.read_text().splitlines() if before.exists() else []
        return [*map(json.loads, rows), self._progress(step, element)]

    def times(self, step: str) -> dict[str, Any]:
        """The times of a step in the report."""
        path = self.root / "runs" / self.config.name / "report" / "report.json"
        found: dict[str, Any] = json.loads(path.read_text())["timeline"]["steps"][step]
        return found

    def restarted(self, step: str) -> None:
        """Wait until a task was restarted."""
        end = time.monotonic() + PATIENCE
        while not self.restarts(step):
            assert time.monotonic() < end, self.logs()
            time.sleep(0.2)

    def requeued(self, job: str) -> None:
        """Wait until a job is pending again."""
        end = time.monotonic() + PATIENCE
        while self.cluster.states([job]) != {job: "PENDING"}:
            assert time.monotonic() < end, self.logs()
            time.sleep(0.2)

    def node(self, step: str) -> str:
        """The node that a task runs on."""
        return LABEL_PATTERN.fullmatch(self._progress(step)["label"])["host"]

    def _progress(self, step: str, element: int = 0, rank: int = 0) -> dict[str, Any]:
        folder = progress_file.logs_folder(self.root, self.config.name)
        return read_status(folder / f"{step}-{element}.{f'rank{rank}' if rank else 'json'}")

    def process(self, step: str, rank: int = 0) -> int:
        """The process id of element 0 of a running task."""
        return pid_of(self._progress(step, rank=rank)["label"])


def steps(config: Config, root: Path) -> list[int]:
    """The logged training steps, in order."""
    path = find(config, root, "train.train").work.folder / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except OSError:
        return []
    return [row["step"] for row in rows if row["kind"] == "step"]


def repeated(config: Config, root: Path) -> int:
    """How many training steps were repeated."""
    counts = Counter(steps(config, root))
    return sum(count - 1 for count in counts.values())


def adapter(config: Config, root: Path) -> str:
    """Content digest of the trained adapter."""
    receipt = load(find(config, root, "train.train").work.folder / "best")
    assert receipt is not None
    return receipt.digest


SMALLER = ("--mem=2000M", "--cpus-per-task=1", "--gpus-per-node=0")


def sbatch(
    run: Queued,
    stage: str,
    *options: str,
    words: list[str],
    cwd: Path = HERE,
    script: Path | None = None,
) -> str:
    """Submit a stage of the run by hand; returns the job id."""
    data, model, *_ = (word.partition("=")[2] for word in run.words())
    given = {"MODEL": model, "NAME": run.config.name, "RUNS": str(run.root)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (given | {"PYTHON": sys.executable}).items():
            patch.setenv(name, value)
        more = (*SMALLER, "--output=%j.out", f"--chdir={run.root.parent}")
        script = script or HERE / "slurm" / f"{stage}.sbatch"
        told = run.cluster.run(
            "sbatch", "--parsable", *more, *options, script, data, *words, cwd=cwd
        )
    return told


def output(run: Queued, job: str) -> str:
    return (run.root.parent / f"{job}.out").read_text()
