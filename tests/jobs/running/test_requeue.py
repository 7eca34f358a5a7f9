"""A training that SLURM interrupts gives the same result and repeats few steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.dag import find
from tests.cluster.fixture import Cluster
from tests.helpers.queued import Queued, adapter, repeated
from tests.helpers.runs import advance

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS, EVERY = 160, 40
LONG = (
    f"train.steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    "train.validate_every=1000",
    "evaluate.max_documents=4",
)


@pytest.fixture(scope="module")
def config(small: Callable[..., Config]) -> Config:
    return small(*LONG)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, config: Config, prepared: Path) -> Path:
    """A root, made without a scheduler, in which only the report is missing."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    advance(config, root, "evaluate.overlap")
    return root


@pytest.fixture
def run(cluster: Cluster, config: Config, undisturbed: Path, tmp_path: Path) -> Iterator[Queued]:
    """The same run in the queue, with training still to do."""
    root = tmp_path / "the 'root' é"
    shutil.copytree(undisturbed, root)
    # the scores stay: they are found again if, and only if, training ends in the same bytes
    shutil.rmtree(find(config, root, "train.train").work.folder)
    queued = Queued(cluster, config, root)
    yield queued
    cluster.cancel_all()


def ends_as(run: Queued, undisturbed: Path, at_most: int) -> None:
    """Every job completes, with the same weights and at most so many steps done twice."""
    run.completes()
    assert adapter(run.config, run.root) == adapter(run.config, undisturbed)
    assert repeated(run.config, run.root) <= at_most
    (scoring,) = run.attempts("evaluate.tuned")
    assert (scoring["done"], scoring["adopted"]) == (0, 0), "the scores are those of these weights"
    assert (run.root / "runs" / run.config.name / "report" / "report.json").exists()
    assert run.cluster.squeue() == []


