"""Download the corpus as published, and the base model as a folder that loads offline.

These are two steps, so that another model does not download the corpus again. Later stages need no
network.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.receipt import hash_file, hash_json
from pipeline.core.redaction import redact
from pipeline.core.registry import Dataset
from pipeline.core.settings import Section, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.download.base_model import prepare_model
from pipeline.download.demo_corpus import write_demo_corpus
from pipeline.download.disk_estimate import estimate_corpus, estimate_model
from pipeline.download.fetch import FetchedFile, fetch
from pipeline.download.file_names import corpus_files
from pipeline.download.hub_dataset import fetch_dataset
from pipeline.download.local_file import local_path
from pipeline.download.resume import ProgressCallback
from pipeline.download.throttle import Throttle


class DownloadConfig(Section):
    """How the network is used.

    `bandwidth`: at most so many MB a second; None for as many as there are.
    """

    bandwidth: float | None = not_hashed(None, ge=0.05)


def corpus_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item. A local file without a known hash is identified by its size and time."""
    dataset = config.dataset
    if dataset.sha256 or local_path(dataset.urls[0]) is None:
        # the format is in the names of the files of several years
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
    started = time.monotonic()
    dataset = config.dataset
    ctx.partial.mkdir(parents=True, exist_ok=True)
    part = ctx.partial / "corpus.part"
    scheme, _, rest = dataset.urls[0].partition("://")
    name = f"{dataset.id}.jsonl.zst"
    progress = ctx.progress if scheme == "file" else _throttled(config, ctx)
    if scheme == "docstrings":
        packages, limit = rest.split(","), dataset.max_bytes
        fetched = {name: write_demo_corpus(packages, part, ctx.stop, ctx.progress, limit)}
    elif scheme == "hf":
        fetched = {name: fetch_dataset(dataset, part, ctx.stop, progress)}
    else:
        fetched = _fetch_files(dataset, ctx, progress)
    with ctx.commit(item.name) as draft:
        for name, file in fetched.items():
            # link, so that the partial file survives a failed commit
            try:
                os.link(file.path, draft.path / name)
            except OSError:
                file.path.rename(draft.path / name)
            draft.hashes[name] = file.sha256
        draft.facts = {
            "files": {
                name: {"url": redact(f.url), "etag": f.etag, "modified": f.modified}
                for name, f in fetched.items()
            },
            "spans": {name: [asdict(span) for span in f.spans] for name, f in fetched.items()},
            "seconds": round(time.monotonic() - started, 3),
        }
    shutil.rmtree(ctx.partial, ignore_errors=True)


def _throttled(config: RunConfig, ctx: Context) -> ProgressCallback:
    """The progress callback, with the configured bandwidth as a limit."""
    bandwidth = config.download.bandwidth
    return Throttle(ctx.progress, bandwidth * 1e6, ctx.stop) if bandwidth else ctx.progress


def _fetch_files(
    dataset: Dataset, ctx: Context, progress: ProgressCallback
) -> dict[str, FetchedFile]:
    """Download every file of the corpus; returns them by name, in the order of reading."""
    fetched: dict[str, FetchedFile] = {}
    files, before = corpus_files(dataset), 0
    for number, (name, urls) in enumerate(files.items()):
        fetched[name] = fetch(
            urls,
            ctx.partial / f"{number:05d}.part",
            sha256=dataset.sha256,
            size=dataset.size,
            stop=ctx.stop,
            progress=_overall(progress, before, len(files)),
        )
        before += fetched[name].size
    return fetched


def _overall(progress: ProgressCallback, before: int, files: int) -> ProgressCallback:
    """Progress over all files; with several files, their total size is unknown."""
    return lambda done, total: progress(before + done, total if files == 1 else None)


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
    """
    ctx.partial.mkdir(parents=True, exist_ok=True)
    with ctx.commit(item.name) as draft:
        draft.facts = prepare_model(
            config.model, draft.path, ctx.partial, ctx.stop, _throttled(config, ctx)
        )
    shutil.rmtree(ctx.partial, ignore_errors=True)


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
        exclusive=True,
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
        exclusive=True,
        estimate=estimate_model,
    ),
)
