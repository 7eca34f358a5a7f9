"""The command line: one-line errors, plan, status, logs and clean, and fast answers."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.config import Config
from pipeline.saved_config import save_config
from tests.helpers.runs import SMALL, refused, write_corpus
from tests.helpers.servers import FileServer

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[3]
Jobs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """Run `python -m jobs …` with a new root."""

    def call(*words: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
        command, *rest = words
        return subprocess.run(
            [sys.executable, "-m", "jobs", command, f"--root={root or tmp_path / 'root'}", *rest],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return call


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset=nihh"], "unknown dataset 'nihh'; did you mean nih?"),
        (["--dataset=nih", "--model=opt-125n"], "unknown model 'opt-125n'; did you mean opt-125m?"),
        (["--dataset=nih", "--recipe=lorra"], "unknown recipe 'lorra'; did you mean lora?"),
        (["--dataset=nih", "train.lrr=1"], "unknown setting train.lrr; did you mean train.lr?"),
        (["--dataset=nih", "trian.lr=1"], "unknown setting trian; did you mean train?"),
        (["--dataset=nih", "train.lr=fast"], "train.lr = 'fast'"),
        (["--dataset=nih", "train.lr"], "Write it as section.field=value"),
        (["--dataset=nih", "train.method=full"], "cannot train weights=int8"),
        (["--dataset=nih", "train.tokens=1", "train.steps=1"], "at most one of"),
        (["--dataset=nih", "--profile=grene"], "profile 'grene' is not known"),
        (["--dataset=nih", "--file=/not/there"], "FILE=/not/there"),
        (["--dataset=nih", "--name=a/b"], "cannot be a folder's name"),
        ([], "name a data set"),
        (["--datset=nih"], "--datset"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "submit"])
def test_a_mistake_is_reported_in_one_line(
    jobs: Jobs, command: str, words: list[str], told: str, tmp_path: Path
) -> None:
    assert told in refused(jobs(command, *words), 2)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("word", ["weights=nf4", "attention=flash", "precision=fp16"])
@pytest.mark.parametrize("command", ["plan", "submit"])
def test_settings_that_need_a_gpu_are_refused_without_one(
    jobs: Jobs, command: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    site = tmp_path / "site.yaml"
    site.write_text("jobs: {train: {gpus: 0}, evaluate: {gpus: 1}}\n")
    for profile in ("local", site):
        line = refused(jobs(command, "--dataset=nih", f"--profile={profile}", f"train.{word}"), 2)
        assert f"train.{word} needs a GPU, and there is none here" in line
    assert not (tmp_path / "root").exists()


def test_a_dead_url_is_reported_with_its_status_and_an_alternative(
    jobs: Jobs, tmp_path: Path
) -> None:
    with FileServer({}) as server:
        path = tmp_path / "gone.yaml"
        urls = [server.url + "/a.zst", "http://127.0.0.1:9/b.zst"]
        path.write_text(yaml.safe_dump({"urls": urls, "instead": "nih"}))
        line = refused(jobs("submit", f"--dataset={path}"), 3)
    assert "404" in line
    assert "127.0.0.1:9" in line
    assert "try DATASET=nih" in line


@pytest.mark.parametrize("command", ["plan", "submit"])
def test_missing_downloads_offline_are_reported_before_queueing(
    jobs: Jobs, command: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refused(jobs(command, f"--dataset={dataset}", "--model=me/opt"), 3)
    assert "model me/opt: http://127.0.0.1:9 cannot be reached" in line
    assert line.endswith("or run make fetch where there is internet")
    path = tmp_path / "hub.yaml"
    path.write_text(yaml.safe_dump({"urls": ["hf://me/texts"]}))
    line = refused(jobs(command, f"--dataset={path}", "--model=me/opt"), 3)
    assert "dataset me/texts: http://127.0.0.1:9 cannot be reached" in line
    assert "; and model me/opt: http://127.0.0.1:9 cannot be reached" in line
    assert not (tmp_path / "root").exists()


def test_files_downloaded_elsewhere_work_offline(
    jobs: Jobs, tmp_path: Path, models: Callable[[str], Path]
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl.zst")
    here, there = tmp_path / "usb stick", tmp_path / "its RUNS"
    path = tmp_path / "mine.yaml"
    with FileServer({"/c.jsonl.zst": corpus.read_bytes()}) as server:
        path.write_text(yaml.safe_dump({"urls": [server.url + "/c.jsonl.zst"]}))
        words = (f"--dataset={path}", f"--model={models('llama')}", *SMALL)
        gpu = jobs("fetch", *words, "train.precision=fp16", "--name=gpu", root=here)
        assert gpu.returncode == 0, "it trains elsewhere"
        done = jobs("fetch", *words, root=here)
        assert done.returncode == 0, done.stderr
        again = jobs("fetch", *words, root=here)
    command = done.stdout.splitlines()[-1]
    assert again.stdout.splitlines()[-1] == command
    *_, first, second, to = shlex.split(command)
    assert to == "cluster:/its/RUNS/"
    for part in (first, second):
        source, _, place = part.partition("/./")
        shutil.copytree(Path(source) / place, there / place)
    done = jobs("submit", *words, root=there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "download." not in done.stdout
    assert "report.html" in done.stdout


def test_a_wrong_sha256_is_reported(
    jobs: Jobs, tmp_path: Path, models: Callable[[str], Path]
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl.zst")
    with FileServer({"/c.jsonl.zst": corpus.read_bytes()}) as server:
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump({"urls": [server.url + "/c.jsonl.zst"], "sha256": "0" * 64}))
        line = refused(jobs("submit", f"--dataset={path}", f"--model={models('opt')}"), 3)
    assert "sha256" in line
    assert "000000" in line


def test_a_name_belongs_to_one_configuration(
    jobs: Jobs, dataset: Path, models: Callable[[str], Path]
) -> None:
    from pipeline.config import resolve
    from pipeline.saved_config import save_config

    root = Path(dataset.parent / "frozen")
    save_config(resolve(str(dataset), str(models("opt")), name="x"), root)
    words = (f"--dataset={dataset}", f"--model={models('opt')}", "--name=x", "train.lr=1e-5")
    line = refused(jobs("submit", *words, root=root), 2)
    assert "train.lr: 0.0002 in the run, 1e-05 now" in line


def test_plan_and_status_follow_a_run(
    jobs: Jobs, small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(prepared, root)
    config = small()
    save_config(config, root)
    dataset, model = str(config.dataset.urls[0]), str(config.model.path)
    found = json.loads(jobs("status", "--json").stdout)
    states = {step["step"]: step["state"] for step in found["steps"]}
    assert states["tokenize.seal"] == "done"
    assert states["train.train"] == "to do"
    assert states["evaluate.tuned"] == "waiting"
    path = Path(dataset.removeprefix("file://")).with_name("small.yaml")
    words = (f"--dataset={path}", f"--model={model}", "--recipe=lora-8bit", "--name=small", *SMALL)
    planned = json.loads(jobs("plan", "--json", *words).stdout)
    assert [array["step"] for array in planned["arrays"]] == [
        "train.train",
        "evaluate.base",
        "evaluate.tuned",
        "evaluate.overlap",
        "evaluate.report",
    ]


def test_a_stage_by_hand_names_its_missing_inputs(jobs: Jobs, dataset: Path) -> None:
    line = refused(jobs("run", "train", f"--dataset={dataset}"), 3)
    assert "tokenize.seal" in line
    assert "make pipeline" in line


def test_status_is_fast_and_imports_nothing_heavy(
    jobs: Jobs, small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    from pipeline.saved_config import save_config

    root = tmp_path / "root"
    shutil.copytree(prepared, root)
    save_config(small(), root)
    code = (
        "import sys; sys.argv = ['jobs', 'status', '--root=' + sys.argv[1]]\n"
        "import jobs.__main__ as m\n"
        "try: m.main()\n"
        "finally: print(sorted({n.split('.')[0] for n in sys.modules}), file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    loaded = set(yaml.safe_load(done.stderr.splitlines()[-1]))
    assert not loaded & {
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "datasets",
        "numpy",
        "pyarrow",
    }
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"status: {spent:.2f} s of CPU")


def test_clean_removes_leftovers_and_nothing_that_a_run_needs(
    jobs: Jobs, small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    from pipeline.saved_config import save_config

    root = tmp_path / "root"
    shutil.copytree(prepared, root)
    save_config(small(), root)
    kept = set(root.rglob("receipt.json"))
    chunks = next(root.glob("data/*/chunks-*"))
    host = socket.gethostname()
    dead, live = (chunks / f".tmp-x-{host}-{pid}-abcdef01" for pid in (2**22 + 1, os.getpid()))
    dead.mkdir()
    live.mkdir()
    (chunks / ".damaged-y").mkdir()
    orphan = chunks.with_name("chunks-00000000")
    orphan.mkdir()
    shown = jobs("clean", "--dry-run")
    assert orphan.exists()
    assert str(orphan) in shown.stdout
    assert jobs("clean").returncode == 0
    assert not orphan.exists()
    assert list(chunks.glob(".*-*")) == [live]
    assert set(root.rglob("receipt.json")) == kept


def test_read_only_commands_work_while_slurm_does_not_answer(
    jobs: Jobs,
    small: Callable[..., Config],
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not shutil.which("sbatch"):
        pytest.skip("SLURM is not installed here")
    monkeypatch.setenv("SLURM_CONF", "/dev/null")
    for name in ("GRISTMILL_PROFILE", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "root"
    shutil.copytree(prepared, root)
    save_config(small(), root)
    for command, told, code in (
        ("status", "seal", 0),
        ("report", "in progress", 0),
        ("logs", "small has no logs yet", 3),
        ("export", "the training of small is not finished", 3),
    ):
        done = jobs(command)
        assert done.returncode == code, done.stderr
        assert f"this is based on files alone, those in {root}\n" in done.stderr
        assert told in done.stdout + done.stderr
    before = set(root.rglob("*"))
    for command in ("submit", "cancel", "clean"):
        assert "PROFILE=local runs without one" in refused(jobs(command, "--dataset=nih"), 3)
    assert set(root.rglob("*")) == before


def test_names_with_special_characters_work(
    jobs: Jobs, dataset: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "-a b'c\"é$(x)"
    root = tmp_path / "the 'root' é"
    words = (f"--dataset={dataset}", f"--model={models('opt')}", f"--name={name}")
    done = jobs("run", "download", *words, root=root)
    assert done.returncode == 0, done.stderr
    assert (root / "runs" / name / "config.yaml").exists()
    assert os.listdir(root / "data" / "small")
