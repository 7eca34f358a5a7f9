"""Fixtures: a small corpus, a small model, and a run of the pipeline on them."""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from jobs.planning import snapshot
from pipeline.config import Config, resolve
from pipeline.saved_config import save_config
from tests.cluster.fixture import Cluster
from tests.cluster.fixture import cluster as cluster
from tests.cluster.fixture import no_scheduler as no_scheduler
from tests.cluster.fixture import only_where_asked_for as only_where_asked_for
from tests.helpers import processes, tiny
from tests.helpers.examples import register_profile
from tests.helpers.runs import SMALL, Mount, advance, write_corpus
from tests.workers import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.workers import pytest_runtest_makereport as pytest_runtest_makereport
from tests.workers import pytest_runtest_setup as pytest_runtest_setup
from tests.workers import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler

if TYPE_CHECKING:
    from tests.helpers.queued import Queued

os.environ["GRISTMILL_PROFILE"] = str(Path(__file__).with_name("one_core.yaml"))
register_profile()


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


@pytest.fixture(scope="session")
def small(dataset: Path, models: Callable[[str], Path]) -> Callable[..., Config]:
    """The configuration of a run that takes seconds: `small("train.lr=1", family="opt")`."""

    def config(*words: str, family: str = "llama", name: str = "small") -> Config:
        model = str(models(family))
        return resolve(str(dataset), model, "lora-8bit", [*SMALL, *words], name)

    return config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Config]) -> Path:
    """A root in which the shards of `small()` are ready. Do not change what is there."""
    root = tmp_path_factory.mktemp("prepared")
    advance(small(), root, "tokenize.seal")
    return root


@pytest.fixture(scope="session")
def scored(
    tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Config], prepared: Path
) -> Path:
    """A root in which `small()` lacks the training and what comes after. Do not change it."""
    root = tmp_path_factory.mktemp("scored")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    advance(small(), root, "evaluate.overlap", but=("train.train", "evaluate.tuned"))
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Config]) -> Path:
    """A root in which all of `small()` is done, undisturbed. Do not change what is there."""
    root = tmp_path_factory.mktemp("finished")
    save_config(small(), root)
    advance(small(), root, "evaluate.report")
    snapshot.take(root / "runs" / "small")
    return root


@pytest.fixture(autouse=True)
def warm_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m jobs` starts as a fork, unless the test has the marker `interpreter`."""
    if not request.node.get_closest_marker("interpreter"):
        monkeypatch.setattr(subprocess, "Popen", processes.Popen)


@pytest.fixture
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are blank, unless the test has the marker `figures`."""
    from matplotlib.figure import Figure

    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr(Figure, "savefig", processes.save_blank)


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
    cluster: Cluster, small: Callable[..., Config], scored: Path, tmp_path: Path
) -> Iterator[Queued]:
    """A run that is to be trained, evaluated and reported, for the test cluster's queue."""
    from tests.helpers.queued import Queued

    root = tmp_path / "the 'root' é"
    shutil.copytree(scored, root)
    yield Queued(cluster, small(), root)
    cluster.cancel_all()


@pytest.fixture
def umask() -> Iterator[None]:
    """The umask of this process is careless, and restored at the end."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def group() -> str:
    """A group that we may give files to, and that they would not have by themselves."""
    if os.geteuid() == 0:
        return next(g.gr_name for g in grp.getgrall() if g.gr_gid != os.getegid())
    for gid in os.getgroups():
        if gid != os.getegid():
            return grp.getgrgid(gid).gr_name
    pytest.skip("this user is in one group only")
