"""Models and data sets from a hub on the loopback, as the installed libraries ask for them.

HF_ENDPOINT is read when these libraries are imported, so each test is a process of its own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.core.errors import InputError
from pipeline.download.hub import choose
from tests.helpers.servers import HubServer, certify
from tests.helpers.tiny import make_old_form

ROOT = Path(__file__).parents[2]
WEIGHTS = random.Random(3).randbytes(400_000)
pytestmark = pytest.mark.slow  # every test starts a Python with the hub's libraries

Run = Callable[[HubServer, str], dict[str, Any]]
START = """
import json, pathlib
from pipeline.download import hub, hub_dataset as rows
from pipeline.download.transport import Patience
from pipeline.core.errors import Failure, Interrupted
from pipeline.core.registry import Dataset
from pipeline.core.stop import Stop

here = pathlib.Path.cwd()
quick = Patience(attempts=2, base=0.001, connect=2, read=2, sync=65_536)
quiet = lambda done, total: None
out = {}

def said(call):
    try:
        call()
    except Failure as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
    return "nothing"

def stop_after(limit):
    stop = Stop()
    return stop, lambda done, total: stop.set("enough") if done >= limit else None
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run code against a server in another process; returns its `out`."""

    def call(server: HubServer, code: str, **env: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", f"{START}\n{code}\nprint('OUT' + json.dumps(out))"],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "HOME": str(tmp_path),
                "HF_HOME": str(tmp_path / "hf"),
                "HF_ENDPOINT": server.url,
                "NO_PROXY": "127.0.0.1",
                "OMP_NUM_THREADS": "1",
                **env,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.rpartition("OUT")[2])

    return call


@pytest.fixture
def repos(tmp_path: Path) -> dict[str, Path]:
    """A model in all forms at once, an old one, one without weights."""
    side = {"config.json": b"{}", "tokenizer.json": b"{}", "modeling_x.py": b"raise SystemExit"}
    forms = {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"x", "flax_model.msgpack": b"x"}
    content = {
        "me/full": side | forms | {"onnx/model.onnx": b"x", "README.md": b"#", "tf_model.h5": b"x"},
        "me/old": {"config.json": b"{}", "vocab.json": b"{}", "pytorch_model.bin": WEIGHTS},
        "me/none": side | {"flax_model.msgpack": b"x"},
    }
    for repo, files in content.items():
        for name, data in files.items():
            path = tmp_path / "repos" / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return {repo: tmp_path / "repos" / repo for repo in content}


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A data set like common-pile/caselaw_access_project: three gzip files of JSON lines."""
    folder = tmp_path / "repos" / "me" / "cases"
    for part in range(3):
        rows = [
            {
                "text": f"Case {part}.{i} of the court. " * 5,
                "id": f"{part}-{i}",
                "metadata": {"year": 1900 + i, "author": "Née" if i % 3 else None},
                "added": "2024-01-01",
            }
            for i in range(250)
        ]
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        path = folder / "data" / f"cap_{part:05}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data, mtime=0))
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return folder


def test_model_files(run: Run, repos: dict[str, Path], tmp_path: Path) -> None:
    code = """
stop, progress = stop_after(100_000)
try:
    hub.fetch_repo("me/full", "main", here / "full", stop, progress, quick)
except Interrupted as error:
    out["interrupted"] = str(error)
out["half"] = (here / "full/model.safetensors").stat().st_size
seen = []
show = lambda *p: seen.append(p)
out["full"] = hub.fetch_repo("me/full", "main", here / "full", Stop(), show, quick)
out["seen"] = seen[-1]
out["old"] = hub.fetch_repo("me/old", None, here / "old", Stop(), quiet, quick)
"""
    with HubServer(models=repos) as server:
        out = run(server, code)
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    assert out["interrupted"] == "enough"
    assert 0 < out["half"] < len(WEIGHTS)
    assert out["full"] == {"repo": "me/full", "revision": server.commit, "files": names}
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == WEIGHTS
    assert out["seen"] == [len(WEIGHTS) + 4, len(WEIGHTS) + 4]
    assert out["old"]["files"] == ["config.json", "vocab.json", "pytorch_model.bin"]
    assert (tmp_path / "old" / "pytorch_model.bin").read_bytes() == WEIGHTS
    gets = [r for r in server.requests if "/resolve/" in r.path]
    assert {r.path.rpartition("/")[2] for r in gets} == {*names, *out["old"]["files"]}
    asked = [r.headers.get("range") for r in gets if r.path.endswith("model.safetensors")]
    assert asked == [None, f"bytes={out['half']}-"], "it goes on within the file"
    assert all(server.commit in r.path for r in gets), "pinned to the commit"


