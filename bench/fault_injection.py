"""What befalls the elements of a run in the test cluster's queue, at moments drawn from a seed.

A strike is one of five: a SIGKILL to a task's process (as the kernel does when memory is short),
`scontrol requeue`, `scancel --signal=USR2` (as a time limit does), a job in a higher partition that
takes the element's node away from it, or that node DOWN for half a minute. Each is meant for a
step; where that is done already, the next one gets it. Its moment is a number of seconds during
which such a step has run, so that nothing is drawn for the time in which all jobs only wait. What
has FAILED is submitted again with the words of the first time, and that is all that is done for the
run.
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

from jobs.cluster.allocation import LABEL
from pipeline.core.task_log import read_status
from tests.cluster.fixture import Cluster


@dataclass(frozen=True)
class Course:
    """What is struck, and how: steps in their order and kinds of strikes, with how often of 20."""

    steps: dict[str, int]
    kinds: dict[str, int]


TO_SEAL = Course(
    {
        "download.model": 0,
        "download.corpus": 4,
        "decompress.chunks": 6,
        "tokenize.shards": 8,
        "tokenize.seal": 2,
    },
    {"SIGKILL": 8, "requeue": 5, "USR2": 5, "node down": 2},
)
TRAINING = Course({"train.train": 20}, {"SIGKILL": 8, "USR2": 6, "preemption": 6})
FAILED = {"FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL"}
ENDED = FAILED | {"COMPLETED", "CANCELLED"}
DOWN = 30.0  # seconds that a node stays away
POLL = 0.2
IDLE_SUBMITS = 3


class Stuck(Exception):
    """The run does not go on, whatever is submitted."""


@dataclass(frozen=True)
class Strike:
    """After so many seconds of work since the last one, this happens to an element of a step."""

    step: str
    after: float
    kind: str


def add_options(parser: argparse.ArgumentParser, every: float) -> None:
    """The options of every storm; `every`: what --every is by default."""
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--every", type=float, default=every, help=f"seconds of work between kills ({every:g})"
    )
    parser.add_argument("--seed", type=int, default=0)


def draw(course: Course, kills: int, every: float, seed: int) -> list[Strike]:
    """So many strikes in the order of their steps, on average so many seconds of work apart."""
    chance = random.Random(seed)
    steps = sorted(_deal(course.steps, kills, chance), key=list(course.steps).index)
    kinds = _deal(course.kinds, kills, chance)
    return [
        Strike(step, chance.uniform(0, 2 * every), kind)
        for step, kind in zip(steps, kinds, strict=True)
    ]


def _deal(shares: dict[str, int], count: int, chance: random.Random) -> list[str]:
    """So many names, each about as often as its share says, in any order."""
    pool = [name for name, share in shares.items() for _ in range(share)]
    return chance.sample(pool * -(-count // len(pool)), count)


class Storm:
    """A run in the queue, from its first submission on.

    Args:
        cluster: The test cluster.
        course: What is struck.
        logs: The folder of the run's journals.
        submit: Starts a submission.
        strikes: What is to happen.
        seed: Decides whom it happens to, as far as timing lets it.
        tell: Says what happens.
        beat: What changes with the work; starting is then no work. Without it, all that runs is.
    """

    def __init__(
        self,
        cluster: Cluster,
        course: Course,
        logs: Path,
        submit: Callable[[], subprocess.Popen[str]],
        strikes: list[Strike],
        seed: int,
        tell: Callable[[str], None],
        beat: Callable[[], object] | None = None,
    ) -> None:
        self.cluster, self.course, self.logs = cluster, course, logs
        self._start, self._tell, self._beat = submit, tell, beat
        self._rest()
        self.left = list(strikes)
        self.struck: Counter[tuple[str, str]] = Counter()  # by kind and step
        self.submits = 0
        self._chance = random.Random(f"{seed} whom")
        self._submission: subprocess.Popen[str] | None = None
        self._answered: set[str] = set()
        self._idle = 0
        self._before = {job["id"] for job in cluster.squeue("--states=all")}
        self._worked, self._last = 0.0, time.monotonic()
        self._down: dict[str, float] = {}

    def blow(self, over: Callable[[], bool], timeout: float) -> float:
        """Go on until it is over; returns the seconds that it took.

        Raises:
            Stuck: It will not be.
        """
        started = time.monotonic()
        try:
            self._submit(set())
            while not over():
                if time.monotonic() - started > timeout:
                    raise Stuck(f"not over after {timeout:.0f} s: {self.cluster.squeue()}")
                self._turn()
                time.sleep(POLL)
            return time.monotonic() - started
        finally:
            self._finish()

    def kinds(self) -> dict[str, int]:
        """How often each kind of strike has fallen."""
        counts = dict.fromkeys(self.course.kinds, 0)
        for (kind, _), count in self.struck.items():
            counts[kind] += count
        return counts

    def restarts(self) -> int:
        """How often SLURM has started elements again."""
        return sum(int(job["restartcnt"] or 0) for job in self._jobs())

    def _jobs(self) -> list[dict[str, str]]:
        jobs = self.cluster.squeue("--states=all")
        ours = [job for job in jobs if job["id"] not in self._before]
        return [job for job in ours if _step(job) in self.course.steps]

    def _victims(self, jobs: list[dict[str, str]]) -> list[dict[str, str]]:
        """The running elements of the step that the next strike is meant for, or of later ones."""
        if not self.left:
            return []
        order = list(self.course.steps)
        late = order[order.index(self.left[0].step) :]
        return [job for job in jobs if job["state"] == "RUNNING" and _step(job) in late]

    def _turn(self) -> None:
        """Look at the queue once, and do what is due."""
        now = time.monotonic()
        self._raise_nodes(now)
        jobs = self._jobs()
        self._look_after(jobs)
        victims = self._victims(jobs)
        self._worked += (now - self._last) * (bool(victims) and self._at_work())
        self._last = now
        if not victims:
            self._rest()
        if victims and self._worked >= self.left[0].after:
            self._strike(self.left[0].kind, victims)

    def _at_work(self) -> bool:
        """Whether anything was done since it was started."""
        return self._beat is None or self._beat() != self._still

    def _rest(self) -> None:
        """What is done from now on is work."""
        self._still = self._beat() if self._beat else None

    def _submit(self, answers: set[str]) -> None:
        self._submission = self._start()
        self._answered |= answers
        self.submits += 1

    def _look_after(self, jobs: list[dict[str, str]]) -> None:
        """Submit again once something has failed, or nothing is left that could go on."""
        if self._submission is not None:
            if self._submission.poll() is None:
                return
            if self._submission.returncode:
                raise Stuck(f"submit ended with code {self._submission.returncode}")
            self._submission = None
            return  # the next look at the queue has what it submitted
        failed = {job["id"] for job in jobs if job["state"] in FAILED} - self._answered
        alive = [job for job in jobs if job["state"] not in ENDED]
        if any(job["state"] == "RUNNING" for job in alive):
            self._idle = 0
        if not alive and not failed:
            self._idle += 1
            if self._idle > IDLE_SUBMITS:
                raise Stuck("nothing is left in the queue, and submitting changes nothing")
        if failed or not alive:
            self._tell(f"submit again: {' '.join(sorted(failed)) or 'the queue is empty'}")
            self._submit(failed)

    def _strike(self, kind: str, victims: list[dict[str, str]]) -> None:
        """Let it happen to one of them; where that was quicker, the next look decides."""
        victim = self._chance.choice(sorted(victims, key=lambda job: job["id"]))
        step, job = _step(victim), victim["id"]
        try:
            done = {
                "SIGKILL": self._kill,
                "requeue": lambda job: self._ask("scontrol", "requeue", job),
                "USR2": lambda job: self._ask("scancel", "--signal=USR2", job),
                "preemption": self._outrank,
                "node down": self._fell,
            }[kind](job)
        except (AssertionError, ProcessLookupError, FileNotFoundError):
            return
        if done:
            self._tell(f"{kind}: {step} {job}, after {self._worked:.1f} s of work")
            self.struck[kind, step] += 1
            self.left.pop(0)
            self._worked = 0.0
            self._rest()

    def _ask(self, *words: str) -> bool:
        self.cluster.run(*words)
        return True

    def _kill(self, job: str) -> bool:
        found = self._labels(job)
        if not found:
            return False
        victim = self._chance.choice(found)
        # that it is a process of this cluster is asked of the kernel: ids of processes come back
        mark = f"SLURM_CONF={self.cluster.conf}".encode()
        if mark not in Path(f"/proc/{victim['pid']}/environ").read_bytes().split(b"\0"):
            return False
        os.kill(int(victim["pid"]), signal.SIGKILL)
        return True

    def _outrank(self, job: str) -> bool:
        found = self._labels(job)
        if not found:
            return False
        where = ("--partition=high", f"--nodelist={found[0]['host']}", "--exclusive")
        self._ask("sbatch", *where, "--output=/dev/null", "--wrap=sleep 1")
        return True

    def _fell(self, job: str) -> bool:
        found = self._labels(job)
        if not found or self._down:
            return False
        node = found[0]["host"]
        for state in ("DOWN", "DRAIN"):  # as its slurmd lives, it would be back at once
            self._node(node, state)
        self._down[node] = time.monotonic() + DOWN
        return True

    def _raise_nodes(self, now: float) -> None:
        for node in [node for node, until in self._down.items() if now > until]:
            self._node(node, "RESUME")
            del self._down[node]

    def _node(self, node: str, state: str) -> None:
        words = (f"NodeName={node}", f"State={state}", "Reason=storm")
        self.cluster.run("scontrol", "update", *words)

    def _labels(self, job: str) -> list[dict[str, str]]:
        """Nodes and processes of an element whose tasks have said that they run."""
        found = []
        for path in [*self.logs.glob("*-*.json"), *self.logs.glob("*-*.rank*")]:
            content = read_status(path)
            if content.get("job") == job and content.get("state") == "running":
                label = LABEL.fullmatch(content["label"])
                found += [label.groupdict()] if label else []
        return sorted(found, key=lambda label: label["pid"])

    def _finish(self) -> None:
        """Leave the cluster as it was found: nodes up, nobody submitting."""
        self._raise_nodes(float("inf"))
        if self._submission is not None:
            self._submission.wait(300)


def _step(job: dict[str, str]) -> str:
    return job["name"].rpartition("-")[0]
