"""Download the corpus as published, and the base model as a folder that loads offline.

These are two steps, so that another model does not download the corpus again. Later stages need no
network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.receipt import hash_file, hash_json
from pipeline.core.settings import Section, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.download.disk_estimate import estimate_corpus, estimate_model
from pipeline.download.file_names import corpus_files, local_path


class DownloadConfig(Section):
    """How the network is used.

    `bandwidth`: limit in MB per second; None: no limit.
    """

    bandwidth: float | None = not_hashed(None, ge=0.05)


def corpus_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item. A local file without a known hash is identified by its size and time."""
    dataset = config.dataset
    if dataset.sha256 or local_path(dataset.urls[0]) is None:
        # with `years`, the format decides the names of the files (`file_names._name`)
        return [Item("corpus", {"form": dataset.form} if dataset.years else {})]
    try:
        stats = {
            name: os.stat(local_path(urls[0]) or "") for name, urls in corpus_files(dataset).items()
        }
    except (InputError, OSError):
        return [Item("corpus", None)]
    listing = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    return [Item("corpus", {"files": hash_json(listing)})]


def corpus(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Download the corpus: one file, one per year, or the files of a folder.

    Raises:
        InputError: No mirror works.
        CorruptInput: The content does not match the sha256 or size in the registry.
    """
    from pipeline.download.run import download_corpus

    download_corpus(config, item, ctx)


def model_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item. A local folder is identified by its files, so a changed one is another model."""
    if config.model.path is None:
        return [Item("base", {})]
    folder = Path(config.model.path)
    if not folder.is_dir():
        return [Item("base", None)]
    files = sorted(p for p in folder.glob("*") if p.is_file())
    listing = [
        [p.name, hash_file(p) if p.suffix == ".json" else [p.stat().st_size, p.stat().st_mtime_ns]]
        for p in files
    ]
    return [Item("base", {"files": hash_json(listing)})]


def model(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Write base weights and tokenizer into a Hugging Face folder that loads offline.

    Raises:
        InputError: The hub, the folder or the package does not have them.
        UserError: Models of this family cannot be trained and scored.
    """
    from pipeline.download.run import write_model

    write_model(config, item, ctx)


def _corpus_folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/raw-{keys['download.corpus']}"


def _model_folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"models/{config.model.id}/base-{keys['download.model']}"


STEPS = (
    Step(
        stage="download",
        name="download.corpus",
        version=1,
        uses=("dataset.content",),
        resolved=("dataset.form",),
        reads=("dataset", "download"),
        needs=(),
        folder=_corpus_folder,
        items=corpus_items,
        run=corpus,
        leased=True,
        estimate=estimate_corpus,
    ),
    Step(
        stage="download",
        name="download.model",
        version=1,
        uses=("model.content", "model.prefix_token", "model.end_token"),
        reads=("model", "download"),
        needs=(),
        folder=_model_folder,
        items=model_items,
        run=model,
        leased=True,
        estimate=estimate_model,
    ),
)
