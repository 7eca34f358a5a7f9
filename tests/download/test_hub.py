"""Models and data sets from a hub on the loopback, through the installed libraries.

They read HF_ENDPOINT when they are imported, so each test starts its own process.
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
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.core.errors import InputError
from pipeline.download.hub import map_hub_errors, select_files
from pipeline.download.hub_dataset import readable
from tests.helpers.servers import HubServer, make_certificate
from tests.helpers.tiny import make_old_form

ROOT = Path(__file__).parents[2]
WEIGHTS = random.Random(3).randbytes(400_000)
pytestmark = pytest.mark.slow  # a process with the hub's libraries for each test

Run = Callable[[HubServer, str], dict[str, Any]]
START = """
import json, pathlib
from pipeline.download import hub, hub_dataset
from pipeline.download.transport import RetryPolicy
from pipeline.core.errors import Failure, Interrupted
from pipeline.core.registry import Dataset
from pipeline.core.stop import Stop

here = pathlib.Path.cwd()
quick = RetryPolicy(
    attempts=2, base_delay=0.001, connect_timeout=2, read_timeout=2, sync_bytes=65_536
)
quiet = lambda done, total: None
out = {}

def outcome(call):
    try:
        call()
    except Failure as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
    return "no error"

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
    """A model in all formats at once, an old one, and one without weights."""
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
    assert asked == [None, f"bytes={out['half']}-"], "it resumes within the file"
    assert all(server.commit in r.path for r in gets), "the commit is fixed"


def test_model_that_cannot_be_had(run: Run, repos: dict[str, Path]) -> None:
    code = """
def take(repo, revision="main"):
    return outcome(lambda: hub.fetch_repo(repo, revision, here / "x", Stop(), quiet, quick))

for repo in ("me/none", "me/missing", "me/gated", "me/private", "me/token", "me/down"):
    out[repo] = take(repo)
out["revision"] = take("me/full", "0" * 40)
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
out["offline"] = take("me/full")
"""
    refusals = {
        "me/gated": (403, "GatedRepo"),
        "me/private": (401, "RepoNotFound"),
        "me/token": (401, ""),
        "me/down": (500, ""),
    }
    with HubServer(models=repos, refusals=refusals) as server:
        out = run(server, code)
        hub = server.url
    remedy = "set HF_ENDPOINT to a mirror, or MODEL= to a local folder"
    none = f"{hub} has no such repo, or it is private and needs HF_TOKEN"
    assert out == {
        "me/none": "InputError 3: me/none has no weights as safetensors or pytorch_model.bin. "
        "Take another MODEL",
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


def test_a_quantized_model_is_refused_before_its_weights_are_downloaded(
    run: Run, tmp_path: Path
) -> None:
    config = json.dumps({"quantization_config": {"quant_method": "gptq"}}).encode()
    for repo, files in {
        "gptq": {"config.json": config, "model.safetensors": WEIGHTS},
        "lora": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS},
    }.items():
        (tmp_path / repo).mkdir()
        for name, content in files.items():
            (tmp_path / repo / name).write_bytes(content)
    code = """
for repo in ("me/gptq", "me/lora"):
    out[repo] = outcome(lambda: hub.fetch_repo(repo, None, here / "x", Stop(), quiet, quick))
"""
    with HubServer(models={f"me/{n}": tmp_path / n for n in ("gptq", "lora")}) as server:
        out = run(server, code)
    assert out["me/gptq"].startswith(
        "UserError 2: hf://me/gptq: its weights are quantized already (gptq). Take the unquantized "
    )
    assert out["me/lora"].startswith("UserError 2: MODEL: me/lora is a PEFT adapter, not a whole ")
    assert not [r.path for r in server.requests if r.path.endswith(".safetensors")]


def test_no_hub(run: Run) -> None:
    server = HubServer()
    server.url = "http://127.0.0.1:9"
    code = """
out["model"] = outcome(lambda: hub.fetch_repo("me/x", None, here / "x", Stop(), quiet, quick))
dataset = Dataset(id="x", urls=["hf://me/x"])
out["dataset"] = outcome(lambda: hub_dataset.fetch_dataset(dataset, here / "part", Stop(), quiet))
"""
    out = run(server, code)
    reached = r"http://127.0.0.1:9 cannot be reached (ConnectError: "
    assert out["model"].startswith(f"InputError 3: model me/x: {reached}")
    assert out["dataset"].startswith(f"InputError 3: dataset me/x: {reached}")
    assert out["dataset"].endswith("or FILE= to a local copy")
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
        server.extra_files = hostile
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
out["model"] = outcome(take)
out["dataset"] = outcome(lambda: hub_dataset.fetch_dataset(dataset, here / "part", Stop(), quiet))
"""
    certificate, key = make_certificate(tmp_path, "IP:127.0.0.1")
    with HubServer(models=repos) as server:
        server.use_tls(certificate, key)
        refused = run(server, code)
        trusted = run(server, code, SSL_CERT_FILE=str(certificate))
    for repo_type, message in refused.items():
        assert message.startswith(f"InputError 3: {repo_type} me/")
        assert f"{server.url}: its certificate is not trusted (self" in message
        assert "set SSL_CERT_FILE to its certificate" in message
        assert "\n" not in message
    assert trusted["model"] == "no error"
    assert "has no such repo" in trusted["dataset"]


def test_damaged_weights(run: Run, repos: dict[str, Path]) -> None:
    code = """
