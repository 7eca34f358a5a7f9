"""TensorBoard shows the content of metrics.jsonl, each step once; it must be installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.core.errors import UserError
from pipeline.dag import find
from pipeline.report.history.training_curve import read_curve
from pipeline.train.checkpoint import TrainState
from pipeline.train.metrics_log import MetricsLog
from pipeline.train.tensorboard import TensorBoardWriter
from tests.helpers.runs import refused
from tests.train.helpers import Killed, StopAfter, metrics, train

Small = Callable[..., Config]
Points = dict[str, dict[str, list[tuple[int, float]]]]  # by curve, by name


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": loss, "tokens": 100, "seconds": 0.5}


def validation(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"kind": "validation", "step": number, "loss": loss}


def read(folder: Path) -> Points:
    """The curves that TensorBoard shows, read by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: Points = {}
    for curve in sorted((folder / "tensorboard").iterdir()):
        reader = EventAccumulator(str(curve), size_guidance={"scalars": 0})
        reader.Reload()
        names = reader.Tags()["scalars"]
        points[curve.name] = {n: [(e.step, e.value) for e in reader.Scalars(n)] for n in names}
    return points


def restart_thrice(folder: Path) -> None:
    """Write rows as after a kill before the first step, a kill after some, and a rollback."""
    writer = TensorBoardWriter(folder)
    writer.add({"kind": "start", "step": 0})
    writer.add(validation(0, 9.0))
    writer = TensorBoardWriter(folder)
    for row in (validation(0), step(1), step(2), step(3), validation(3, 9.0), step(4, 9.0)):
        writer.add(row)
    writer = TensorBoardWriter(folder)  # from the checkpoint of step 3, which is not validated yet
    for row in (validation(3), step(4), step(5), step(6, 9.0), step(7, 9.0)):
        writer.add(row)
    for row in (step(6), validation(6), step(7)):
        writer.add(row)


WANTED = {"train": [(n, 1.0) for n in range(1, 8)], "validation": [(n, 1.0) for n in (0, 3, 6)]}


def test_repeated_steps_appear_once(tmp_path: Path) -> None:
    restart_thrice(tmp_path)
    shown = read(tmp_path)
    assert {curve: names["loss"] for curve, names in shown.items()} == WANTED
    assert shown["train"]["tokens_per_second"] == [(n, 200.0) for n in range(1, 8)]


def test_without_the_setting_no_events_are_written(tmp_path: Path) -> None:
    MetricsLog(tmp_path, TrainState(attempts=1)).add(step(1))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_setting_is_not_part_of_the_key(small: Small) -> None:
    shown, not_shown = small("train.tensorboard=true"), small()
    assert shown.train.tensorboard
    assert shown.train.hashed_values() == not_shown.train.hashed_values()


@pytest.mark.slow
def test_a_missing_package_is_reported_before_anything_starts(
    dataset: Path, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (f"--dataset={dataset}", f"--model={models('llama')}", f"--root={tmp_path / 'root'}")
    # an entry of None makes Python report a missing module
    without = "import sys, runpy; sys.modules['tensorboard'] = None; runpy.run_module('jobs', {}, "
    done = subprocess.run(
        [sys.executable, "-c", f"{without}'__main__')", "submit", *where, "train.tensorboard=true"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    line = refused(done, 2)
    assert line == (
        "error: train.tensorboard=true needs the Python package tensorboard, which is not "
        f"installed. {sys.executable} -m pip install tensorboard"
    )
    assert not (tmp_path / "root").exists()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="which is not installed"):
        TensorBoardWriter(tmp_path)


@pytest.mark.slow
def test_the_curves_of_a_killed_training_equal_its_metrics(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small("train.tensorboard=true")
    folder = find(config, tmp_path, "train.train").work.folder
    with pytest.raises(Killed):
        train(config, tmp_path, StopAfter(folder, 5, Killed))
    newest = max((folder / "tensorboard" / "train").iterdir(), key=lambda path: path.name)
    newest.write_bytes(newest.read_bytes()[:-5])
    node = train(config, tmp_path)
    rows = [row["step"] for row in metrics(node) if row["kind"] == "step"]
    assert len(rows) > len(set(rows)), "some were repeated"
    curve, shown = read_curve(folder / "metrics.jsonl"), read(folder)
    assert curve
    for name, points in (("train", curve.train), ("validation", curve.validation)):
        assert [n for n, _ in shown[name]["loss"]] == [n for n, _ in points]
        losses = [loss for _, loss in points]
        assert [v for _, v in shown[name]["loss"]] == pytest.approx(losses, rel=1e-6)
    assert set(shown["train"]) == {"loss", "grad_norm", "lr", "tokens_per_second"}
