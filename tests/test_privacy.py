"""What a run leaves behind, and where: nothing at home, no secret, nothing open to others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import SMALL, write_corpus
from servers import HubServer
from tiny import make_old_form

HERE = Path(__file__).parent.parent


def jobs(*words: str | Path, code: int = 0, **env: str) -> str:
    """What `python -m jobs` prints, in an environment of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, words)],
        cwd=HERE,
        env={"PATH": os.environ["PATH"], "GRISTMILL_PROFILE": "local", "NO_PROXY": "127.0.0.1"}
        | {"OMP_NUM_THREADS": "1"}
        | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


@pytest.mark.slow
def test_nothing_is_written_at_home(models: Callable[[str], Path], tmp_path: Path) -> None:
    """Corpus and model come from a hub, so that its libraries are used, too."""
    home, root = tmp_path / "home", tmp_path / "root"
    home.mkdir()
    corpus = tmp_path / "corpus"
    (corpus / "data").mkdir(parents=True)
    write_corpus(corpus / "data" / "train.jsonl.zst")
    dataset = tmp_path / "small.yaml"
    dataset.write_text(yaml.safe_dump({"urls": ["hf://me/corpus"], "revision": "main"}))
    model = make_old_form(models("opt"), tmp_path / "model")
    with HubServer(models={"me/model": model}, datasets={"me/corpus": corpus}) as hub:
        given = (f"--root={root}", f"--dataset={dataset}", "--model=me/model", "--name=small")
        env = {"HOME": str(home), "HF_ENDPOINT": hub.url}
        jobs("run", "download", *given, *SMALL, **env)  # by hand
        jobs("submit", *given, *SMALL, **env)
    assert (root / "runs" / "small" / "report" / "report.html").exists()
    assert not below(home)
    assert (root / "cache" / "matplotlib").is_dir()


PLACES = """
import json, os, sys
from pathlib import Path
from jobs.task import prepare
prepare("train.train", Path(sys.argv[1]))
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
    """As the libraries say themselves, after they are imported; a value of the user's stays."""
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
