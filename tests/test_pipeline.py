"""All five stages through the command line, over HTTP, undisturbed and with kills."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from jobs.running import local
from pipeline.core.task_log import read_status
from tests.helpers.runs import SMALL, write_corpus
from tests.helpers.servers import FileServer

HERE = Path(__file__).parent.parent
STEPS = [
    "download.corpus",
    "decompress.chunks",
    "tokenize.shards",
    "tokenize.seal",
    "train.train",
    "evaluate.base",
    "evaluate.tuned",
    "evaluate.overlap",
]


def start(root: Path, dataset: Path, model: Path, *words: str) -> subprocess.Popen[str]:
    """Start `submit` in its own process group."""
    command = [sys.executable, "-m", "jobs", "submit", f"--root={root}", f"--dataset={dataset}"]
    return subprocess.Popen(
        [*command, f"--model={model}", "--profile=local", *SMALL, *words],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def submit(root: Path, dataset: Path, model: Path, *words: str) -> str:
    """Run `submit` to its end; returns its output."""
    process = start(root, dataset, model, *words)
    text, _ = process.communicate(timeout=280)
    assert process.returncode == 0, text
    return text


def kill_in(step: str, process: subprocess.Popen[str], root: Path) -> bool:
    """Send SIGKILL to all processes once a step runs; returns False if they ended before."""
    while process.poll() is None:
        for path in root.glob(f"runs/*/logs/{step}-0.json"):
            if read_status(path).get("state") == "running":
                time.sleep(0.02)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=60)
                return True
        time.sleep(0.005)
    return False


def outcome(root: Path) -> dict[str, Any]:
    """What interruptions must not change: shards, adapter, losses, scores."""
    shards = {
        path.relative_to(path.parents[1]).as_posix(): {
            name: output["sha256"]
            for name, output in json.loads(path.read_text())["outputs"].items()
        }
        for path in root.glob("data/*/shards-*/chunk-*/receipt.json")
    }
    (best,) = root.glob("runs/*/train-*/best/receipt.json")
    made = json.loads(best.read_text())
    (report,) = root.glob("runs/*/report/report.json")
    return {
        "shards": shards,
        "adapter": made["outputs"]["adapter_model.safetensors"]["sha256"],
        "loss": made["facts"]["best_loss"],
        "evaluation": json.loads(report.read_text())["evaluation"],
    }


def timeline(root: Path) -> dict[str, Any]:
    """The times of each step in the report."""
    (report,) = root.glob("runs/*/report/report.json")
    steps: dict[str, Any] = json.loads(report.read_text())["timeline"]["steps"]
    return steps


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_in_every_stage_do_not_change_the_result(
    tmp_path: Path, models: Callable[[str], Path]
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl.zst", documents=300, frames=3)
    with FileServer({"/c.jsonl.zst": corpus.read_bytes()}) as server:
        dataset = tmp_path / "web.yaml"
        dataset.write_text(yaml.safe_dump({"urls": [server.url + "/c.jsonl.zst"]}))
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        first = submit(whole, dataset, models("llama"))
        assert "report:" in first
        killed = []
        for step in STEPS:
            if kill_in(step, start(broken, dataset, models("llama")), broken):
                killed.append(step)
        assert killed == STEPS
        submit(broken, dataset, models("llama"))
    assert outcome(broken) == outcome(whole)
    struck, undisturbed = timeline(broken), timeline(whole)
    assert all(struck[step]["attempts"] > struck[step]["tasks"] for step in STEPS)
    assert all(step["attempts"] == step["tasks"] for step in undisturbed.values())

    again = submit(whole, dataset, models("llama"))
    assert "everything is done" in again

    before = {path: path.stat().st_mtime_ns for path in whole.rglob("receipt.json")}
    text = submit(whole, dataset, models("llama"), "train.lr=1e-3")
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("receipt.json")}
    assert before.items() <= after.items()
    new = {path.relative_to(whole).parts[2].partition("-")[0] for path in set(after) - set(before)}
    assert new == {"train", "evaluate", "report"}
    assert "evaluate.base" not in text


@pytest.mark.slow
def test_a_signal_saves_and_is_reported(
    tmp_path: Path, models: Callable[[str], Path], dataset: Path
) -> None:
    root = tmp_path / "root"
    process = start(root, dataset, models("opt"), "train.steps=4000", "train.checkpoint_every=4000")
    deadline = time.monotonic() + 120
    while not list(root.glob("runs/*/train-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "progress is safe" in text
    assert list(root.glob("runs/*/train-*/step-*/receipt.json"))
    command = [sys.executable, "-m", "jobs", "status", f"--root={root}"]
    status = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60)
    assert f"to resume: make pipeline DATASET={dataset} MODEL=" in status.stdout


@pytest.mark.slow
def test_a_damaged_file_is_rebuilt_by_the_next_run(
    tmp_path: Path, models: Callable[[str], Path], dataset: Path, prepared: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(prepared, root)
    shard = sorted(root.glob("data/*/shards-*/chunk-*/train.parquet"))[0]
    sound = shard.read_bytes()
    shard.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
    process = start(root, dataset, models("llama"), "--name=small")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 3, text
    assert "is damaged" in text
    submit(root, dataset, models("llama"), "--name=small")
    assert shard.read_bytes() == sound


@pytest.mark.slow
def test_make_passes_on_special_characters(
    tmp_path: Path, models: Callable[[str], Path], dataset: Path
) -> None:
    name, root = "-a b'c\"é", tmp_path / "ro ot"
    values = {"DATASET": dataset, "MODEL": models("opt"), "NAME": name, "RUNS": root}
    done = subprocess.run(
        ["make", "plan", *(f"{k}={v}" for k, v in values.items()), f"PYTHON={sys.executable}"],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"{name}  ·  {root}" in done.stdout


def test_without_a_terminal_progress_is_printed_as_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = io.StringIO()
    speak = local._line_printer("train.train", Console(file=said))
    speak(completed=0.1, note="step 1 of 10")
    assert said.getvalue() == "", "it has just started"
    monkeypatch.setattr(local, "PROGRESS_LINE_SECONDS", 0.0)
    speak(completed=0.25, note="step 2 of 10, loss 3.1")
    assert " ".join(said.getvalue().split()) == "train.train 25% step 2 of 10, loss 3.1"
