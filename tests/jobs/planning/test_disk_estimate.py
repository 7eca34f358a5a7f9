"""The disk estimate of a run is made before it starts, and is close to what it writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.planning import disk_estimate
from jobs.planning.disk_estimate import check_disk, estimate_disk, estimate_steps
from pipeline.config import Config, resolve
from pipeline.core.disk import RunSizes, size
from pipeline.core.errors import UserError
from pipeline.dag import STEPS, find
from pipeline.download.resume import require_free_space
from pipeline.train.disk_estimate import trainable_parameters
from tests.helpers.runs import Mount

HERE = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (20_000_000, "20 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1 GB"),
        (4_130_000_000, "4.13 GB"),
        (121_000_000_000_000, "121 TB"),
    ],
)
def test_sizes_have_at_most_three_digits(value: int, told: str) -> None:
    assert size(value) == told


def test_an_estimate_is_close_to_what_is_written(
    finished: Path, small: Callable[..., Config], dataset: Path
) -> None:
    config = small()
    text = find(config, finished, "decompress.chunks").done["part-00000"].facts["bytes"]
    corpus = dataset.with_name("small.jsonl.zst").stat().st_size
    model = sum(f.stat().st_size for f in Path(str(config.model.path)).iterdir())
    every = [step.name for step in STEPS]
    needs = estimate_steps(config, RunSizes(corpus, text, model), every)
    for step in ("download.model", "decompress.chunks", "train.train"):
        written = disk_estimate.folder_bytes(find(config, finished, step).work.folder)
        assert 0.2 * written < needs[step].bytes < 5 * written, step
    folder = find(config, finished, "tokenize.shards").work.folder
    files = sum(1 for _ in folder.rglob("*"))
    assert needs["tokenize.shards"].files < files < 2 * needs["tokenize.shards"].files + 60
    assert set(estimate_steps(config, RunSizes(0, 0, 0), ["tokenize.seal"])) == {"tokenize.seal"}


def test_the_ratios_match_a_known_corpus() -> None:
    """NIH with OPT-125m has 664 MB, 2.2 GB of text and 2.7 M trainable weights."""
    config, train = resolve("nih"), resolve("nih").train
    known = disk_estimate._published_sizes(config, Path("/"), None)
    assert (known.raw, known.model) == (664_022_839, 4 * 125_239_296)
    assert known.text == pytest.approx(2.2e9, rel=0.05)
    assert trainable_parameters(train.method, train.lora_rank, 125_239_296) == pytest.approx(
        2.65e6, rel=0.35
    )
    train = resolve("nih", "opt-6.7b").train
    assert trainable_parameters(train.method, train.lora_rank, 6.66e9) == pytest.approx(
        38e6, rel=0.35
    )


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sparse corpus file of 600 MB; tests do not read it."""
    corpus = tmp_path / "large.jsonl.zst"
    with corpus.open("wb") as file:
        file.truncate(600_000_000)
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump({"urls": [corpus.as_uri()]}))
    return path


@pytest.mark.slow
def test_too_little_disk_space_is_refused_before_queueing(
    tmp_path: Path, large: Path, models: Callable[[str], Path], mount: Mount
) -> None:
    root = mount(tmp_path / "disk", "size=20m")

    def call(command: str, *words: str) -> subprocess.CompletedProcess[str]:
        given = [f"--root={root}", f"--dataset={large}", f"--model={models('llama')}"]
        return subprocess.run(
            [sys.executable, "-m", "jobs", command, *given, *words],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=120,
        )

    refused = call("submit")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: about 2.66 GB in ")
    assert ", 21 MB and room for " in line
    assert f"are free in {root}: too little for download 600 MB, decompress 713 MB, " in line
    assert line.endswith(
        "Free some space, choose another folder with RUNS=…, or start anyway with ARGS=--force"
    )
    assert not list(root.iterdir())
    assert call("plan").stdout.splitlines()[-1].startswith("  disk: about 2.66 GB in ")
    begun = call("submit", "--force")
    assert begun.returncode == 2
    first, last = begun.stderr.splitlines()
    assert first.startswith("disk: about 2.66 GB in ")
    told = "MB free, 600 MB are needed. Make room, or choose another folder with RUNS=…, then run"
    assert told in last, "then the download refuses"
    found = os.statvfs(root)
    mount(root, f"remount,size=8g,nr_inodes={found.f_files - found.f_ffree + 9}")
    assert "and room for 9 files are free in" in call("plan").stdout
    assert "too little for download 12 files, " in call("submit").stderr


def test_unknown_free_space_is_not_an_error(tmp_path: Path, mount: Mount) -> None:
    place = mount(tmp_path / "disk", "size=0,nr_inodes=0")
    found = check_disk(resolve("law", "opt-6.7b"), place)
    assert (found.free.bytes, found.free.files) == (None, None)
    assert found.summary().endswith(f"; {place} does not report its free space")
    require_free_space(place, 10**15)


def test_a_corpus_of_unknown_size_is_only_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "hub.yaml"
    path.write_text(yaml.safe_dump({"urls": ["hf://me/texts"]}))
    found = check_disk(resolve(str(path), "opt-125m"), tmp_path)
    assert found.unknown == ("the corpus",)
    assert "(without the corpus, of unknown size)" in found.summary()


def test_finished_steps_need_no_space(
    finished: Path, prepared: Path, small: Callable[..., Config]
) -> None:
    assert estimate_disk(small(), finished).stages == {}
    left = estimate_disk(small(), prepared)
    assert set(left.stages) == {"train", "evaluate"}


def test_the_size_that_a_server_reports_is_used(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(yaml.safe_dump({"urls": ["https://example.org/a.jsonl"]}))
    config = resolve(str(path), "opt-125m")
    assert estimate_disk(config, tmp_path).unknown == ("the corpus",)
    found = estimate_disk(config, tmp_path, probed=10**9)
    assert found.unknown == ()
    assert found.stages["download"].bytes == pytest.approx(1.5e9, rel=0.01)
    assert found.stages["decompress"].bytes == pytest.approx(0.36e9)
    with pytest.raises(UserError, match="too little for download"):
        check_disk(config, tmp_path, probed=10**17)
