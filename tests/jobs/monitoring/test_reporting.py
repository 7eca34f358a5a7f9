"""Reports on request: of unfinished runs at every step, and of finished runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.monitoring import reporting
from jobs.monitoring.reporting import report_run
from pipeline.config import Config
from pipeline.core import receipt as receipts
from pipeline.core.errors import CorruptInput, Interrupted, UserError
from pipeline.dag import STEPS, find, survey
from pipeline.evaluate.stage import samples_item
from pipeline.report import PARTIAL_REPORT, build
from pipeline.report.history.progress import RunProgress, StepProgress, describe_progress, headline
from pipeline.report.history.training_curve import read_curve
from pipeline.saved_config import save_config
from tests.helpers.runs import StopAfterChecks, advance, refused

HERE = Path(__file__).parents[3]
NAMES = [step.name for step in STEPS]

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Restore the environment and umask, which commands change in their own process."""
    environment, mask = dict(os.environ), os.umask(0)
    os.umask(mask)
    yield
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


def made(config: Config, root: Path) -> tuple[Path, dict[str, Any], str]:
    folder = report_run(config, root, lambda: None)
    report = json.loads((folder / "report.json").read_text())
    return folder, report, (folder / "report.html").read_text()


def take_away(root: Path, config: Config, step: str, *items: str) -> None:
    """Remove items of a step, by default all; steps that depend on it stay."""
    node = find(config, root, step)
    for name in items or [item.name for item in node.items or []]:
        shutil.rmtree(node.work.folder / name)


@pytest.mark.slow
def test_a_run_has_a_report_after_every_step(root: Path, small: Callable[..., Config]) -> None:
    config = small()
    steps = {node.work.step.name: node for node in survey(config, root)}
    shutil.rmtree(root / "runs/small/report")
    assert made(config, root)[1]["progress"] is None, (
        "all inputs exist, so this is the final report"
    )
    assert find(config, root, "evaluate.report").complete
    shutil.rmtree(root / "runs/small/report")
    for count in reversed(range(len(STEPS) - 1)):
        take_away(root, config, NAMES[count])
        folder, report, html = made(config, root)
        assert folder == root / "runs/small" / PARTIAL_REPORT
        told = report["progress"]["steps"]
        assert [step["step"] for step in told] == NAMES
        assert [step["state"] == "done" for step in told] == [True] * count + [False] * (
            len(STEPS) - count
        )
        assert report["verdict"]["outcome"] == "open"
        assert report["verdict"]["figures"] == ""
        assert f"{count} of {len(STEPS)} steps are done" in html
        assert set(report["provenance"]["steps"]) == set(NAMES[:count])
        assert report["provenance"]["finished"] == "not yet"
        assert (report["training"] is not None) == ("train.train" in NAMES[:count])
        assert (report["corpus"] is not None) == ("tokenize.seal" in NAMES[:count])
        scored = {who for split in report["evaluation"].values() for who in split} & {
            "base",
            "tuned",
        }
        assert scored == {who for who in ("base", "tuned") if f"evaluate.{who}" in NAMES[:count]}
        if NAMES[count] == "train.train":
            # the metrics log is there, the weights are not
            assert report["progress"]["training"]["step"] == 6
            assert "Best so far" in html
            assert "Kept: the checkpoint" not in html
            shutil.rmtree(steps["train.train"].work.folder)
    assert [p.name for p in folder.parent.glob(".*")] == [], "earlier pages leave nothing behind"


@pytest.mark.slow
def test_a_half_scored_split_is_shown_as_unfinished(
    root: Path, small: Callable[..., Config]
) -> None:
    config = small()
    take_away(root, config, "evaluate.tuned", "validation", samples_item(config))
    shutil.rmtree(root / "runs/small/report")
    _, report, html = made(config, root)
    assert "paired" in report["evaluation"]["test"]
    assert "tuned" not in report["evaluation"]["validation"]
    assert report["verdict"]["outcome"] == "open", "no verdict before all scores exist"
    (step,) = [s for s in report["progress"]["steps"] if s["step"] == "evaluate.tuned"]
    assert (step["done"], step["items"], step["state"]) == (2, 4, "to do")
    assert "evaluate.tuned is next" in html


