"""What a run writes, and where: nothing in the home directory, no secrets, nothing public."""

from __future__ import annotations

import base64
import grp
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from jobs.core.permissions import apply_umask, create_run_folders
from jobs.planning.planner import make_plan
from pipeline.config import Config
from pipeline.core.errors import UserError
from pipeline.saved_config import save_config
from tests.helpers.files import mode
from tests.helpers.queued import PATIENCE, Queued
from tests.helpers.runs import SMALL, write_corpus
from tests.helpers.servers import FileServer, HubServer, Request
from tests.helpers.tiny import make_old_form

HERE = Path(__file__).parents[3]


def jobs(*words: str | Path, code: int = 0, **env: str) -> str:
    """The output of `python -m jobs` with a new environment and umask 0."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, words)],
        cwd=HERE,
        env={
            "PATH": os.environ["PATH"],
            "GRISTMILL_PROFILE": os.environ["GRISTMILL_PROFILE"],
            "NO_PROXY": "127.0.0.1",
        }
        | {"OMP_NUM_THREADS": "1"}
        | env,
        umask=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def readable(folder: Path, by: int) -> set[str]:
    """The paths, from the folder down, that have one of these permission bits."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return {str(path.relative_to(folder)) for path in paths if path.stat().st_mode & by}


def below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


PLACES = """
import json, os, sys
from pathlib import Path
from jobs.core.environment import prepare_environment
prepare_environment("train.train", Path(sys.argv[1]))
import datasets, huggingface_hub.constants as hub, matplotlib, torch.hub
import transformers.utils.hub
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils.cpp_extension import _get_build_directory
print("OUT" + json.dumps({
    "hub": hub.HF_HUB_CACHE, "assets": hub.HF_ASSETS_CACHE, "xet": hub.HF_XET_CACHE,
    "datasets": str(datasets.config.HF_DATASETS_CACHE),
    "modules": str(datasets.config.HF_MODULES_CACHE),
    "code": str(transformers.utils.hub.HF_MODULES_CACHE),
    "matplotlib": matplotlib.get_cachedir(), "torch": torch.hub.get_dir(),
    "inductor": cache_dir(), "extensions": _get_build_directory("x", False),
    "login": hub.HF_TOKEN_PATH,
}))
"""


