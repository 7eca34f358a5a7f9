"""A run that an older commit began continues under this one, and nothing is done again.

The older commit is the first one with stable recipe keys, unpacked into a folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import SMALL, refused

ROOT = Path(__file__).resolve().parents[1]
SINCE = "tests/golden/keys.json"  # keys are stable since the commit that added it
PATIENCE_SECONDS = 200

pytestmark = pytest.mark.slow


def git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree of the older commit."""
    commit = git("log", "--diff-filter=A", "--format=%H", "--", SINCE).rpartition("\n")[2]
    if not commit or git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("the history that holds the older commit is not here")
    tree = tmp_path_factory.mktemp("older") / "tree"
    tree.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True, timeout=60
    )
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True, timeout=60)
    return tree


def command(tree: Path, verb: str, *words: str) -> dict[str, Any]:
    """How to run a command of the product from a source tree."""
    return {
        "args": [sys.executable, "-m", "jobs", verb, "--profile=local", *words],
        "cwd": tree,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "text": True,
    }


def submit(tree: Path, *words: str) -> str:
    how = command(tree, "submit", *words)
    done = subprocess.run(**how, capture_output=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def committed(root: Path) -> dict[Path, int]:
    """When each unit was committed."""
    return {
        p: p.stat().st_mtime_ns for p in root.rglob("[!.]*/receipt.json") if ".tmp" not in str(p)
    }


@pytest.fixture
def words(dataset: Path, models: Callable[[str], Path], tmp_path: Path) -> Callable[..., list[str]]:
    def made(*more: str) -> list[str]:
        place = [f"--dataset={dataset}", f"--model={models('llama')}", f"--root={tmp_path}"]
        return [*place, *SMALL, *more]

    return made


def test_a_finished_run_stays_finished(
    older: Path, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    submit(older, *words())
    before = committed(tmp_path)
    assert len(before) > 10
    assert "everything is done" in submit(ROOT, *words())
    assert committed(tmp_path) == before
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("small+"), "a name that was made up"


def test_a_half_trained_run_continues_at_its_checkpoint(
    older: Path, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    long = words("train.steps=40", "train.validate_every=20")
    with subprocess.Popen(
        **command(older, "submit", *long),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + PATIENCE_SECONDS
        while not list(tmp_path.glob("runs/*/train-*/step-*/receipt.json")):
            assert process.poll() is None, "it ended before there was a checkpoint"
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=PATIENCE_SECONDS)
    before = committed(tmp_path)
    (rows,) = (path.read_text() for path in tmp_path.glob("runs/*/train-*/metrics.jsonl"))
    assert '"step": 40' not in rows, "it was stopped on the way"
    submit(ROOT, *long)
    after = committed(tmp_path)
    kept = {path for path in before if "/step-" not in str(path)}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    (continued,) = (path.read_text() for path in tmp_path.glob("runs/*/train-*/metrics.jsonl"))
    assert continued.startswith(rows[: rows.rfind("\n")])
    saved = max(int(path.parent.name[-8:]) for path in before if "/step-" in str(path))
    steps = [
        row["step"] for row in map(json.loads, continued.splitlines()) if row["kind"] == "step"
    ]
    assert sorted(set(steps)) == list(range(1, 41))
    assert len([step for step in steps if step <= saved]) == saved, "no saved step is repeated"


def test_results_of_0_1_are_refused_in_one_line(
    words: Callable[..., list[str]], tmp_path: Path, dataset: Path
) -> None:
    unit = tmp_path / "data" / dataset.stem / "raw-01234567" / "corpus"
    unit.mkdir(parents=True)
    (unit / "receipt.json").write_text('{"unit": "corpus", "key": "k", "outputs": {}}')
    done = subprocess.run(**command(ROOT, "plan", *words()), capture_output=True, timeout=60)
    line = refused(done, 2)
    assert f"{unit.parent} was made by Gristmill 0.1, whose results this version cannot use" in line
    assert f"rm -r {unit.parent.parent}" in line


def test_a_run_of_0_1_is_refused_in_one_line(
    words: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: old\ntrain:\n  length: 512\n")
    done = subprocess.run(
        **command(ROOT, "status", "--name=old", f"--root={tmp_path}"),
        capture_output=True,
        timeout=60,
    )
    line = refused(done, 2)
    assert f"{run / 'config.yaml'} was written by Gristmill 0.1" in line
    assert "Finish the run with 0.1, or start over under another NAME or RUNS" in line
