"""Gristmill through its command line: `python -m jobs run STAGE` on a local file."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.corpora import Corpus
from bench.measure import Usage, measure
from pipeline.core.receipt import load

SPLIT_SETTINGS = (
    "tokenize.validation=0.1",
    "tokenize.test=0.1",
)  # large, so that a tiny corpus has all three


@dataclass(frozen=True)
class ProductRun:
    """A run of Gristmill on one corpus, with its own root folder."""

    root: Path
    dataset: Path
    settings: tuple[str, ...] = SPLIT_SETTINGS

    @property
    def data_folder(self) -> Path:
        """The folder of the corpus below the root."""
        return self.root / "data" / self.dataset.stem

    def stage(
        self, name: str, *, cpus: int = 1, core: int | None = None, element: str = "0/1"
    ) -> Usage:
        """Run a stage or step and measure its cost."""
        command = [sys.executable, "-m", "jobs", "run", name, f"--dataset={self.dataset}"]
        command += [f"--model={self.root / 'model'}", f"--root={self.root}", "--profile=local"]
        command += [f"--element={element}", f"--cpus={cpus}", "--name=bench", *self.settings]
        environment = {"RAYON_NUM_THREADS": str(cpus), "OMP_NUM_THREADS": str(cpus)}
        return measure(command, core=core, environment=environment)

    def delete_outputs(self, *kinds: str) -> None:
        """Delete the outputs of stages: `raw`, `chunks`, `shards`."""
        for kind in kinds:
            for folder in self.data_folder.glob(f"{kind}-*"):
                shutil.rmtree(folder)

    def chunks(self) -> list[Path]:
        """The chunk files of decompress."""
        return sorted(self.data_folder.glob("chunks-*/chunk-*/*.zst"))

    def digest(self) -> str:
        """The content digest of the sealed shards."""
        (folder,) = self.data_folder.glob("shards-*/seal")
        receipt = load(folder)
        assert receipt, "the shards are not sealed"
        return receipt.digest

    def shards(self) -> list[Path]:
        """The shard files of tokenize, in the order of chunks."""
        return sorted(self.data_folder.glob("shards-*/chunk-*/*.parquet"))


def prepare(corpus: Corpus, model: Path, folder: Path, *settings: str) -> ProductRun:
    """Make a run and download its corpus and model."""
    root = folder / corpus.name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "model").symlink_to(model.resolve())
    dataset = root / f"{corpus.name}.yaml"
    dataset.write_text(
        yaml.safe_dump({"urls": [corpus.packed.resolve().as_uri()], "id_field": "meta.id"})
    )
    run = ProductRun(root, dataset, (*SPLIT_SETTINGS, *settings))
    run.stage("download")
    return run