@pytest.mark.slow
def test_caches_of_libraries_are_below_the_root(tmp_path: Path) -> None:
    """Ask the imported libraries; a value that the user has set stays."""
    done = subprocess.run(
        [sys.executable, "-c", PLACES, tmp_path / "root"],
        cwd=HERE,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "HF_XET_CACHE": str(tmp_path / "mine"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    places = yaml.safe_load(done.stdout.rpartition("OUT")[2])
    assert places.pop("xet") == str(tmp_path / "mine")
    assert places.pop("login") == str(tmp_path / "home" / ".cache" / "huggingface" / "token")
    assert not {name for name, place in places.items() if not place.startswith(f"{tmp_path}/root/")}


# random each time: a run records its code, so a constant here would always be found
SECRETS = {name: secrets.token_hex(16) for name in ("signature", "password", "proxy")}
SECRETS["token"] = "hf_" + secrets.token_hex(17)


def holding(folder: Path, *hidden: str) -> set[str]:
    """The files below a folder that contain one of these strings, or have it in their path."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        for secret in hidden
        if secret in str(path) or (path.is_file() and secret.encode() in path.read_bytes())
    }


@contextmanager
def watching_processes() -> Iterator[set[str]]:
    """Collect the command lines of all processes on this machine, which every user can see."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.timeout(900)
def test_a_run_keeps_no_secret_and_writes_nothing_at_home(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    """The corpus has a signed URL and a login; the model comes from a hub, so its libraries run.

    The signature is only in the private files that define the run.
    """
    root, home = tmp_path / "root", tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRETS['password']}")
    (home / ".netrc").chmod(0o600)
    corpus = write_corpus(tmp_path / "c.jsonl.zst").read_bytes()
    login = "Basic " + base64.b64encode(f"me:{SECRETS['password']}".encode()).decode()

    def lets_in(request: Request) -> bool:
        signed = request.query == f"Expires=9&Signature={SECRETS['signature']}"
        return signed and request.headers.get("authorization") == login

    model = make_old_form(models("opt"), tmp_path / "model")
    with (
        FileServer({"/c.jsonl.zst": corpus}) as server,
        HubServer(models={"me/model": model}) as hub,
        watching_processes() as commands,
    ):
        server.behavior.authorize = lets_in
        url = f"{server.url}/c.jsonl.zst?Expires=9&Signature={SECRETS['signature']}"
        dataset = tmp_path / "small.yaml"
        dataset.write_text(yaml.safe_dump({"urls": [url]}))
        env = {
            "HOME": str(home),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": SECRETS["token"],
            "HTTPS_PROXY": f"http://me:{SECRETS['proxy']}@127.0.0.1:9",
        }
        given = (f"--root={root}", f"--dataset={dataset}", "--model=me/model", "--name=small")
        given = (*given, *SMALL)
        told = jobs("submit", *given, **env)
        told += jobs("plan", "--json", *given, **env) + jobs("status", "--json", *given, **env)
        server.files.clear()
        for path in root.glob("data/small/raw-*/corpus/receipt.json"):
            path.unlink()
        told += jobs("submit", *given, code=3, **env)  # refused before it is queued
        told += jobs("run", "download.corpus", *given, code=3, **env)
    assert (root / "runs/small/report/report.html").exists()
    assert f"{server.url}/c.jsonl.zst?…: status 404" in told
    assert any("run train.train --plan=" in command for command in commands)
    for secret in SECRETS.values():
        assert secret not in told
        assert not [command for command in commands if secret in command]
    plans = {str(path.relative_to(root)) for path in root.glob("runs/small/plans/*.json")}
    assert holding(root, SECRETS["signature"]) == {"runs/small/config.yaml", *plans}
    assert not holding(root, SECRETS["password"], SECRETS["proxy"], SECRETS["token"], login)
    assert not readable(root, 0o077), "no other user can read it"
    journal = json.loads((root / "runs/small/logs/download.corpus-0.json").read_text())
    assert "c.jsonl.zst?…: status 404" in journal["message"]
    assert below(home) == [".netrc"]
    assert (root / "cache" / "matplotlib").is_dir()
    assert not list(root.rglob("__pycache__")), "a full disk would truncate what is in it"


@pytest.mark.slow
def test_a_data_set_of_a_hub_leaves_nothing_at_home(tmp_path: Path) -> None:
    home, corpus = tmp_path / "home", tmp_path / "corpus"
    home.mkdir()
    (corpus / "data").mkdir(parents=True)
    write_corpus(corpus / "data" / "train.jsonl.zst")
    dataset = tmp_path / "small.yaml"
    dataset.write_text(yaml.safe_dump({"urls": ["hf://me/corpus"], "revision": "main"}))
    with HubServer(datasets={"me/corpus": corpus}) as hub:
        given = (f"--root={tmp_path / 'root'}", f"--dataset={dataset}", "--model=gpt2")
        jobs("run", "download.corpus", *given, HOME=str(home), HF_ENDPOINT=hub.url)
    assert list(tmp_path.glob("root/data/small/raw-*/*/receipt.json"))
    assert not below(home)


@pytest.mark.slow
def test_a_group_may_read_all_of_a_run(
    models: Callable[[str], Path], tmp_path: Path, group: str
) -> None:
    root, site = tmp_path / "new" / "root", tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"extends": os.environ["GRISTMILL_PROFILE"], "group": group}))
    dataset, corpus = tmp_path / "small.yaml", write_corpus(tmp_path / "c.jsonl.zst")
    given = (f"--root={root}", f"--dataset={dataset}", "--name=small", f"--profile={site}")
    with FileServer({"/c.jsonl.zst": corpus.read_bytes()}) as server:
        dataset.write_text(yaml.safe_dump({"urls": [server.url + "/c.jsonl.zst"]}))
        jobs("submit", *given, f"--model={models('llama')}", *SMALL, HOME=str(tmp_path))
    everything = [root.parent, root, *(path for path in root.rglob("*") if not path.is_symlink())]
    assert any(path.name == "trainable.safetensors" for path in everything)
    assert any(path.name == "report.html" for path in everything)
    assert {path.stat().st_gid for path in everything} == {grp.getgrnam(group).gr_gid}
    assert not readable(root.parent, 0o027), "by others, or writable"
    folders = {path for path in everything if path.is_dir()}
    assert {mode(path) for path in folders} == {"0o2750"}
    assert {mode(path) for path in everything if path not in folders} <= {"0o640", "0o750"}


