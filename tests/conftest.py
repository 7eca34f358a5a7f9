"""A small corpus, a small model, and a run of the pipeline on them, for tests that want them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
import zstandard

from jobs.planning import snapshot
from pipeline.config import Config, resolve, save_config
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.dag import STEPS, Node, find
from tests import tiny
from tests.cluster.fixture import Cluster
from tests.cluster.fixture import cluster as cluster
from tests.cluster.fixture import no_scheduler as no_scheduler
from tests.cluster.fixture import only_where_asked_for as only_where_asked_for
from tests.workers import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.workers import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler

if TYPE_CHECKING:
    from tests.queued import Queued

os.environ["GRISTMILL_PROFILE"] = "local"
Mount = Callable[[Path, str], Path]


def write_corpus(path: Path, documents: int = 120, seed: int = 0, frames: int = 1) -> Path:
    """A Pile-shaped `.jsonl.zst` of shuffled sentences; the same arguments give the same bytes."""
    chance = random.Random(seed)
    sentences = tiny.PARAGRAPH.replace("\n", " ").split(". ")
    lines = []
    for number in range(documents):
        text = ". ".join(chance.choices(sentences, k=chance.randint(1, 12)))
        lines.append(json.dumps({"text": f"{number}: {text}", "meta": {"id": number}}))
    size = -(-len(lines) // frames)
    with path.open("wb") as file:
        for start in range(0, len(lines), size):
            block = "\n".join(lines[start : start + size]) + "\n"
            file.write(zstandard.compress(block.encode(), 3))
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by family; each is made once."""
    made: dict[str, Path] = {}

    def model(family: str) -> Path:
        if family not in made:
            made[family] = tiny.make_model(family, tmp_path_factory.mktemp(f"model-{family}"))
        return made[family]

    return model


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set's YAML file, whose corpus is a local file."""
    folder = tmp_path_factory.mktemp("dataset")
    corpus = write_corpus(folder / "small.jsonl.zst")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"urls": [corpus.as_uri()]}))
    return path


SMALL = [
    "decompress.chunk_bytes=20000",
    "decompress.tasks=1",
    "tokenize.validation=0.1",
    "tokenize.test=0.1",
    "train.steps=6",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.sequence_length=64",
    "train.validate_every=3",
    "train.checkpoint_every=2",
    "train.validation_documents=4",
    "train.lr=5e-3",
    "evaluate.max_documents=40",
    "evaluate.prompts=1",
    "evaluate.new_tokens=4",
    "evaluate.prompt_tokens=8",
    "evaluate.context=128",
    "evaluate.resamples=200",
]


@pytest.fixture(scope="session")
def small(dataset: Path, models: Callable[[str], Path]) -> Callable[..., Config]:
    """The configuration of a run that takes seconds: `small("train.lr=1", family="opt")`."""

    def config(*words: str, family: str = "llama", name: str = "small") -> Config:
        model = str(models(family))
        return resolve(str(dataset), model, "lora-8bit", [*SMALL, *words], name)

    return config


def advance(
    config: Config, root: Path, until: str, stop: Stop | None = None, but: str = ""
) -> Node:
    """Run every step up to and with `until`, without `but`, in this process."""
    for step in STEPS:
        if step.name == but:
            continue
        node = find(config, root, step.name)
        assert node.items is not None
        for item in node.items:
            run_item(node.work, item, Context(stop=stop or Stop(), log=lambda text: None))
        if step.name == until:
            break
    return find(config, root, until)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Config]) -> Path:
    """A root in which the shards of `small()` are ready. Do not change what is there."""
    root = tmp_path_factory.mktemp("prepared")
    advance(small(), root, "tokenize.seal")
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Config]) -> Path:
    """A root in which all of `small()` is done, undisturbed. Do not change what is there."""
    root = tmp_path_factory.mktemp("finished")
    save_config(small(), root)
    advance(small(), root, "evaluate.report")
    snapshot.take(root / "runs" / "small")
    return root


@pytest.fixture
def mount() -> Iterator[Mount]:
    """`mount(place, "size=1m")`: a file system of its own; `remount,…` changes its options."""
    mounted: list[Path] = []

    def do(place: Path, options: str) -> Path:
        if os.geteuid() or not shutil.which("mount"):
            pytest.skip("only root can mount a small file system")
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "gristmill-test", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if place in mounted:
            assert done.returncode == 0, done.stderr
        elif done.returncode:
            pytest.skip("this container may not mount a file system")
        else:
            mounted.append(place)
        return place

    yield do
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=60)


@pytest.fixture
def run(
    cluster: Cluster, small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> Iterator[Queued]:
    """A run whose data is ready, for the test cluster's queue."""
    from tests.queued import Queued

    root = tmp_path / "the 'root' é"
    shutil.copytree(prepared, root)
    yield Queued(cluster, small(), root)
    cluster.cancel_all()


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of a refusal."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


class AfterChecks(Stop):
    """Stops at the n-th question."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.set("a test")
        super().check()
