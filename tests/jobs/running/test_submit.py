"""A plan in SLURM's queue: submitted once, and completed after failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, resolve
from pipeline.core.receipt import load
from pipeline.dag import find
from tests.cluster.fixture import Cluster
from tests.helpers.queued import HERE, Queued
from tests.helpers.runs import SMALL, write_corpus
from tests.helpers.servers import FileServer

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

COUNTED = ("sbatch", "squeue", "scontrol", "sacct", "scancel")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """How often SLURM's commands were called since the last call of this function."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    log.touch()
    for name in COUNTED:
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} >>{log}\nexec {shutil.which(name)} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def count() -> dict[str, int]:
        called = log.read_text().split()
        log.write_text("")
        return {name: called.count(name) for name in COUNTED if name in called}

    return count


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the working tree that a test may edit."""
    copy = tmp_path / "tree"
    for name in ("jobs", "pipeline", "slurm"):
        shutil.copytree(HERE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """The YAML file of a data set whose corpus is served over HTTP on this host."""
    corpus = write_corpus(tmp_path / "small.jsonl.zst", documents=160)
    with FileServer({"/small.jsonl.zst": corpus.read_bytes()}) as server:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({"urls": [f"{server.url}/small.jsonl.zst"]}))
        yield path


def test_five_stages_run_as_jobs_despite_special_characters(
    cluster: Cluster,
    models: Callable[[str], Path],
    served: Path,
    tree: Path,
    tmp_path: Path,
    calls: Callable[[], dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    words = [*SMALL, "tokenize.tasks=4"]
    name = "-a b'c\"é$(x)"
    config = resolve(str(served), str(models("llama")), "lora-8bit", words, name)
    wide = {"jobs": {"tokenize": {"mem": "3500M"}}}  # two of them fill a node
    run = Queued(cluster, config, tmp_path / "the 'root' \"é", wide, tree=tree)
    chosen = (f"--dataset={served}", f"--model={models('llama')}", f"--name={name}", *words)
    told = run.command("submit", *chosen)
    assert calls() == {"sbatch": 10, "squeue": 1, "scontrol": 1}
    # edit the tree while jobs wait
    (tree / "jobs" / "task.py").write_text("this is not Python")
    (tree / "pipeline" / "__init__.py").write_text("this neither")
    run.jobs = jobs_told(told)
    assert len(run.jobs) == 10
    run.completes()
    assert cluster.squeue() == []
    array = cluster.states([run.jobs["tokenize.shards"]])
    assert len(array) == 4
    rows = cluster.accounted(run.jobs.values())
    assert {state for state, _ in rows} == {"COMPLETED"}
    assert {node for _, node in rows} == {"node1", "node2"}
    assert (run.root / "runs" / name / "report" / "report.html").exists()
    assert not list(run.root.rglob("__pycache__")), "a full disk would truncate what is in it"
    run.tree = HERE
    accounts = run.command("status", "--accounts", f"--name={name}")
    assert accounts.count("COMPLETED") == 10 + 3, "an array has four"
    calls()
    assert "everything is done" in run.command("submit", *chosen)
    assert "sbatch" not in calls()
    planned = json.loads(run.command("plan", "--json", *chosen[:2], *words, "train.lr=1e-3"))
    steps = [array["step"] for array in planned["arrays"]]
    assert steps == ["train.train", "evaluate.tuned", "evaluate.report"]
    told = run.command("submit", *chosen[:2], *words, "train.lr=1e-3")
    assert list(jobs_told(told)) == steps
    cluster.cancel_all()


def jobs_told(text: str) -> dict[str, str]:
    """Job ids by step, as `submit` prints them."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[2] for row in rows if row[1:2] == ["job"]}


