"""Bad environments: each ends in one line with the remedy, loses nothing, and can be cured."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.clean import removable
from pipeline.config import Config, freeze
from pipeline.dag import STEPS, find, survey
from pipeline.lease import Lease
from pipeline.receipt import sweep


def digests(root: Path, config: Config) -> dict[str, str]:
    """What every item has come to. The report tells times, so it has none that could be equal."""
    return {
        f"{node.work.step.name} {name}": receipt.digest
        for node in survey(config, root)
        for name, receipt in node.done.items()
        if name != "report"
    }


# ---- clocks

SKEWS = [86_400.0 * days for days in (-3650, -2, 2, 3650)]


@pytest.mark.parametrize("skew", SKEWS)
def test_wrong_clocks_make_nothing_undone_and_remove_nothing(
    skew: float, tmp_path: Path, prepared: Path, small: Callable[..., Config]
) -> None:
    config, root = small(), tmp_path / "root"
    shutil.copytree(prepared, root)
    freeze(config, root)
    before = digests(root, config)
    logs = root / "runs" / "small" / "logs"
    logs.mkdir()
    then = time.time() + skew
    label = f"process 1 of user {os.getuid()} on elsewhere, born 1"
    for path in root.rglob("receipt.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "written": then}))
    folder = find(config, root, "tokenize.shards").work.folder
    half = folder / ".tmp-chunk-00009-elsewhere-1-abcdef01"
    half.mkdir()
    (half / "train.parquet").touch()
    (logs / "tokenize.shards-0.json").write_text(
        json.dumps({"state": "running", "label": label, "time": then, "since": then, "done": 1})
    )
    for path in [*root.rglob("*"), root]:
        os.utime(path, (then, then))
    assert digests(root, config) == before
    sweep(folder)
    assert half.is_dir(), "its writer may live, with another clock"
    assert half not in removable(root, None)
    assert not [path for path in removable(root, None) if path.name[0] != "."]
    (logs / "tokenize.shards-0.json").write_text(json.dumps({"state": "done", "label": label}))
    assert (half in removable(root, None)) == (skew < 0), "nobody is at it, and it is old"


@pytest.mark.parametrize("skew", SKEWS)
def test_a_lease_outlives_a_sweep_under_a_wrong_clock(skew: float, tmp_path: Path) -> None:
    then = time.time() + skew
    path = tmp_path / ".lease-item"
    with Lease(path, "me", lambda label: None, beat=0.02) as lease:
        for file in tmp_path.iterdir():
            os.utime(file, (then, then))
        sweep(tmp_path)
        lease.confirm()
        before = path.read_text()
        end = time.monotonic() + 60
        while path.read_text() == before and time.monotonic() < end:
            time.sleep(0.01)
            for file in tmp_path.iterdir():
                os.utime(file, (then, then))
            sweep(tmp_path)
        assert path.read_text() != before, "the heart still beats"


def test_one_who_waits_for_a_lease_may_lose_his_name(tmp_path: Path) -> None:
    path = tmp_path / ".lease-item"
    waiter = Lease(path, "waiter", lambda label: True, beat=0.02)
    path.write_text(json.dumps({"owner": "dead", "label": "dead", "beats": "1"}))
    waiter.gone = lambda label: bool(waiter._private.unlink(missing_ok=True)) or True
    with waiter:
        waiter.confirm()


@pytest.mark.parametrize("skew", SKEWS)
def test_status_bears_wrong_clocks(
    skew: float, tmp_path: Path, prepared: Path, small: Callable[..., Config]
) -> None:
    from jobs.slurm import Job
    from jobs.status import _job, survey_run, table

    config, root = small(), tmp_path / "root"
    shutil.copytree(prepared, root)
    logs = root / "runs" / "small" / "logs"
    logs.mkdir(parents=True)
    now = time.time()
    content = {"state": "running", "done": 5, "total": 10, "time": now, "since": now + skew}
    (logs / "train.train-0.json").write_text(json.dumps(content))
    found = survey_run(config, root)
    (task,) = next(step for step in found["steps"] if step["step"] == "train.train")["tasks"]
    assert task["eta"] is None or task["eta"] >= 0
    assert table(found).row_count == len(STEPS)
    job = Job.__new__(Job)
    fields = {"id": "1", "state": "RUNNING", "reason": "", "node": ""}
    for name, value in {**fields, "started": now + skew, "submitted": now + 2 * skew}.items():
        object.__setattr__(job, name, value)
    told = _job(job)
    assert told["run_seconds"] >= 0
    assert told["queue_seconds"] >= 0


@pytest.mark.parametrize("skew", SKEWS)
def test_a_job_on_a_host_with_a_wrong_clock_has_all_its_time(
    skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.allocation import WARNING, of_slurm

    start = int(time.time() + skew)
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(start))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(start + 3600))
    deadline = of_slurm(60).deadline
    assert deadline == pytest.approx(time.monotonic() + 3600 - WARNING / 2, abs=60)