@pytest.mark.slow
def test_a_stopped_training_shows_its_progress(
    prepared: Path, small: Callable[..., Config], tmp_path: Path
) -> None:
    config = small("train.sample_tokens=40")  # so that it can be stopped before the first step
    root = Path(shutil.copytree(prepared, tmp_path / "root"))
    save_config(config, root)
    journal = find(config, root, "train.train").work.folder / "metrics.jsonl"
    seen = []
    for checks in range(3, 400, 3):
        with pytest.raises(Interrupted):
            advance(config, root, "train.train", stop=StopAfterChecks(checks))
        if not journal.exists():
            continue
        _, report, html = made(config, root)
        far = report["progress"]["training"]
        assert far["of"] == 6
        seen.append(far["step"])
        if far["step"]:
            break
    assert seen[0] == 0, "started, before the first step"
    assert 0 < seen[-1] < 6
    assert far["tokens"] > 0
    assert far["restarts"] >= 0
    assert f"train.train was started, at step {far['step']} of 6" in report["verdict"]["words"]
    assert html.count("<svg ") == 2, "the curve so far, in two widths"
    advance(config, root, "train.train")
    _, report, html = made(config, root)
    assert report["progress"]["training"] is None
    assert report["training"]["steps"] == 6
    assert "Kept: the checkpoint" in html


@pytest.mark.slow
def test_the_final_report_replaces_the_report_of_a_run_in_progress(
    root: Path, small: Callable[..., Config]
) -> None:
    config = small()
    take_away(root, config, "evaluate.tuned", "test")
    shutil.rmtree(root / "runs/small/report")
    so_far, _, _ = made(config, root)
    assert so_far.is_dir()
    advance(config, root, "evaluate.report")
    assert not so_far.exists()
    folder, report, html = made(config, root)
    assert folder.name == "report"
    assert report["progress"] is None
    assert "How far it is" not in html


@pytest.mark.slow
def test_the_committed_report_is_rebuilt(root: Path, small: Callable[..., Config]) -> None:
    config = small()
    folder = root / "runs/small/report"
    (folder / "report.md").write_text("scribbled over")
    assert made(config, root)[0] == folder
    (before,) = find(config, root, "evaluate.report").done.values()
    (folder / "report.md").write_text("scribbled over once more")
    made(config, root)
    (after,) = find(config, root, "evaluate.report").done.values()
    assert after.outputs == before.outputs, "equal inputs give equal bytes"
    after.verify(folder)
    page = folder / "report.html"
    content = page.read_bytes()
    page.write_bytes(content[:-1] + b"#")
    made(config, root)
    assert page.read_bytes() == content, "damage of equal size is repaired, too"


@pytest.mark.slow
def test_a_failed_rebuild_keeps_the_existing_report(
    root: Path, small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small()
    (before,) = find(config, root, "evaluate.report").done.values()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.page, "write_report", full)
    with pytest.raises(UserError, match="is full"):
        made(config, root)
    (after,) = find(config, root, "evaluate.report").done.values()
    assert after == before
    after.verify(root / "runs/small/report")
    assert not list((root / "runs/small").glob(".tmp-*"))