out["error"] = outcome(lambda: hub.fetch_repo("me/full", None, here / "x", Stop(), quiet, quick))
out["left"] = sorted(p.name for p in (here / "x").iterdir() if "safetensors" in p.name)
"""
    with HubServer(models=repos) as server:
        server.damaged_head = b"?"
        out = run(server, code)
    expected = hashlib.sha256(WEIGHTS).hexdigest()
    assert out["error"].startswith("CorruptInput 3: ")
    assert f"expected {expected}" in out["error"]
    assert out["left"] == []


def test_model_from_hub_to_folder(run: Run, models: Callable[[str], Path], tmp_path: Path) -> None:
    code = """
from pipeline.download.base_model import prepare_model
from pipeline.core.registry import BaseModel
model = BaseModel(id="old", repo="me/opt", revision="main")
folder = here / "made"
folder.mkdir()
out["facts"] = prepare_model(model, folder, here / "partial", Stop(), quiet)
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
        "token_ids": 512,
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
    """The rows of a `.jsonl.zst` file, and the number of its frames."""
    data, frames = part.read_bytes(), 0
    lines = b""
    while data:
        decoder = zstandard.ZstdDecompressor().decompressobj()
        lines += decoder.decompress(data)
        data, frames = decoder.unused_data, frames + 1
    return [json.loads(line) for line in io.BytesIO(lines)], frames


def test_dataset(run: Run, cases: Path, tmp_path: Path) -> None:
    code = """
hub_dataset.ROWS_PER_FRAME = 100
dataset = Dataset(id="cases", urls=["hf://me/cases"], revision="main")

def take(name, stop=None, progress=quiet):
    fetched = hub_dataset.fetch_dataset(dataset, here / name, stop or Stop(), progress)
    return [fetched.url, fetched.size, fetched.sha256, fetched.etag]

out["whole"] = take("whole")
for limit in (1, 3000, 5000):
    try:
        take("pieces", *stop_after(limit))
    except Interrupted:
        (here / "pieces").open("ab").write(b"a frame that was never finished")
        out[f"bytes {limit}"] = json.loads((here / "pieces.json").read_text())["synced"]
out["pieces"] = take("pieces")
out["again"] = take("pieces")
sidecar = json.loads((here / "pieces.json").read_text()) | {"sha256": "0" * 64, "size": None}
(here / "pieces.json").write_text(json.dumps(sidecar))
out["damaged"] = take("pieces")
hub_dataset.ROWS_PER_FRAME = 250
out["even"] = take("even")
wrong = dataset.model_copy(update={"split": "trian"})
out["split"] = outcome(lambda: hub_dataset.fetch_dataset(wrong, here / "x", Stop(), quiet))
wrong = dataset.model_copy(update={"subset": "nosuch"})
out["subset"] = outcome(lambda: hub_dataset.fetch_dataset(wrong, here / "x", Stop(), quiet))
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
    assert 0 < out["bytes 1"] < out["bytes 3000"] < out["bytes 5000"] < len(whole)
    assert (tmp_path / "pieces").read_bytes() == whole, "the same bytes, interrupted or not"
    assert out["pieces"] == out["again"] == out["damaged"] == out["whole"]
    assert rows_of(tmp_path / "even")[0] == rows
    assert out["split"].startswith("InputError 3: dataset me/cases: it cannot be read (ValueError:")
    assert "nosuch" in out["subset"]
    data = [r for r in server.requests if r.method == "GET" and "/resolve/" in r.path]
    assert all(server.commit in r.path for r in data), "the commit is fixed"


@pytest.mark.parametrize("bug", [TypeError("unexpected keyword"), KeyError("x"), AssertionError()])
def test_errors_of_our_own_code_pass(bug: Exception) -> None:
    with pytest.raises(type(bug)) as caught, map_hub_errors("me/x", "model"):
        raise bug
    assert caught.value is bug


def library_errors() -> list[Exception]:
    import httpx
    import httpx2
    import pyarrow as pa
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    return [
        httpx.ConnectError("refused"),
        httpx2.ReadTimeout("too slow"),
        EntryNotFoundError("no such file"),
        HFValidationError("not a repo id"),
        DatasetGenerationError("broken"),
        pa.ArrowInvalid("broken"),
        zstandard.ZstdError("broken"),
        zlib.error("broken"),
        EOFError("truncated"),
        OSError("no route to host"),
        RuntimeError("Dataset scripts are no longer supported, but found x.py"),
        TypeError("Couldn't cast array of type string to int64"),
    ]


def test_errors_of_the_libraries_become_one_line_with_a_hint() -> None:
    for error in library_errors():
        translated = pytest.raises(InputError, match=r"dataset me/x: .*HF_ENDPOINT")
        with translated as caught, map_hub_errors("me/x", "dataset"):
            raise error
        assert "\n" not in str(caught.value)


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
def test_select_files(names: list[str], taken: list[str]) -> None:
    assert select_files("me/x", ["config.json", *names]) == ["config.json", *taken]
    with pytest.raises(InputError, match=r"no config\.json"):
        select_files("me/x", names)


def test_bytes_of_a_hub_row_are_text() -> None:
    row = {"text": "café".encode(), "parts": [b"a", {"b": b"c"}], "image": b"\xff\xd8", "n": 1}
    assert readable(row) == {
        "text": "café",
        "parts": ["a", {"b": "c"}],
        "image": {
            "not UTF-8": "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
        },
        "n": 1,
    }
