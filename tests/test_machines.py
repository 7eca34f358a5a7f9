"""Bad environments: each ends in one line with a remedy, loses nothing, and can be fixed."""

from __future__ import annotations

import ast
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.housekeeping.clean import removable
from jobs.monitoring.progress_file import ProgressFile
from jobs.planning.planner import make_plan
from pipeline.config import Config, resolve
from pipeline.core.commit import sweep
from pipeline.core.error_translation import translate
from pipeline.core.errors import UserError
from pipeline.core.lease import Lease
from pipeline.core.receipt import load, write
from pipeline.core.task_log import read_status
from pipeline.dag import STEPS, find, survey
from pipeline.saved_config import save_config
from tests.helpers.runs import SMALL, Mount, refused

HERE = Path(__file__).parent.parent
PAGE = os.sysconf("SC_PAGE_SIZE")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, dataset: Path, models: Callable[[str], Path]) -> Run:
    """`run("submit", root)` runs a command about `small()` on one core, in its own process."""
    profile = tmp_path / "one-core.yaml"
    profile.write_text("scheduler: local\ncpus: 1\ngpus: 0\n")

    def call(
        command: str, root: Path, *words: str, before: tuple[str, ...] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        chosen = {"dataset": dataset, "model": models("llama"), "recipe": "lora-8bit"}
        chosen |= {"name": "small", "profile": profile, "root": root}
        given = [f"--{name}={value}" for name, value in chosen.items()]
        return subprocess.run(
            [*before, sys.executable, "-m", "jobs", command, *given, *SMALL, *words],
            cwd=HERE, capture_output=True, text=True, timeout=240, **more,
        )  # fmt: skip

    return call


def digests(root: Path, config: Config) -> dict[str, str]:
    """The content digest of every item but the report, which contains times."""
    return {
        f"{node.work.step.name} {name}": receipt.digest
        for node in survey(config, root)
        for name, receipt in node.done.items()
        if name != "report"
    }


def undo(step: str, root: Path, config: Config) -> Path:
    """Remove the units of a step, except the first chunk; returns the step's folder."""
    node = find(config, root, step)
    units = [node.work.folder / item.name for item in node.items or []]
    units += [*node.work.folder.glob("step-*"), *node.work.folder.glob("metrics.jsonl")]
    if step == "decompress.chunks":
        units += node.work.folder.glob("chunk-*")
    for unit in units:
        if unit.name != "chunk-00000-00000":
            shutil.rmtree(unit) if unit.is_dir() else unit.unlink()
    return node.work.folder


def confine(folder: Path, mount: Mount, options: Callable[[os.statvfs_result], str]) -> None:
    """Move a folder to its own file system, with mount options that depend on its content."""
    aside = folder.rename(folder.with_name("aside"))
    mount(folder, "size=64m")
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    shutil.rmtree(aside)
    mount(folder, "remount," + options(os.statvfs(folder)))


def leave(room: int) -> Callable[[os.statvfs_result], str]:
    """Mount options that leave so many bytes free."""
    return lambda found: f"size={(found.f_blocks - found.f_bfree) * found.f_frsize + room}"


# ---- disk space


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("download.corpus", 1 * PAGE),
        pytest.param("download.model", 50 * PAGE, marks=pytest.mark.thorough),
        pytest.param("decompress.chunks", 2 * PAGE, marks=pytest.mark.thorough),
        ("tokenize.shards", 3 * PAGE),
        pytest.param("tokenize.seal", 1 * PAGE, marks=pytest.mark.thorough),
        ("train.train", None),  # torch fails while writing the optimizer of the second checkpoint
        pytest.param("evaluate.base", 2 * PAGE, marks=pytest.mark.thorough),
        pytest.param("evaluate.overlap", 1 * PAGE, marks=pytest.mark.thorough),
        ("evaluate.report", 16 * PAGE),
    ],
)
def test_full_disk_gives_a_one_line_error_and_resumes_with_space(
    step: str,
    left: int | None,
    tmp_path: Path,
    finished: Path,
    small: Callable[..., Config],
    run: Run,
    mount: Mount,
) -> None:
    config, root = small(), tmp_path / "root"
    before = digests(finished, config)
    shutil.copytree(finished, root)
    if left is None:
        weights = next(root.glob("runs/*/train-*/step-*/trainable.safetensors"))
        left = 2 * weights.stat().st_size + 20 * PAGE
    folder = undo(step, root, config)
    confine(folder, mount, leave(left))
    line = refused(run("submit", root), 2)
    assert str(folder) in line
    assert "is full (No space left on device" in line or " are needed" in line
    assert "RUNS=" in line
    assert f"{step}-0.log" in line
    assert digests(root, config).items() < before.items() or step == "evaluate.report"
    assert not list(folder.glob(".tmp-*")), "nothing partial is left"
    mount(folder, "remount,size=64m")
    done = run("submit", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(root, config) == before
    assert "everything is done" in run("submit", root).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [pytest.param("decompress.chunks", marks=pytest.mark.thorough), "tokenize.shards"]
)
def test_missing_inodes_are_distinguished_from_missing_bytes(
    step: str, tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run, mount: Mount
) -> None:
    config, root = small(), tmp_path / "root"
    shutil.copytree(finished, root)
    folder = undo(step, root, config)
    confine(folder, mount, lambda found: f"nr_inodes={found.f_files - found.f_ffree + 3}")
    line = refused(run("submit", root), 2)
    assert f"{folder} can hold no more files: no inodes are left, though 6" in line
    assert "Remove files there" in line
    mount(folder, "remount,nr_inodes=10000")
    done = run("submit", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(root, config) == digests(finished, config)


@pytest.mark.slow
def test_file_size_limit_is_reported_as_one(
    tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run
) -> None:
    config, root = small(), tmp_path / "root"
    shutil.copytree(finished, root)
    undo("download.model", root, config)
    limit = (200_000, 200_000)
    done = run("submit", root, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    line = refused(done, 2)
    assert "reached the limit of 200 kB on the size of files" in line
    assert "ulimit -f unlimited" in line
    assert run("submit", root).returncode == 0
    assert digests(root, config) == digests(finished, config)


@pytest.mark.interpreter
@pytest.mark.slow
def test_exceeded_quota_is_reported_as_a_quota(
    tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run
) -> None:
    config, root = small(), tmp_path / "root"
    shutil.copytree(finished, root)
    undo("decompress.chunks", root, config)
    # network file systems report it only at fsync
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "real = os.fsync\n"
        "def fsync(file):\n"
        "    if '/.tmp-' in os.readlink(f'/proc/self/fd/{file}'):\n"
        f"        raise OSError({errno.EDQUOT}, os.strerror({errno.EDQUOT}))\n"
        "    real(file)\n"
        "os.fsync = fsync\n"
    )
    line = refused(run("submit", root, env={**os.environ, "PYTHONPATH": str(tmp_path)}), 2)
    folder = find(config, root, "decompress.chunks").work.folder
    assert f"your quota for {folder} is used up (Disk quota exceeded)" in line
    assert run("submit", root).returncode == 0
    assert digests(root, config) == digests(finished, config)


@pytest.mark.parametrize(
    "error",
    [
        OSError("1000000 requested and 12784 written"),
        Exception("I/O error: No space left on device (os error 28)"),
        RuntimeError("unexpected pos 704 vs 598"),
    ],
)
def test_errors_of_libraries_about_a_full_disk_are_recognized(
    error: Exception, tmp_path: Path
) -> None:
    if isinstance(error, RuntimeError):
        assert translate(error, tmp_path) is None, "a defect keeps its traceback"
        error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    fault = translate(error, tmp_path)
    assert fault is not None
    assert fault.what.startswith(f"{tmp_path} is full (No space left on device, ")


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_is_told(
    tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run, mount: Mount
) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    undo("evaluate.report", root, small())
    confine(root, mount, leave(0))
    line = refused(run("submit", root), 2)
    assert "0 bytes" in line
    assert f"are free in {root}: too little for evaluate 2 MB" in line
    done = run("submit", root, "--force")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = f"error: {root / 'runs' / 'small'} is full (No space left on device, 0 bytes are left)"
    assert done.stderr.splitlines()[-1].startswith(said)
    mount(root, "remount,size=64m")
    assert run("submit", root).returncode == 0


def fill(place: Path) -> Path:
    """Fill a file system; returns the file that does."""
    ballast = place / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:  # noqa: PT012
        while True:
            file.write(bytes(PAGE))
    return ballast


def test_progress_file_records_the_end_on_a_full_disk(tmp_path: Path, mount: Mount) -> None:
    disk = mount(tmp_path / "disk", "size=100k")
    journal = ProgressFile(disk / "task.json")
    journal.write(state="running", item="a much longer name than will be needed")
    fill(disk)
    journal.write(state="failed", message="the first error", exit_code=2)
    assert read_status(disk / "task.json")["message"] == "the first error"
    ProgressFile(disk / "none").write(state="failed")
    assert read_status(disk / "none") == {}, "a write error does not hide the first error"


@pytest.mark.slow
def test_a_log_on_a_full_disk_changes_no_exit_code(
    tmp_path: Path, finished: Path, small: Callable[..., Config], mount: Mount
) -> None:
    root, disk = tmp_path / "root", mount(tmp_path / "disk", "size=100k")
    shutil.copytree(finished, root)
    undo("tokenize.seal", root, small())
    fill(disk)
    script = (
        "import os, subprocess, sys\n"
        f"log = open({str(disk / 'log')!r}, 'ab')\n"
        "sys.exit(subprocess.run(sys.argv[1:], stdout=log, stderr=log).returncode)\n"
    )
    before = (sys.executable, "-c", script)
    save_config(small(), root)
    for step, code in (("tokenize.none", 2), ("tokenize.seal", 0)):
        plan = make_plan(small(), root).write()
        words = (sys.executable, "-m", "jobs", "run", step, f"--plan={plan}")
        for buffered in ("", "1"):
            given = {**os.environ, "PYTHONUNBUFFERED": buffered}
            done = subprocess.run([*before, *words], cwd=HERE, timeout=120, env=given)
            assert done.returncode == code
    assert (disk / "log").stat().st_size == 0
    assert digests(root, small()) == digests(finished, small())


def test_task_without_progress_file_is_still_reported(tmp_path: Path) -> None:
    from jobs.running.task_process import TaskProcess

    task = TaskProcess.__new__(TaskProcess)
    task.step, task.log, task._progress = "train.train", tmp_path / "log", tmp_path / "none"
    task._process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(2)"])
    task._process.wait(timeout=60)
    task.log.write_text("12:00 step 1\nerror: /x is full. Make room\n")
    failure = task.failure()
    assert (failure.what, failure.exit_code) == ("/x is full. Make room", 2)
    task.log.write_text("")
    assert task.failure().what == "train.train ended with code 2"


# ---- permissions


def unprivileged() -> tuple[str, ...]:
    """A command prefix that makes root obey file modes."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root obeys no modes, and there is no setpriv")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")


@pytest.mark.slow
def test_a_root_that_may_not_be_written_is_told(tmp_path: Path, run: Run) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o555)
    line = refused(run("submit", root, before=unprivileged()), 2)
    assert f"you have no permission to write to {root} (it belongs to " in line
    assert "mode 0555" in line
    assert "RUNS=" in line
    line = refused(run("submit", root / "below" / "it", before=unprivileged()), 2)
    assert f"you have no permission to write to {root}" in line
    root.chmod(0o000)
    line = refused(run("submit", root / "below", before=unprivileged()), 2)
    assert f"you have no permission to enter {root}" in line


@pytest.mark.slow
def test_other_users_run_is_refused_until_permissions_allow(
    tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run
) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    root, config = tmp_path / "root", small()
    shutil.copytree(finished, root)
    folder = undo("tokenize.seal", root, config)
    os.chown(folder, 12345, -1)
    line = refused(run("submit", root, before=unprivileged()), 2)
    assert (
        f"you have no permission to write to {folder} (it belongs to user 12345, mode 0755)" in line
    )
    assert "tokenize.seal-0.log" in line
    os.chown(folder, 0, -1)
    assert run("submit", root, before=unprivileged()).returncode == 0
    assert digests(root, config) == digests(finished, config)
    os.chown(root / "runs" / "small", 12345, -1)
    line = refused(run("submit", root, before=unprivileged()), 2)
    assert f"you have no permission to write to {root / 'runs' / 'small'}" in line
    assert "NAME=" in line


@pytest.mark.slow
@pytest.mark.parametrize("what", ["corpus", "model", "model folder", "dataset", "profile", "run"])
def test_unreadable_input_is_reported(
    what: str, tmp_path: Path, run: Run, dataset: Path, models: Callable[[str], Path]
) -> None:
    root, model = tmp_path / "root", tmp_path / "model"
    shutil.copytree(models("llama"), model)
    corpus = shutil.copy(dataset.with_name("small.jsonl.zst"), tmp_path / "c.jsonl.zst")
    mine, site = tmp_path / "mine.yaml", tmp_path / "site.yaml"
    mine.write_text(yaml.safe_dump({"urls": [corpus.as_uri()]}))
    site.write_text("scheduler: local\ncpus: 1\n")
    config = save_config(resolve(str(mine), str(model), "lora-8bit", SMALL, "small"), root)
    path = {
        "corpus": corpus,
        "model": model / "model.safetensors",
        "model folder": model,
        "dataset": mine,
        "profile": site,
        "run": config,
    }[what]
    mode = path.stat().st_mode
    path.chmod(0)
    words = (f"--dataset={mine}", f"--model={model}", f"--profile={site}")
    line = refused(run("submit", root, *words, before=unprivileged()), 2)
    assert str(path) in line
    assert "you have no permission to " in line or "Permission denied" in line
    assert "RUNS=" not in line, "the folder for results is not the problem"
    path.chmod(mode)
    assert run("plan", root, *words, before=unprivileged()).returncode == 0


@pytest.mark.slow
def test_read_only_root_is_reported_and_status_works(
    tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run, mount: Mount
) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    undo("tokenize.seal", root, small())
    confine(root, mount, lambda found: "ro")
    line = refused(run("submit", root), 2)
    assert f"{root} is on a file system that is mounted read-only" in line
    assert run("plan", root).returncode == 0
    for command in ("status", "report"):
        done = subprocess.run(
            [sys.executable, "-m", "jobs", command, f"--root={root}", "--name=small"],
            cwd=HERE,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    mount(root, "remount,rw")
    assert run("submit", root).returncode == 0
    assert digests(root, small()) == digests(finished, small())


# ---- clocks

SKEWS = [86_400.0 * days for days in (-3650, -2, 2, 3650)]


@pytest.mark.parametrize("skew", SKEWS)
def test_wrong_clocks_redo_and_remove_nothing(
    skew: float, tmp_path: Path, prepared: Path, small: Callable[..., Config]
) -> None:
    config, root = small(), tmp_path / "root"
    shutil.copytree(prepared, root)
    save_config(config, root)
    before = digests(root, config)
    logs = root / "runs" / "small" / "logs"
    logs.mkdir()
    then = time.time() + skew
    label = f"process 1 of user {os.getuid()} on elsewhere, born 1"
    for path in root.rglob("receipt.json"):
        receipt = load(path.parent)
        assert receipt is not None
        write(replace(receipt, written=then), path.parent)
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
    assert half.is_dir(), "its writer may be alive on a host with another clock"
    assert half not in removable(root, None)
    assert not [path for path in removable(root, None) if path.name[0] != "."]
    (logs / "tokenize.shards-0.json").write_text(json.dumps({"state": "done", "label": label}))
    assert (half in removable(root, None)) == (skew < 0), "no process works there, and it is old"


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
        assert path.read_text() != before, "the heartbeat goes on"


def test_waiter_recreates_its_removed_lease_file(tmp_path: Path) -> None:
    path = tmp_path / ".lease-item"
    waiter = Lease(path, "waiter", lambda label: True, beat=0.02)
    path.write_text(json.dumps({"owner": "dead", "label": "dead", "beats": "1"}))
    waiter.has_ended = lambda label: bool(waiter._private.unlink(missing_ok=True)) or True
    with waiter:
        waiter.confirm()


@pytest.mark.parametrize("skew", SKEWS)
def test_status_works_with_wrong_clocks(
    skew: float, tmp_path: Path, prepared: Path, small: Callable[..., Config]
) -> None:
    from jobs.cluster.slurm_cli import Job
    from jobs.monitoring.status import _job, status_table, survey_run

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
    assert status_table(found).row_count == len(STEPS)
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
    from jobs.cluster.allocation import WARNING_SECONDS, slurm_allocation

    start = int(time.time() + skew)
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(start))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(start + 3600))
    deadline = slurm_allocation(60).deadline
    assert deadline == pytest.approx(time.monotonic() + 3600 - WARNING_SECONDS / 2, abs=60)


# ---- Python and its packages


@pytest.mark.slow
def test_an_old_python_is_told() -> None:
    found = (shutil.which(f"python3.{minor}") for minor in (6, 7, 8, 9, 10))
    for path in filter(None, found):
        done = subprocess.run(
            [path, "-m", "jobs", "plan"], cwd=HERE, capture_output=True, text=True, timeout=60
        )
        if "error: this is Python 3." in done.stderr:
            assert "3.11 or newer is needed. Run make" in refused(done, 2)
            return
    # without an old Python here, check that one could parse the message
    for minor in (4, 7, 10):
        ast.parse((HERE / "jobs" / "__init__.py").read_text(), feature_version=(3, minor))
    old = "import sys; sys.version_info = (3, 9); sys.version = '3.9.1 x'; import jobs"
    done = subprocess.run(
        [sys.executable, "-c", old], cwd=HERE, capture_output=True, text=True, timeout=60
    )
    assert "error: this is Python 3.9.1, and 3.11 or newer is needed" in refused(done, 2)


BLOCKER = """
import sys, importlib.machinery
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r} and {when}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("package", "step"),
    [
        ("typer", ""),
        ("pydantic", ""),
        ("xxhash", ""),
        pytest.param("pyarrow", "tokenize.shards", marks=pytest.mark.slow),
        pytest.param("tokenizers", "tokenize.shards", marks=pytest.mark.slow),
        pytest.param("torch", "train.train", marks=pytest.mark.slow),
        pytest.param("bitsandbytes", "train.train", marks=pytest.mark.slow),
    ],
)
def test_a_package_that_is_not_there_is_told_with_the_remedy(
    package: str,
    step: str,
    tmp_path: Path,
    finished: Path,
    small: Callable[..., Config],
    run: Run,
) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    if step:
        undo(step, root, small())
    # only the task misses the package, not the command that starts it
    when = f"{step!r} in sys.argv" if step else "True"
    text = BLOCKER.format(name=package, when=when)
    (tmp_path / "sitecustomize.py").write_text(text)
    line = refused(run("submit", root, env={**os.environ, "PYTHONPATH": str(tmp_path)}), 2)
    assert package in line
    assert "is not installed (in " in line
    assert f"{sys.executable} -m pip install -r env/requirements.txt" in line
    assert (f"{step}-0.log" in line) == bool(step)


