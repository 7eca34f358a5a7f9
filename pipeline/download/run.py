"""What the steps of the stage do: download the corpus, and write the base model into a folder."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict

from pipeline.core.redaction import redact
from pipeline.core.registry import Dataset
from pipeline.core.stage import Context, Item, RunConfig
from pipeline.download.base_model import prepare_model
from pipeline.download.demo_corpus import write_demo_corpus
from pipeline.download.fetch import FetchedFile, fetch
from pipeline.download.file_names import corpus_files, describe_files, passed_over
from pipeline.download.hub_dataset import fetch_dataset
from pipeline.download.resume import ProgressCallback
from pipeline.download.transport import Throttle
from pipeline.modeling.family_check import check_family


def download_corpus(config: RunConfig, item: Item, ctx: Context) -> None:
    """Download the corpus and commit it; raises as `pipeline.download.stage.corpus`."""
    started = time.monotonic()
    dataset = config.dataset
    ctx.partial.mkdir(parents=True, exist_ok=True)
    scheme, _, rest = dataset.urls[0].partition("://")
    single_part, single_name = ctx.partial / "corpus.part", f"{dataset.id}.jsonl.zst"
    # the throttle is a progress callback that sleeps
    progress = ctx.progress if scheme == "file" else _throttled(config, ctx)
    if scheme == "docstrings":
        packages, limit = rest.split(","), dataset.max_bytes
        file = write_demo_corpus(packages, single_part, ctx.stop, ctx.progress, limit)
        fetched = {single_name: file}
    elif scheme == "hf":
        fetched = {single_name: fetch_dataset(dataset, single_part, ctx.stop, progress)}
    else:
        fetched = _fetch_files(dataset, ctx, progress)
    others = passed_over(dataset)
    if others:
        ctx.log(f"passed over {describe_files(others)}")
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
            "passed_over": len(others),
            "seconds": round(time.monotonic() - started, 3),
        }
    shutil.rmtree(ctx.partial, ignore_errors=True)


def write_model(config: RunConfig, item: Item, ctx: Context) -> None:
    """Write the base model and commit it; raises as `pipeline.download.stage.model`."""
    ctx.partial.mkdir(parents=True, exist_ok=True)
    with ctx.commit(item.name) as draft:
        facts = prepare_model(
            config.model, draft.path, ctx.partial, ctx.stop, _throttled(config, ctx)
        )
        draft.facts = {**facts, "attention": check_family(draft.path)}
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
