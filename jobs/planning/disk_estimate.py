"""How much room a run still needs, told before anything is queued, and whether it is there.

An estimate: what a server, a registry entry or a finished stage says about sizes, times ratios that
were measured. A quota is not seen (see `pipeline.core.disk`); what runs out all the same ends in one
line, and goes on once there is room.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse

from pipeline.config import Config
from pipeline.core.disk import Room, room, size, standing
from pipeline.core.errors import InputError, UserError
from pipeline.dag import Node, survey
from pipeline.download.fetch import url_to_path
from pipeline.download.stage import corpus_files
from pipeline.sources.codecs import COMPRESSED_SUFFIXES
from pipeline.train.stage import TrainConfig

# JSON lines in a byte of a compressed corpus: NIH of the Pile is 2.2 GB in 664 MB, v1 2.1 in 631.
TEXT = 3.3
# Of a byte of JSON lines. 4.9 MB of NIH abstracts, with GPT-2's tokenizer: chunks 0.356 (zstd 1),
# shards 0.289; the token cache 0.380, for vocabularies of up to 65,536.
CHUNKS, SHARDS, CACHE = 0.36, 0.3, 0.38
# Bytes of a parameter of the base model: fp32 as it is, or fp16 and beside it what that came from.
BASE = 4
# Of one that learns: fp32 weight; and what the optimizer keeps of it.
WEIGHT, STATE = 4, {"adamw": 8, "adamw8bit": 2, "paged_adamw8bit": 2}
# What does not grow with corpus or model, with code, logs, plan and report: measured 0.8 MB in 200.
REST, REST_FILES = 2_000_000, 220
# Files, folders counted: of a chunk and of its shards, of a token cache, a model, a checkpoint.
CHUNK_FILES, SHARD_FILES, CACHE_FILES, MODEL_FILES, POINT_FILES = 3, 6, 18, 9, 5


@dataclass(frozen=True)
class Known:
    """What is known of a run's sizes, in bytes; None where it is not.

    `raw`: the corpus as it is published, without what will be a link. `text`: the corpus as JSON
    lines. `base`: the base model. `files`: of the corpus.
    """

    raw: int | None
    text: int | None
    base: int | None
    files: int = 1


@dataclass(frozen=True)
class Need:
    """Bytes and files that a step will write."""

    bytes: float = 0.0
    files: int = 0


@dataclass(frozen=True)
class Estimate:
    """What is needed by stage, what is free, and what the needs leave out."""

    stages: dict[str, Need]
    free: Room
    place: Path
    unknown: tuple[str, ...]

    @property
    def total(self) -> Need:
        """Of all stages."""
        needs = self.stages.values()
        return Need(sum(n.bytes for n in needs), sum(n.files for n in needs))

    @property
    def fits(self) -> bool:
        """Whether so much is free, as far as it is known."""
        total, free = self.total, self.free
        enough = free.bytes is None or total.bytes <= free.bytes
        return enough and (free.files is None or total.files <= free.files)

    def told(self) -> str:
        """The estimate in a line."""
        about = "more than" if self.unknown else "about"
        why = f" (not counting {' and '.join(self.unknown)}, of unknown size)" * bool(self.unknown)
        needed = f"{about} {size(self.total.bytes)} in {self.total.files:,} files are needed{why}"
        free = [] if self.free.bytes is None else [size(self.free.bytes)]
        free += [] if self.free.files is None else [f"room for {self.free.files:,} files"]
        if not free:
            return f"{needed}; {self.place} does not tell what is free"
        short = "" if self.fits else f": too little for {self._each()}"
        return f"{needed}, {' and '.join(free)} are free in {self.place}{short}"

    def _each(self) -> str:
        short = self.free.bytes is not None and self.total.bytes > self.free.bytes
        named = {
            s: size(n.bytes) if short else f"{n.files:,} files" for s, n in self.stages.items()
        }
        return ", ".join(f"{stage} {what}" for stage, what in named.items())


def check(config: Config, root: Path, probed: int | None = None, only: str = "") -> Estimate:
    """Refuse a run for which there clearly is no room.

    Args:
        config: The run.
        root: Where everything goes.
        probed: Bytes of a file of the corpus, as its server says.
        only: A stage, if it is that alone.

    Raises:
        UserError: Less is free than will be needed, by stage.
    """
    found = look(config, root, probed, only)
    if not found.fits:
        raise UserError(
            found.told(), "Make room, choose another place with RUNS=…, or ARGS=--force to begin"
        )
    return found


def look(config: Config, root: Path, probed: int | None = None, only: str = "") -> Estimate:
    """Estimate what a run still needs; arguments as of `check`."""
    nodes = {node.work.step.name: node for node in survey(config, root)}
    missing = [
        name
        for name, node in nodes.items()
        if not node.complete and (not only or node.work.step.stage == only)
    ]
    known = _sizes(config, root, nodes, probed)
    stages: dict[str, Need] = {}
    for name, need in estimate(config, known, missing).items():
        stage = name.partition(".")[0]
        before = stages.get(stage, Need())
        left = max(0.0, need.bytes - _half_done(name, nodes))
        stages[stage] = Need(before.bytes + left, before.files + need.files)
    unknown = ["the corpus"] if known.text is None and set(missing) - {"download.model"} else []
    unknown += ["the model"] if known.base is None and "download.model" in missing else []
    return Estimate(stages, room(root), standing(root), tuple(unknown))


def estimate(config: Config, known: Known, missing: Collection[str]) -> dict[str, Need]:
    """What steps will write, by name; what is not known counts nothing."""
    text, base = known.text or 0, known.base or 0
    parts = -(-int(text / TEXT) // config.decompress.part_bytes)
    chunks = -(-text // config.decompress.chunk_bytes) + parts
    learned = 4 * _learned(config.train, base / BASE)
    point = learned * (1 + STATE[config.train.optimizer] / WEIGHT)
    # those kept, the best, and one that is being written
    points = config.train.keep_checkpoints + 2
    train = text * CACHE + points * point + learned
    needs = {
        "download.corpus": Need(known.raw or 0, known.files + 2),
        "download.model": Need(base, MODEL_FILES),
        "decompress.chunks": Need(text * CHUNKS, CHUNK_FILES * chunks + 2 * parts + 2),
        "tokenize.shards": Need(text * SHARDS, SHARD_FILES * chunks),
        "tokenize.seal": Need(0, 4),
        "train.train": Need(train, CACHE_FILES + points * POINT_FILES + 10),
        "evaluate.base": Need(0, 10),
        "evaluate.tuned": Need(0, 10),
        "evaluate.overlap": Need(0, 5),
        "evaluate.report": Need(REST, REST_FILES),
    }
    return {name: need for name, need in needs.items() if name in missing}


def _learned(train: TrainConfig, parameters: float) -> float:
    """How many parameters learn.

    Of a decoder with P = 12 L d² and, as from OPT-125m to 6.7b, d = 64 L or more, adapters of rank
    r on all linear layers have 18 r d L = 1.5 r P / d: 3.4 M of OPT-125m (there are 2.7 M).
    """
    if train.method == "full" or not parameters:
        return parameters
    return 1.5 * train.lora_rank * parameters / (16 / 3 * parameters) ** (1 / 3)


def _sizes(config: Config, root: Path, nodes: Mapping[str, Node], probed: int | None) -> Known:
    """What is known: of finished steps exactly, else as published or as probed."""
    known = _published(config, root, probed)
    if done := nodes["download.corpus"].done.get("corpus"):
        size = sum(output.size for output in done.outputs.values())
        known = replace(known, text=known.text or int(size * _ratio(list(done.outputs))))
    if nodes["decompress.chunks"].complete:
        parts = nodes["decompress.chunks"].done.values()
        known = replace(known, text=sum(part.facts["bytes"] for part in parts))
    if done := nodes["download.model"].done.get("base"):
        known = replace(known, base=BASE * done.facts["parameters"])
    return known


def _published(config: Config, root: Path, probed: int | None) -> Known:
    dataset, model = config.dataset, config.model
    base = BASE * model.parameters if model.parameters else None
    if model.path:
        base = _held(Path(model.path))
    scheme = urlparse(dataset.urls[0]).scheme
    if scheme == "docstrings":
        text = dataset.max_bytes
        return Known(int(text / TEXT) if text else None, text, base)
    if scheme == "hf":
        return Known(dataset.size, None, base)
    try:
        names = corpus_files(dataset)
        local = [Path(path) for path in map(_path, names.values()) if path]
        found = [os.stat(path) for path in local]
    except (InputError, OSError):
        return Known(None, None, base)
    if found:
        here = os.stat(standing(root)).st_dev
        copied = sum(one.st_size for one in found if one.st_dev != here)
        text = int(sum(one.st_size * _ratio([p.name]) for one, p in zip(found, local, strict=True)))
        return Known(copied, text, base, len(found))
    one = dataset.size or probed
    total = one * len(names) if one else None
    text = int(total * _ratio(list(names))) if total else None
    return Known(total, text, base, len(names))


def _half_done(name: str, nodes: Mapping[str, Node]) -> int:
    """Bytes of a step that are there already."""
    if name == "evaluate.report":
        return 0  # its folder is that of the whole run
    caches = nodes["tokenize.shards"].work.folder.glob("cache-*") if name == "train.train" else ()
    return sum(map(_held, (nodes[name].work.folder, *caches)))


def _path(urls: list[str]) -> str:
    return str(url_to_path(urls[0])) if urls[0].startswith("file:") else ""


def _ratio(names: list[str]) -> float:
    """JSON lines in a byte of such files; one without an ending will be compressed."""
    plain = all(
        Path(name).suffix and not name.lower().endswith(COMPRESSED_SUFFIXES) for name in names
    )
    return 1.0 if plain else TEXT


def _held(folder: Path) -> int:
    """Bytes of the files below a folder."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # just renamed
                found += os.lstat(os.path.join(place, name)).st_size
    return found