def test_model_that_cannot_be_had(run: Run, repos: dict[str, Path]) -> None:
    code = """
def take(repo, revision="main"):
    return said(lambda: hub.fetch_repo(repo, revision, here / "x", Stop(), quiet, quick))

for repo in ("me/none", "me/missing", "me/gated", "me/private", "me/token", "me/down"):
    out[repo] = take(repo)
out["revision"] = take("me/full", "0" * 40)
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
out["offline"] = take("me/full")
"""
    refuse = {
        "me/gated": (403, "GatedRepo"),
        "me/private": (401, "RepoNotFound"),
        "me/token": (401, ""),
        "me/down": (500, ""),
    }
    with HubServer(models=repos, refuse=refuse) as server:
        out = run(server, code)
        hub = server.url
    remedy = "set HF_ENDPOINT to a mirror, or MODEL= to a local folder"
    none = f"{hub} has no such repo, or it is private and needs HF_TOKEN"
    assert out == {
        "me/none": "InputError 3: me/none has no weights as safetensors or pytorch_model.bin. "
        "take another MODEL",
        "me/missing": f"InputError 3: model me/missing: {none}. {remedy}",
        "me/gated": f"InputError 3: model me/gated: it is gated: accept its terms on {hub} "
        f"and set HF_TOKEN. {remedy}",
        "me/token": f"InputError 3: model me/token: {hub} answers: status 401 Unauthorized, "
        f"so HF_TOKEN is missing or not valid. {remedy}",
        "me/private": f"InputError 3: model me/private: {none}. {remedy}",
        "me/down": f"InputError 3: model me/down: {hub} answers: status 500 Internal Server Error. "
        f"{remedy}",
        "revision": f"InputError 3: model me/full: {hub} has no such revision of it. {remedy}",
        "offline": "InputError 3: model me/full: HF_HUB_OFFLINE is set, so nothing is downloaded. "
        f"{remedy}",
    }


def test_no_hub(run: Run) -> None:
    server = HubServer()
    server.url = "http://127.0.0.1:9"
    code = """
out["model"] = said(lambda: hub.fetch_repo("me/x", None, here / "x", Stop(), quiet, quick))
dataset = Dataset(id="x", urls=["hf://me/x"])
out["dataset"] = said(lambda: rows.fetch_dataset(dataset, here / "part", Stop(), quiet))
"""
    out = run(server, code)
    reached = r"http://127.0.0.1:9 cannot be reached (ConnectError: "
    assert out["model"].startswith(f"InputError 3: model me/x: {reached}")
    assert out["dataset"].startswith(f"InputError 3: dataset me/x: {reached}")
    assert out["dataset"].endswith("or FILE= to a copy that is here")
    assert "\n" not in out["model"] + out["dataset"]


def test_hub_that_names_files_elsewhere(run: Run, repos: dict[str, Path], tmp_path: Path) -> None:
    code = """
(here / "a" / "b").mkdir(parents=True)
got = hub.fetch_repo("me/full", "main", here / "a" / "b" / "c", Stop(), quiet, quick)
out["files"] = got["files"]
"""
    hostile = ["../../model.safetensors", "../config.json", "/etc/tokenizer.json", "x/../vocab.txt"]
    hostile += ["../model-00001-of-00001.safetensors", "..\\merges.txt", "..", ""]
    with HubServer(models=repos) as server:
        server.also = hostile
        out = run(server, code)
    assert out["files"] == ["config.json", "tokenizer.json", "model.safetensors"]
    below = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert {str(path.parent) for path in below} == {"b/c"}
    assert {path.name for path in below if path.suffix != ".json"} == {"model.safetensors"}
    assert not [r for r in server.requests if ".." in r.path]


def test_hub_whose_certificate_is_not_trusted(
    run: Run, repos: dict[str, Path], tmp_path: Path
) -> None:
    code = """
take = lambda: hub.fetch_repo("me/full", None, here / "x", Stop(), quiet, quick)
dataset = Dataset(id="x", urls=["hf://me/x"])
out["model"] = said(take)
out["dataset"] = said(lambda: rows.fetch_dataset(dataset, here / "part", Stop(), quiet))
"""
    certificate, key = certify(tmp_path, "IP:127.0.0.1")
    with HubServer(models=repos) as server:
        server.encrypt(certificate, key)
        refused = run(server, code)
        trusted = run(server, code, SSL_CERT_FILE=str(certificate))
    for kind, said in refused.items():
        assert said.startswith(f"InputError 3: {kind} me/")
        assert f"{server.url}: its certificate is not trusted (self" in said
        assert "let SSL_CERT_FILE name its certificate" in said
        assert "\n" not in said
    assert trusted["model"] == "nothing", "that is, no error"
    assert "has no such repo" in trusted["dataset"]