def test_a_package_of_ours_that_is_missing_is_a_defect(tmp_path: Path) -> None:
    assert translate(ModuleNotFoundError("x", name="pipeline.core.none"), tmp_path) is None
    broken = translate(ImportError("libcudart.so.12: cannot open shared object file"), tmp_path)
    assert broken is not None
    assert "a package fails: libcudart.so.12: cannot open shared object file (in " in broken.what


# ---- GPUs


class Gpu:
    """Let torch report a GPU."""

    def __init__(self, patch: pytest.MonkeyPatch, capability: tuple[int, int], seen: int) -> None:
        import torch

        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setattr(torch.version, "cuda", "12.6")
        patch.setattr(torch.cuda, "is_available", lambda: seen > 0)
        patch.setattr(torch.cuda, "device_count", lambda: seen)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "Old GPU")
        patch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_90"])


def test_a_build_of_torch_without_cuda_is_told_where_a_gpu_was_granted() -> None:
    import torch

    from pipeline.modeling.device import pick_device

    assert pick_device(0).type == "cpu"
    if torch.version.cuda:
        pytest.skip("this build is with CUDA")
    with pytest.raises(UserError, match=r"was allocated, .* has no CUDA.* make plan TORCH=cu126"):
        pick_device(1)


def test_gpus_that_torch_cannot_use_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.modeling.device import pick_device
    from pipeline.modeling.loading import load_base

    Gpu(monkeypatch, (7, 5), 1)
    assert pick_device(1).type == "cuda"
    with pytest.raises(UserError, match="it sees 1"):
        pick_device(2, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES='' hides all GPUs. Unset it"):
        pick_device(1)
    Gpu(monkeypatch, (7, 0), 1)
    with pytest.raises(UserError, match=r"Old GPU has compute capability 7.0, .* needs 7.5"):
        pick_device(1)
    with pytest.raises(UserError, match=r"weights=int8 needs .* 7.5 or more, and Old GPU has 7.0"):
        load_base(Path("none"), "int8", torch.device("cuda", 0))

    def warn() -> bool:
        warnings.warn("The NVIDIA driver is too old (found 9000).\nMore", stacklevel=1)
        return False

    Gpu(monkeypatch, (7, 5), 0)
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    with pytest.raises(UserError, match=r"is too old \(found 9000\) \(built for CUDA 12.6\)"):
        pick_device(1)


@pytest.mark.slow
def test_a_granted_gpu_that_torch_cannot_use_ends_training_in_one_line(
    tmp_path: Path, finished: Path, small: Callable[..., Config], run: Run
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use a GPU here")
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    undo("train.train", root, small())
    profile = tmp_path / "gpu.yaml"
    profile.write_text("scheduler: local\ncpus: 1\ngpus: 1\n")
    line = refused(run("submit", root, f"--profile={profile}"), 2)
    assert "a GPU was allocated, but torch" in line