def test_a_time_limit_is_noticed_in_time(run: Queued, undisturbed: Path) -> None:
    job = run.submit()["train.train"]
    run.trains(EVERY // 2)
    # stopped until SLURM, which checks limits every half minute, sends a CONT before its signal
    os.kill(run.process("train.train"), signal.SIGSTOP)
    # the signal, due 180 s before the end, comes at once
    run.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    run.requeued(job)
    # otherwise the signal would come at once in the next attempt, too
    run.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    ends_as(run, undisturbed, at_most=0)
    assert run.restarts("train.train") == 1


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("scancel", "--signal=USR2"), id="user-signal"),
        pytest.param(
            ("scontrol", "requeue"), id="requeued-by-somebody-else", marks=pytest.mark.thorough
        ),
    ],
)
def test_after_a_signal_or_requeue_it_saves_and_resumes(
    run: Queued, undisturbed: Path, words: tuple[str, ...]
) -> None:
    job = run.submit()["train.train"]
    run.trains(EVERY // 2)
    run.cluster.run(*words, job)
    ends_as(run, undisturbed, at_most=0)
    assert run.restarts("train.train") == 1
    first, second = run.attempts("train.train")
    assert (first["state"], first["restarts"], first["job"]) == ("interrupted", 0, job)
    assert (second["state"], second["restarts"], second["job"]) == ("done", 1, job)
    assert first["plan"] == second["plan"] == run.plan().id
    found = run.times("train.train")
    assert (found["attempts"], found["lost_seconds"]) == (2, 0)
    assert found["waited_seconds"] >= round(second["started"] - first["time"], 3) - 0.02
    assert run.times("tokenize.seal") == {"shared": True}


@pytest.mark.parametrize(
    "warned",
    [
        pytest.param(True, id="user-signal", marks=pytest.mark.thorough),
        pytest.param(False, id="term"),
    ],
)
def test_preemption_loses_nothing(
    run: Queued, undisturbed: Path, tmp_path: Path, warned: bool
) -> None:
    run.profile = {"jobs": {"train": {"partition": "low", "sbatch": {"nodelist": "node1"}}}}
    before = run.cluster.set_line("SlurmctldParameters", "preempt_send_user_signal" * warned)
    try:
        run.submit()
        run.trains(EVERY // 2)
        words = ("--partition=high", "--nodelist=node1", "--cpus-per-task=4")
        run.cluster.submit("sleep 1", *words, cwd=tmp_path)
        run.restarted("train.train")
    finally:
        run.cluster.set_line("SlurmctldParameters", before)
    ends_as(run, undisturbed, at_most=0)


def test_a_node_failure_costs_at_most_one_checkpoint_interval(
    run: Queued, undisturbed: Path
) -> None:
    run.submit()
    run.trains(EVERY + 5)
    node = run.node("train.train")
    try:
        for state in ("DOWN", "DRAIN"):  # DOWN alone would not last, because the slurmd is alive
            run.cluster.run(
                "scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test"
            )
        run.restarted("train.train")
        assert run.node("train.train") != node
        ends_as(run, undisturbed, at_most=EVERY)
        first, second = run.attempts("train.train")
        assert (first["state"], first["host"]) in [("running", node), ("interrupted", node)]
        assert second["host"] != node
    finally:
        run.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")


@pytest.mark.thorough  # as does the failure of a node
def test_a_kill_costs_at_most_one_checkpoint_interval(run: Queued, undisturbed: Path) -> None:
    first = dict(run.submit())
    run.trains(EVERY + 5)
    os.kill(run.process("train.train"), signal.SIGKILL)
    run.cluster.wait(first["train.train"], "FAILED")
    run.cluster.wait([first["evaluate.tuned"], first["evaluate.report"]], "CANCELLED")
    second = run.submit()
    assert second.keys() == first.keys()
    assert not set(first.values()) & set(second.values())
    ends_as(run, undisturbed, at_most=EVERY)
    killed, last = run.attempts("train.train")
    assert (killed["state"], last["state"]) == ("running", "done"), (
        "a killed task cannot update its file"
    )
    assert [a["job"] for a in (killed, last)] == [first["train.train"], second["train.train"]]
    found = run.times("train.train")
    assert found["attempts"] == 2
    assert (found["lost_seconds"] > 0) == (repeated(run.config, run.root) > 0)


def test_a_job_without_progress_is_given_up(run: Queued) -> None:
    from jobs.monitoring.progress_file import MAX_IDLE_RESTARTS, progress_mark

    job = run.submit()["train.train"]
    run.trains(1)
    run.cluster.run("scontrol", "requeue", job)
    run.requeued(job)
    # as if all attempts so far had been long and without progress
    path = run.root / "runs" / run.config.name / "logs" / "train.train-0.json"
    mark = progress_mark(find(run.config, run.root, "train.train").work.folder)
    content = json.loads(path.read_text()) | {"idle": MAX_IDLE_RESTARTS, "mark": mark}
    content["started"] -= 3600
    path.write_text(json.dumps(content))
    run.cluster.wait(job, "FAILED", timeout=180)
    assert "without progress" in run.logs()
    run.cluster.wait(run.jobs["evaluate.report"], "CANCELLED")


def test_a_signal_before_the_handler_is_installed_is_harmless(
    run: Queued, undisturbed: Path
) -> None:
    job = run.submit()["train.train"]
    run.cluster.wait(job, "RUNNING")
    for _ in range(5):
        run.cluster.signal("USR2", job)
    ends_as(run, undisturbed, at_most=0)


def test_the_deadline_replaces_a_lost_signal(run: Queued, undisturbed: Path) -> None:
    # The first attempt believes it ends in 94 s, so it saves 90 s (half of 180 s) before that.
    soon = "export SLURM_JOB_END_TIME=$(($(date +%s) + 94))"
    run.profile = {"jobs": {"train": {"setup": [f'[ -n "$SLURM_RESTART_COUNT" ] || {soon}']}}}
    run.submit()
    ends_as(run, undisturbed, at_most=0)
    assert run.restarts("train.train") == 1
    assert "time is up" in run.logs()