def test_a_damaged_score_is_set_aside_and_the_old_report_kept(
    root: Path, small: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = small()
    unit = find(config, root, "evaluate.tuned").work.folder / "test"
    path = unit / "scores.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    with pytest.raises(CorruptInput, match=r"scores\.parquet is damaged") as met:
        made(config, root)
    assert str(met.value).endswith("run the make pipeline command that began it to rebuild it")
    assert not unit.exists()
    folder = report_run(config, root, lambda: None)
    assert folder.name == "report"
    assert "some of its inputs are gone (evaluate.tuned)" in capsys.readouterr().err


def test_the_report_of_a_run_without_its_data_can_still_be_read(
    root: Path, small: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "data")
    folder = report_run(small(), root, lambda: None)
    assert folder == root / "runs/small/report"
    assert receipts.load_intact(folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "download.corpus" in said


@pytest.mark.slow
def test_the_command_prints_the_report_and_the_path_of_its_page(root: Path) -> None:
    def jobs(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs", "report", f"--root={root}", *words]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)

    done = jobs("--name=small")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (root / "runs/small/report/report.md").read_text() + (
        f"\nreport: {root}/runs/small/report/report.html\n"
    )
    shutil.rmtree(root / "runs/small/report")
    (tuned,) = (root / "runs/small").glob("evaluate-*")
    shutil.rmtree(tuned)
    done = jobs()
    assert done.returncode == 0, done.stderr
    assert "# small: in progress" in done.stdout
    assert "| evaluate.tuned | to do | 0/4 |" in done.stdout
    assert done.stdout.endswith(f"report: {root}/runs/small/{PARTIAL_REPORT}/report.html\n")
    assert "no run 'other'" in refused(jobs("--name=other"), 2)


def rows(*of: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in of)


def test_training_progress_is_read_from_the_metrics_log(tmp_path: Path) -> None:
    now = time.time()
    journal = tmp_path / "metrics.jsonl"
    step = {"kind": "step", "loss": 3.0, "tokens": 100, "seconds": 2.0}
    journal.write_text(
        rows(
            {"kind": "start", "step": 0, "total": 50, "time": now - 500},
            *({**step, "step": n} for n in range(1, 9)),
            {"kind": "validation", "step": 5, "loss": 2.5},
            {"kind": "start", "step": 5, "total": 50, "time": now - 100},
            *({**step, "step": n, "skipped": n == 7} for n in range(6, 11)),
            {"kind": "validation", "step": 10, "loss": 2.25},
        )
        + '{"kind": "st'
    )
    os.utime(journal, (now, now))
    steps = (
        StepProgress("a", "done", 1, 1),
        StepProgress("train.train", "running", 0, 1, "10 steps"),
    )
    run_progress = RunProgress(steps, tmp_path, now + 60)
    far = describe_progress(run_progress, read_curve(journal), trained=False)
    training = far["training"]
    assert (training["step"], training["of"], training["tokens"]) == (10, 50, 1000)
    assert training["tokens_per_second"] == 50.0
    assert training["seconds_left"] == 40 * 100 / 5, (
        "at the speed of this attempt, validations included"
    )
    assert (training["restarts"], training["lost_seconds"], training["skipped"]) == (1, 6.0, 1)
    assert (training["best_step"], training["best_loss"], training["first_loss"]) == (10, 2.25, 2.5)
    assert training["silent"] == 60
    assert [step["now"] for step in far["steps"]] == ["", ""], "it is reported once"
    assert headline(far)["words"] == (
        "Not finished: 1 of 2 steps are done, and train.train is running, at step 10 of 50."
    )
    assert describe_progress(run_progress, read_curve(journal), trained=True)["training"] is None
    assert describe_progress(RunProgress(steps, None, now), None, trained=False)["training"] is None


def test_after_a_rollback_training_is_at_the_earlier_step(tmp_path: Path) -> None:
    step = {"kind": "step", "loss": 3.0, "tokens": 100, "seconds": 2.0}
    (tmp_path / "metrics.jsonl").write_text(
        rows(
            {"kind": "start", "step": 0, "time": time.time()},
            *({**step, "step": n} for n in range(1, 9)),
            {"kind": "rollback", "step": 4, "of": 8, "slowdown": 0.5},
        )
    )
    curve = read_curve(tmp_path / "metrics.jsonl")
    training = describe_progress(RunProgress((), tmp_path, time.time()), curve, trained=False)[
        "training"
    ]
    assert (training["step"], training["tokens"], training["of"]) == (4, 400, None)
    assert training["seconds_left"] is None
    assert training["best_step"] is None


def test_the_headline_names_the_most_important_state() -> None:
    def said(*states: str) -> str:
        steps = [StepProgress(f"step.{n}", s, 0, None) for n, s in enumerate(states)]
        return headline(describe_progress(RunProgress(tuple(steps)), None, trained=False))["words"]

    assert said("done", "failed", "running").endswith("and step.2 is running.")
    assert said("done", "failed", "waiting").endswith("and step.1 failed.")
    assert said("done", "interrupted", "to do").endswith("and step.1 was interrupted.")
    assert said("waiting", "waiting") == "Not finished: 0 of 2 steps are done."


def test_each_list_of_runs_has_its_own_folder_name() -> None:
    joined = reporting._folder_name
    assert joined(["nih", "try 2"]) == "nih_vs_try 2"
    assert joined(["a_vs_b", "c"]) != joined(["a", "b_vs_c"])
    long = joined(["x" * 200, "é" * 100])
    assert len(long.encode()) <= reporting.MAX_NAME_BYTES
    assert long != joined(["x" * 200, "é" * 99])
