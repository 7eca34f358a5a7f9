"""`sbatch slurm/*.sbatch` from any folder: the same receipts and leases as in a plan."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.running.by_hand import run_steps
from pipeline.config import Config
from pipeline.core.errors import UserError
from pipeline.dag import STAGES, find
from tests.cluster.fixture import Cluster
from tests.helpers.queued import HERE, Queued, adapter, output, repeated, sbatch
from tests.helpers.runs import SMALL

LONG = ["train.steps=150", "train.checkpoint_every=120", "train.validate_every=1000"]
SCRIPTS = [HERE / "slurm" / f"{stage}.sbatch" for stage in STAGES]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_valid_bash(script: Path) -> None:
    assert script.read_text().count("\n") < 40
    subprocess.run(["bash", "-n", script], check=True)


def test_only_a_training_is_shared_by_several_tasks(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for stage in ("download", "decompress", "tokenize", "evaluate"):
        with pytest.raises(UserError, match=r"by the tasks of a job; this one has 2"):
            run_steps(small(), tmp_path, stage, batch=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slurm
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_sbatch_accepts_each_script(cluster: Cluster, script: Path) -> None:
    # the test cluster has less memory than the script asks for
    cluster.run("sbatch", "--test-only", "--mem=2000M", script)


@pytest.mark.slurm
@pytest.mark.slow
def test_tokenizing_by_hand_ends_in_the_seal(run: Queued, tmp_path: Path, prepared: Path) -> None:
    folder = find(run.config, run.root, "tokenize.seal").work.folder
    shutil.rmtree(folder)
    array = sbatch(run, "tokenize", "--array=2-4", cwd=tmp_path, words=SMALL)
    states = run.cluster.wait(array, "COMPLETED")
    assert len(states) == 3
    assert find(run.config, run.root, "tokenize.seal").complete
    for shard in folder.glob("chunk-*/train.parquet"):
        twin = prepared / shard.relative_to(run.root)
        assert shard.read_bytes() == twin.read_bytes()


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.thorough  # another test waits for one
def test_training_by_hand_beside_the_pipeline_and_after_it(
    run: Queued, small: Callable[..., Config]
) -> None:
    words = [*SMALL, *LONG]
    run.config = small(*LONG)
    planned = run.submit()["train.train"]
    run.trains(5)
    training = run.process("train.train")
    os.kill(training, signal.SIGSTOP)  # it is alive, and does not end before the other one starts
    beside = sbatch(run, "train", words=words)
    run.cluster.wait(beside, "FAILED")
    assert "is being worked on by" in output(run, beside)
    assert "Traceback" not in output(run, beside)
    os.kill(training, signal.SIGCONT)
    run.cluster.run("scancel", planned)
    run.cluster.wait(planned, "CANCELLED")
    after = sbatch(run, "train", words=words)
    run.cluster.wait(after, "COMPLETED", timeout=180)
    assert repeated(run.config, run.root) == 0
    assert adapter(run.config, run.root)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_pipeline_waits_for_training_by_hand(run: Queued, small: Callable[..., Config]) -> None:
    words = [*SMALL, *LONG]
    run.config = small(*LONG)
    job = sbatch(run, "train", words=words)
    run.trains(5)
    training = run.process("train.train")
    os.kill(training, signal.SIGSTOP)  # it is alive, and does not end before the pipeline is queued
    jobs = run.submit()
    assert "train.train" not in jobs
    waits = {row["name"].partition("-")[0]: row["dependency"] for row in run.cluster.squeue()}
    assert f"afterok:{job}" in waits["evaluate.tuned"]
    # told to end, it is requeued and resumes
    os.kill(training, signal.SIGCONT)
    run.cluster.run("scancel", "--signal=USR2", job)
    run.completes()
    run.cluster.wait(job, "COMPLETED")
    assert "progress is safe" in output(run, job)
    assert repeated(run.config, run.root) == 0


@pytest.mark.slurm
@pytest.mark.slow
def test_a_gpu_that_torch_cannot_use_is_reported_in_one_line(
    run: Queued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a copy elsewhere: only GRISTMILL_ROOT leads to the project
    monkeypatch.setenv("GRISTMILL_ROOT", str(HERE))
    copy = shutil.copy(HERE / "slurm" / "train.sbatch", tmp_path / "mine.sbatch")
    job = sbatch(run, "train", "--gpus-per-node=1", cwd=tmp_path, words=SMALL, script=copy)
    run.cluster.wait(job, "FAILED")
    (line,) = [row for row in output(run, job).splitlines() if row.startswith("error:")]
    assert "GPU" in line
    assert "Traceback" not in output(run, job)
    assert line in run.command("logs", "--name=small")