def test_two_submitters_at_once_submit_one_set_of_jobs(
    run: Queued, calls: Callable[[], dict[str, int]]
) -> None:
    command = [sys.executable, "-c", SUBMIT, str(run.root), str(run.site())]
    run.save_config()
    both = [
        subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted(len(json.loads(text)) for text in told) == [0, 3]
    assert len(run.cluster.squeue()) == 3
    assert calls()["sbatch"] == 3


SUBMIT = """
import json, sys
from pathlib import Path
from jobs.cluster.profile import find_profile
from jobs.running.submit import queue_plan
from pipeline.saved_config import load_config

root = Path(sys.argv[1])
config = load_config(root / "runs" / "small" / "config.yaml")
print(json.dumps(queue_plan(config, root, find_profile(sys.argv[2])).jobs))
"""


def test_a_killed_element_is_submitted_again(
    run: Queued, small: Callable[..., Config], prepared: Path
) -> None:
    run.config = small("tokenize.tasks=4")
    shards = find(run.config, run.root, "tokenize.shards")
    sealed = find(run.config, run.root, "tokenize.seal").work.folder / "seal"
    wanted = load(sealed)
    shutil.rmtree(shards.work.folder)
    slow = {"parallel": 1, "setup": ["sleep 5"]}
    run.profile = {"jobs": {"tokenize.shards": slow}}
    first = dict(run.submit())
    run.starts("tokenize.shards", 0)
    run.cluster.run("scancel", "--signal=KILL", f"{first['tokenize.shards']}_0")
    below = [job for step, job in first.items() if step != "tokenize.shards"]
    run.ends("tokenize.shards", 0)
    # the other elements are still queued, one at a time; the missing one joins them
    second = dict(run.submit())
    array = run.plan().array("tokenize.shards")
    assert array.elements == (0,)
    waits = {job["name"].partition("-")[0]: job["dependency"] for job in run.cluster.squeue()}
    assert second["tokenize.shards"] in waits["tokenize.seal"]
    assert f"{first['tokenize.shards']}_3" in waits["tokenize.seal"]
    assert not set(below) & {job["id"] for job in run.cluster.squeue()}
    run.completes()
    assert load(sealed).digest == wanted.digest
    assert run.cluster.squeue() == []


def test_status_logs_and_cancel_of_a_run_in_the_queue(
    run: Queued, calls: Callable[[], dict[str, int]], small: Callable[..., Config]
) -> None:
    run.config = small("train.steps=5000", "train.checkpoint_every=5000")
    run.submit()
    run.trains(150)
    calls()
    found = json.loads(run.command("status", "--json", "--name=small"))
    assert calls() == {"squeue": 1}
    steps = {step["step"]: step for step in found["steps"]}
    assert steps["tokenize.seal"]["state"] == "done"
    train, report = steps["train.train"], steps["evaluate.report"]
    assert train["state"] == "running"
    (task,) = train["tasks"]
    assert task["done"] > 0
    assert task["total"] == 5000
    assert min(task["rate"], task["eta"]) > 0
    (job,) = train["jobs"]
    assert job["id"] == run.jobs["train.train"]
    assert job["node"] in ("node1", "node2")
    assert min(job["run_seconds"], job["queue_seconds"]) >= 0
    assert report["state"] == "queued"
    assert report["jobs"][0]["reason"] == "Dependency"
    assert "Dependency" in run.command("status", "--name=small")
    logs = run.command("logs", "--name=small", "-n", "5000")
    assert "step 10 of 5000" in logs
    assert "pickle" not in logs
    told = run.command("cancel", "--name=small")
    live = [run.jobs[step] for step in ("train.train", "evaluate.tuned", "evaluate.report")]
    assert all(job in told for job in live)
    run.cluster.wait(live, "CANCELLED")
    found = json.loads(run.command("status", "--json", "--name=small"))
    assert {s["step"]: s["state"] for s in found["steps"]}["train.train"] == "interrupted"
    assert run.cluster.squeue() == []


def test_what_sbatch_refuses_is_reported_in_one_line(run: Queued) -> None:
    run.profile = {"jobs": {"train": {"partition": "gpux"}}}
    chosen = ("--name=small",)
    line = run.command("submit", *run.words(), *chosen, code=2).strip().splitlines()[-1]
    assert "sbatch refuses train.train" in line
    assert "invalid partition" in line
    assert "Traceback" not in line


@pytest.mark.thorough  # a setting of few clusters
def test_without_kill_on_invalid_dep_blocked_jobs_are_replaced(
    run: Queued, small: Callable[..., Config]
) -> None:
    run.config = small("train.steps=100", "train.checkpoint_every=100", "train.validate_every=1000")
    run.profile = {"kill_on_invalid_dep": False}
    first = dict(run.submit())
    run.trains(5)
    os.kill(run.process("train.train"), signal.SIGKILL)
    run.cluster.wait(first["train.train"], "FAILED")
    end = time.monotonic() + 60
    while "DependencyNeverSatisfied" not in {job["reason"] for job in run.cluster.squeue()}:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "run make pipeline again" in " ".join(run.command("status", "--name=small").split())
    run.submit()
    run.completes()
    assert run.cluster.squeue() == []


def test_download_can_run_on_the_login_node(
    run: Queued, served: Path, models: Callable[[str], Path]
) -> None:
    run.profile = {"jobs": {"download": {"where": "login"}}}
    words = (f"--dataset={served}", f"--model={models('llama')}", "--name=login", *SMALL)
    told = run.command("submit", *words)
    assert next(iter(jobs_told(told))) == "decompress.chunks"
    assert "download.corpus    done in" in told
    assert next(run.root.glob("data/small/raw-*/corpus/receipt.json"))
