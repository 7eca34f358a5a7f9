"""Two nodes share a training, by hand and from the pipeline, undisturbed and interrupted."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.training_fault_storm import read_metrics
from pipeline.config import Config
from pipeline.dag import find
from tests.cluster.fixture import Cluster
from tests.helpers.queued import Queued, adapter, output, repeated, sbatch, steps
from tests.helpers.runs import SMALL

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS, EVERY = 160, 20
LONG = (
    f"train.steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    "train.validate_every=80",
    "train.lora_dropout=0.1",
)


@pytest.fixture(scope="module")
def by_hand(
    cluster: Cluster,
    small: Callable[..., Config],
    prepared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Queued, str]:
    """An undisturbed training by `sbatch --nodes=2 slurm/train.sbatch`, and its job id."""
    root = tmp_path_factory.mktemp("by hand") / "root"
    shutil.copytree(prepared, root)
    run = Queued(cluster, small(*LONG), root)
    job = sbatch(run, "train", "--nodes=2", words=[*SMALL, *LONG])
    try:
        cluster.wait(job, "COMPLETED", timeout=180)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{output(run, job)}") from None
    return run, job


def rows(run: Queued) -> dict[tuple[str, int], set[tuple[float, ...]]]:
    """All losses, gradient norms and rates that were logged, by kind of row and step."""
    return read_metrics(find(run.config, run.root, "train.train").work.folder / "metrics.jsonl")[0]


def test_by_hand_both_nodes_share_every_step(by_hand: tuple[Queued, str]) -> None:
    run, job = by_hand
    assert "on 2 × cpu" in output(run, job)
    assert ("COMPLETED", "node[1-2]") in run.cluster.accounted([job])
    assert steps(run.config, run.root) == list(range(1, STEPS + 1))


def test_interrupted_two_node_training_gives_the_same_bytes(
    run: Queued, by_hand: tuple[Queued, str], tmp_path: Path
) -> None:
    alone, _ = by_hand
    run.config = alone.config
    run.profile = {"jobs": {"train": {"nodes": 2, "partition": "low"}}}
    first = run.submit()["train.train"]
    run.trains(EVERY + 5)
    os.kill(run.process("train.train", rank=1), signal.SIGKILL)
    run.cluster.wait(first, "FAILED")
    job = run.submit()["train.train"]
    assert job != first
    run.trains(3 * EVERY)
    run.cluster.run("scancel", "--signal=USR2", job)
    run.requeued(job)
    run.trains(5 * EVERY)
    words = ("--partition=high", "--nodelist=node2", "--cpus-per-task=4")
    run.cluster.submit("sleep 1", *words, cwd=tmp_path)
    run.requeued(job)
    try:
        run.cluster.wait(job, "COMPLETED", timeout=180)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{run.logs()}") from None
    assert run.restarts("train.train") == 2
    assert repeated(run.config, run.root) <= EVERY
    assert adapter(run.config, run.root) == adapter(alone.config, alone.root)
    assert rows(run) == rows(alone)