def test_damaged_weights(run: Run, repos: dict[str, Path]) -> None:
    code = """
out["said"] = said(lambda: hub.fetch_repo("me/full", None, here / "x", Stop(), quiet, quick))
out["left"] = sorted(p.name for p in (here / "x").iterdir() if "safetensors" in p.name)
"""
    with HubServer(models=repos) as server:
        server.spoil = b"?"
        out = run(server, code)
    expected = hashlib.sha256(WEIGHTS).hexdigest()
    assert out["said"].startswith("CorruptInput 3: ")
    assert f"expected {expected}" in out["said"]
    assert out["left"] == []


def test_model_from_hub_to_folder(run: Run, models: Callable[[str], Path], tmp_path: Path) -> None:
    code = """
from pipeline.download.base_model import materialise
from pipeline.core.registry import BaseModel
model = BaseModel(id="old", repo="me/opt", revision="main")
folder = here / "made"
folder.mkdir()
out["facts"] = materialise(model, folder, here / "partial", Stop(), quiet)
out["files"] = sorted(p.name for p in folder.iterdir())
"""
    with HubServer(models={"me/opt": make_old_form(models("opt"), tmp_path / "opt")}) as server:
        out = run(server, code)
    assert out["facts"] == {
        "source": "hf://me/opt",
        "revision": server.commit,
        "parameters": 149_376,
        "dtype": "float16",
        "vocabulary": 512,
        "context": 256,
        "prefix_id": 1,
        "end_id": 1,
    }
    assert out["files"] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def rows_of(part: Path) -> tuple[list[Any], int]:
    """The rows of a `.jsonl.zst`, and how many frames it has."""
    data, frames = part.read_bytes(), 0
    lines = b""
    while data:
        decoder = zstandard.ZstdDecompressor().decompressobj()
        lines += decoder.decompress(data)
        data, frames = decoder.unused_data, frames + 1
    return [json.loads(line) for line in io.BytesIO(lines)], frames


def test_dataset(run: Run, cases: Path, tmp_path: Path) -> None:
    code = """
rows.ROWS = 100
dataset = Dataset(id="cases", urls=["hf://me/cases"], revision="main")

def take(name, stop=None, progress=quiet):
    fetched = rows.fetch_dataset(dataset, here / name, stop or Stop(), progress)
    return [fetched.url, fetched.size, fetched.sha256, fetched.etag]

out["whole"] = take("whole")
for limit in (1, 3000, 5000):
    try:
        take("pieces", *stop_after(limit))
    except Interrupted:
        (here / "pieces").open("ab").write(b"a frame that was never finished")
        out[f"rows {limit}"] = json.loads((here / "pieces.json").read_text())["rows"]
out["pieces"] = take("pieces")
out["again"] = take("pieces")
sidecar = json.loads((here / "pieces.json").read_text()) | {"sha256": "0" * 64, "whole": False}
(here / "pieces.json").write_text(json.dumps(sidecar))
out["damaged"] = take("pieces")
rows.ROWS = 250
out["even"] = take("even")
wrong = dataset.model_copy(update={"split": "trian"})
out["split"] = said(lambda: rows.fetch_dataset(wrong, here / "x", Stop(), quiet))
wrong = dataset.model_copy(update={"subset": "nosuch"})
out["subset"] = said(lambda: rows.fetch_dataset(wrong, here / "x", Stop(), quiet))
"""
    with HubServer(datasets={"me/cases": cases}) as server:
        out = run(server, code)
    whole = (tmp_path / "whole").read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    assert out["whole"] == ["hf://me/cases", len(whole), digest, server.commit]
    rows, frames = rows_of(tmp_path / "whole")
    assert frames == 8
    assert [row["id"] for row in rows] == [f"{p}-{i}" for p in range(3) for i in range(250)]
    assert list(rows[0]) == ["added", "id", "metadata", "text"]
    assert rows[1]["metadata"] == {"author": "Née", "year": 1901}
    assert 0 < out["rows 1"] < out["rows 3000"] < out["rows 5000"] < len(rows)
    assert (tmp_path / "pieces").read_bytes() == whole, "interrupted or not: the same bytes"
    assert out["pieces"] == out["again"] == out["damaged"] == out["whole"]
    assert rows_of(tmp_path / "even")[0] == rows
    assert out["split"].startswith("InputError 3: dataset me/cases: it cannot be read (ValueError:")
    assert "nosuch" in out["subset"]
    data = [r for r in server.requests if r.method == "GET" and "/resolve/" in r.path]
    assert all(server.commit in r.path for r in data), "pinned to the commit"


SHARDED = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin", "x.py"], ["model.safetensors"]),
        (
            [*SHARDED, "consolidated.safetensors"],
            SHARDED,
        ),
        (
            ["model-00001-of-00002.safetensors", "pytorch_model.bin", "merges.txt"],
            ["merges.txt", "pytorch_model.bin"],
        ),
    ],
)
def test_choose(names: list[str], taken: list[str]) -> None:
    assert choose("me/x", ["config.json", *names]) == ["config.json", *taken]
    with pytest.raises(InputError, match=r"no config\.json"):
        choose("me/x", names)