def test_existing_permissions_are_kept(tmp_path: Path, umask: None, group: str) -> None:
    root = tmp_path / "root"
    (root / "data" / "nih").mkdir(parents=True)
    (root / "runs" / "old").mkdir(parents=True)
    create_run_folders(root, "new", None)
    assert [mode(root), mode(root / "data"), mode(root / "data" / "nih")] == ["0o777"] * 3
    assert [mode(root / "models"), mode(root / "runs" / "new")] == ["0o700"] * 2
    (root / "runs" / "old").chmod(0o755)  # its owner has made it public
    apply_umask(root / "runs" / "old")
    (root / "runs" / "old" / "logs").mkdir()
    assert mode(root / "runs" / "old" / "logs") == "0o755"
    apply_umask(root / "runs" / "new")
    (root / "runs" / "new" / "config.yaml").touch()
    assert mode(root / "runs" / "new" / "config.yaml") == "0o600"


@pytest.mark.slow
def test_task_files_have_the_permissions_of_the_run(
    small: Callable[..., Config], tmp_path: Path, umask: None
) -> None:
    """The umask of the node does not matter."""
    root = tmp_path / "root"
    create_run_folders(root, "small", None)
    save_config(small(), root)
    plan = make_plan(small(), root).write()
    jobs("run", "download.corpus", f"--plan={plan}", HOME=str(tmp_path))
    assert list(root.glob("data/small/raw-*/corpus/receipt.json"))
    linked = {path for path in readable(root, 0o077) if path.endswith(".zst")}
    assert readable(root, 0o077) == linked, "the user's own file keeps its mode"


def test_group_without_access_is_refused(tmp_path: Path, umask: None, group: str) -> None:
    with pytest.raises(UserError, match=r"there is no group 'nobody here'\. list your groups with"):
        create_run_folders(tmp_path / "root", "x", "nobody here")
    assert not (tmp_path / "root").exists()
    create_run_folders(tmp_path / "the root", "old", None)
    with pytest.raises(UserError, match=rf"data'?, .* not open to the group {group} ") as caught:
        create_run_folders(tmp_path / "the root", "new", group)
    subprocess.run(caught.value.hint, shell=True, check=True)
    create_run_folders(tmp_path / "the root", "new", group)
    assert {mode(p) for p in (tmp_path / "the root").rglob("*")} == {"0o2750"}


def test_group_without_membership_is_refused(tmp_path: Path, umask: None) -> None:
    """Run in a process without supplementary groups."""
    other = next(g.gr_name for g in grp.getgrall() if g.gr_gid not in (os.getegid(), 65534))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            create_run_folders(tmp_path / "root", "x", other)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        said = f"you are not in the group {other}. list your groups with: id -Gn"
        assert told.read() == f"UserError: {said}"


@pytest.mark.slurm
@pytest.mark.slow
def test_jobs_leave_no_secret_and_nothing_open(
    run: Queued, umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes scripts, pickles and logs of SLURM and submitit."""
    monkeypatch.setenv("HF_TOKEN", SECRETS["token"])
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRETS['proxy']}@127.0.0.1:9")
    create_run_folders(run.root, run.config.name, None)
    before = os.umask(0)  # jobs inherit the umask of the submitting process
    job = run.submit()["train.train"]
    os.umask(before)
    run.cluster.wait(job, "COMPLETED", timeout=PATIENCE)
    folder = run.root / "runs" / run.config.name
    assert list(folder.glob("logs/train.train/*_submission.sh"))
    assert list(folder.glob("logs/train.train/*.out"))
    assert mode(folder) == "0o700"
    (trained,) = folder.glob("train-*")
    assert not readable(trained, 0o077)
    assert not holding(run.root, SECRETS["token"], SECRETS["proxy"])


def test_a_snapshot_of_the_code_is_as_open_as_the_run(tmp_path: Path, umask: None) -> None:
    from jobs.planning.snapshot import take

    create_run_folders(tmp_path, "x", None)
    code = take(tmp_path / "runs" / "x")
    assert (code / "pipeline" / "conf" / "datasets" / "nih.yaml").is_file()
    assert not readable(code, 0o077)
