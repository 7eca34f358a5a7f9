"""Inject random faults into the jobs of a run on the test cluster.

There are five kinds of faults: SIGKILL to a process of a task (as the kernel's OOM killer sends
it), `scontrol requeue`, `scancel --signal=USR2` (as before a time limit), a job in a higher
partition that preempts the task, and its node being DOWN for half a minute. A seed decides the
step, the kind and the time of each fault. If the step has already finished, the next step gets the
fault. The time is counted in seconds during which the step is running, so that no fault is lost
while jobs wait in the queue. When jobs have FAILED, the run is submitted again; there is no other
intervention.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster.allocation import LABEL_PATTERN
from pipeline.core.task_log import read_status
from tests.cluster.fixture import Cluster


@dataclass(frozen=True)
class FaultProfile:
    """Steps in their order, and kinds of faults, each with its share of 20 faults."""

    steps: dict[str, int]
    kinds: dict[str, int]


DATA_FAULTS = FaultProfile(
    {
        "download.model": 0,
        "download.corpus": 4,
        "decompress.chunks": 6,
        "tokenize.shards": 8,
        "tokenize.seal": 2,
    },
    {"SIGKILL": 8, "requeue": 5, "USR2": 5, "node down": 2},
)
TRAINING_FAULTS = FaultProfile({"train.train": 20}, {"SIGKILL": 8, "USR2": 6, "preemption": 6})
FAILED_STATES = {"FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL"}
ENDED_STATES = FAILED_STATES | {"COMPLETED", "CANCELLED"}
NODE_DOWN_SECONDS = 30.0
POLL_SECONDS = 0.2
SUBMIT_TIMEOUT_SECONDS = 300.0
MAX_IDLE_SUBMITS = 3


class NoProgress(Exception):
    """The run does not end, although it is submitted again."""


@dataclass(frozen=True)
class Fault:
    """A fault of one kind in a step, some seconds of running after the previous fault."""

    step: str
    after_seconds: float
    kind: str


def add_options(parser: argparse.ArgumentParser, every: float) -> None:
    """Add the options that all fault benchmarks share; `every`: the default of --every."""
    parser.add_argument("--kills", type=int, default=20, help="number of faults (default 20)")
    parser.add_argument(
        "--every",
        type=float,
        default=every,
        help=f"mean running seconds between faults (default {every:g})",
    )
    parser.add_argument("--seed", type=int, default=0)


def sample_faults(profile: FaultProfile, count: int, every: float, seed: int) -> list[Fault]:
    """Sample faults in the order of their steps, `every` running seconds apart on average."""
    rng = random.Random(seed)
    steps = sorted(_sample_names(profile.steps, count, rng), key=list(profile.steps).index)
    kinds = _sample_names(profile.kinds, count, rng)
    return [
        Fault(step, rng.uniform(0, 2 * every), kind)
        for step, kind in zip(steps, kinds, strict=True)
    ]


def _sample_names(shares: dict[str, int], count: int, rng: random.Random) -> list[str]:
    """`count` names in random order, each about as often as its share says."""
    pool = [name for name, share in shares.items() for _ in range(share)]
    return rng.sample(pool * -(-count // len(pool)), count)


class FaultInjector:
    """Submits a run and injects faults into its jobs until it is done.

    Args:
        cluster: The test cluster.
        profile: The steps that get faults.
        logs: The folder of the run's logs and status files.
        submit: Starts a submission.
        faults: The faults, in order.
        seed: Seed for the choice of the job that gets a fault.
        log: Prints progress.
        progress: A value that changes as the step makes progress. If given, time counts as running
            only after the value has changed since the last start or fault.
    """

    def __init__(
        self,
        cluster: Cluster,
        profile: FaultProfile,
        logs: Path,
        submit: Callable[[], subprocess.Popen[str]],
        faults: list[Fault],
        seed: int,
        log: Callable[[str], None],
        progress: Callable[[], object] | None = None,
    ) -> None:
        self.cluster, self.profile, self.logs = cluster, profile, logs
        self._start_submit, self._log, self._progress = submit, log, progress
        self._mark_progress()
        self.pending = list(faults)
        self.injected: Counter[tuple[str, str]] = Counter()  # by kind and step
        self.submits = 0
        self._rng = random.Random(f"{seed} whom")
        self._submission: subprocess.Popen[str] | None = None
        self._handled_failures: set[str] = set()
        self._idle_submits = 0
        self._earlier_jobs = {job["id"] for job in cluster.squeue("--states=all")}
        self._running_seconds, self._last_poll = 0.0, time.monotonic()
        self._down_until: dict[str, float] = {}

    def run(self, is_done: Callable[[], bool], timeout: float) -> float:
        """Submit and inject until the run is done; returns the wall seconds.

        Raises:
            NoProgress: The run cannot finish, or not before the timeout.
        """
        started = time.monotonic()
        try:
            self._submit(set())
            while not is_done():
                if time.monotonic() - started > timeout:
                    raise NoProgress(f"not done after {timeout:.0f} s: {self.cluster.squeue()}")
                self._poll()
                time.sleep(POLL_SECONDS)
            return time.monotonic() - started
        finally:
            self._restore_cluster()

    def count_by_kind(self) -> dict[str, int]:
        """The number of injected faults of each kind."""
        counts = dict.fromkeys(self.profile.kinds, 0)
        for (kind, _), count in self.injected.items():
            counts[kind] += count
        return counts

    def restarts(self) -> int:
        """How often SLURM restarted jobs of this run."""
        return sum(int(job["restartcnt"] or 0) for job in self._jobs())

    def _jobs(self) -> list[dict[str, str]]:
        jobs = self.cluster.squeue("--states=all")
        own = [job for job in jobs if job["id"] not in self._earlier_jobs]
        return [job for job in own if _step(job) in self.profile.steps]

    def _targets(self, jobs: list[dict[str, str]]) -> list[dict[str, str]]:
        """The running jobs of the step of the next fault, or of later steps."""
        if not self.pending:
            return []
        order = list(self.profile.steps)
        steps = order[order.index(self.pending[0].step) :]
        return [job for job in jobs if job["state"] == "RUNNING" and _step(job) in steps]

    def _poll(self) -> None:
        """Look at the queue once, submit again if needed, and inject a fault that is due."""
        now = time.monotonic()
        self._resume_nodes(now)
        jobs = self._jobs()
        self._resubmit_if_needed(jobs)
        targets = self._targets(jobs)
        self._running_seconds += (now - self._last_poll) * (bool(targets) and self._progressed())
        self._last_poll = now
        if not targets:
            self._mark_progress()
        if targets and self._running_seconds >= self.pending[0].after_seconds:
            self._inject(self.pending[0].kind, targets)

    def _progressed(self) -> bool:
        """Whether there was progress since the last mark; True without a progress function."""
        return self._progress is None or self._progress() != self._progress_mark

    def _mark_progress(self) -> None:
        self._progress_mark = self._progress() if self._progress else None

    def _submit(self, failures: set[str]) -> None:
        self._submission = self._start_submit()
        self._handled_failures |= failures
        self.submits += 1

    def _resubmit_if_needed(self, jobs: list[dict[str, str]]) -> None:
        """Submit again when a job has failed, or when no job is left."""
        if self._submission is not None:
            if self._submission.poll() is None:
                return
            if self._submission.returncode:
                raise NoProgress(f"submit ended with code {self._submission.returncode}")
            self._submission = None
            return  # the next poll sees the jobs it submitted
        failed = {job["id"] for job in jobs if job["state"] in FAILED_STATES}
        failed -= self._handled_failures
        alive = [job for job in jobs if job["state"] not in ENDED_STATES]
        if any(job["state"] == "RUNNING" for job in alive):
            self._idle_submits = 0
        if not alive and not failed:
            self._idle_submits += 1
            if self._idle_submits > MAX_IDLE_SUBMITS:
                raise NoProgress("no jobs are queued, and submitting again queues none")
        if failed or not alive:
            self._log(f"submit again: {' '.join(sorted(failed)) or 'the queue is empty'}")
            self._submit(failed)

    def _inject(self, kind: str, targets: list[dict[str, str]]) -> None:
        """Inject a fault into one of the jobs; if the job has just ended, the next poll retries."""
        target = self._rng.choice(sorted(targets, key=lambda job: job["id"]))
        step, job = _step(target), target["id"]
        try:
            done = {
                "SIGKILL": self._kill,
                "requeue": lambda job: self._run("scontrol", "requeue", job),
                "USR2": lambda job: self._run("scancel", "--signal=USR2", job),
                "preemption": self._preempt,
                "node down": self._take_node_down,
            }[kind](job)
        except (AssertionError, ProcessLookupError, FileNotFoundError):
            return
        if done:
            self._log(f"{kind}: {step} {job}, after {self._running_seconds:.1f} s of running")
            self.injected[kind, step] += 1
            self.pending.pop(0)
            self._running_seconds = 0.0
            self._mark_progress()

    def _run(self, *command: str) -> bool:
        self.cluster.run(*command)
        return True

    def _kill(self, job: str) -> bool:
        labels = self._labels(job)
        if not labels:
            return False
        pid = self._rng.choice(labels)["pid"]
        # Process ids are reused: check that this one still belongs to the test cluster.
        mark = f"SLURM_CONF={self.cluster.conf}".encode()
        if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return False
        os.kill(int(pid), signal.SIGKILL)
        return True

    def _preempt(self, job: str) -> bool:
        labels = self._labels(job)
        if not labels:
            return False
        options = ("--partition=high", f"--nodelist={labels[0]['host']}", "--exclusive")
        return self._run("sbatch", *options, "--output=/dev/null", "--wrap=sleep 1")

    def _take_node_down(self, job: str) -> bool:
        labels = self._labels(job)
        if not labels or self._down_until:
            return False
        node = labels[0]["host"]
        for state in ("DOWN", "DRAIN"):  # its slurmd still runs, so DOWN alone would not last
            self._set_node_state(node, state)
        self._down_until[node] = time.monotonic() + NODE_DOWN_SECONDS
        return True

    def _resume_nodes(self, now: float) -> None:
        for node in [node for node, until in self._down_until.items() if now > until]:
            self._set_node_state(node, "RESUME")
            del self._down_until[node]

    def _set_node_state(self, node: str, state: str) -> None:
        options = (f"NodeName={node}", f"State={state}", "Reason=faults")
        self.cluster.run("scontrol", "update", *options)

    def _labels(self, job: str) -> list[dict[str, str]]:
        """Host and process id of each task of a job that has reported that it is running."""
        labels = []
        for path in [*self.logs.glob("*-*.json"), *self.logs.glob("*-*.rank*")]:
            status = read_status(path)
            if status.get("job") == job and status.get("state") == "running":
                match = LABEL_PATTERN.fullmatch(status["label"])
                labels += [match.groupdict()] if match else []
        return sorted(labels, key=lambda label: label["pid"])

    def _restore_cluster(self) -> None:
        """Resume nodes, and wait for a submission that still runs."""
        self._resume_nodes(float("inf"))
        if self._submission is not None:
            self._submission.wait(SUBMIT_TIMEOUT_SECONDS)


def _step(job: dict[str, str]) -> str:
    return job["name"].rpartition("-")[0]
