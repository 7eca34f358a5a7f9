"""Gristmill, called as anybody calls it: `python -m jobs run STAGE` on a local file."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.corpora import Corpus
from bench.measure import Usage, measure
from pipeline.core.receipt import load

SPLITS = ("tokenize.validation=0.1", "tokenize.test=0.1")  # so that a tiny corpus has all three


@dataclass(frozen=True)
class Run:
    """A run of the product on one corpus, below a root of its own."""

    root: Path
    dataset: Path
    settings: tuple[str, ...] = SPLITS

    @property
    def home(self) -> Path:
        """Where the product puts what belongs to the corpus."""
        return self.root / "data" / self.dataset.stem

    def stage(self, what: str, *, cpus: int = 1, core: int | None = None, of: str = "0/1") -> Usage:
        """Run a stage or step and say what it cost."""
        words = [sys.executable, "-m", "jobs", "run", what, f"--dataset={self.dataset}"]
        words += [f"--model={self.root / 'model'}", f"--root={self.root}", "--profile=local"]
        words += [f"--element={of}", f"--cpus={cpus}", "--name=bench", *self.settings]
        environment = {"RAYON_NUM_THREADS": str(cpus), "OMP_NUM_THREADS": str(cpus)}
        return measure(words, core=core, environment=environment)

    def forget(self, *kinds: str) -> None:
        """Remove what stages have made: `chunks`, `shards`."""
        for kind in kinds:
            for folder in self.home.glob(f"{kind}-*"):
                shutil.rmtree(folder)

    def chunks(self) -> list[Path]:
        """The chunks that decompress has made."""
        return sorted(self.home.glob("chunks-*/chunk-*/*.zst"))

    def digest(self) -> str:
        """Of what was sealed."""
        (folder,) = self.home.glob("shards-*/seal")
        receipt = load(folder)
        assert receipt, "it is not sealed"
        return receipt.digest

    def shards(self) -> list[Path]:
        """The shards that tokenize has made, by chunk."""
        return sorted(self.home.glob("shards-*/chunk-*/*.parquet"))


def prepare(corpus: Corpus, model: Path, folder: Path, *settings: str) -> Run:
    """A run whose corpus and model are downloaded."""
    root = folder / corpus.name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "model").symlink_to(model.resolve())
    dataset = root / f"{corpus.name}.yaml"
    dataset.write_text(
        yaml.safe_dump({"urls": [corpus.packed.resolve().as_uri()], "id_field": "meta.id"})
    )
    run = Run(root, dataset, (*SPLITS, *settings))
    run.stage("download")
    return run
