"""How much disk space a run still needs, and whether that is free, before anything is queued.

Each step estimates what it will write (`pipeline.core.stage.Step.estimate`), from the sizes that a
server, a registry entry or a finished step reports; here the estimates are added up. Quotas are not
checked (see `pipeline.core.disk`). A run that fills the disk all the same ends in one line and can
be resumed once there is space.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse

from pipeline.config import Config
from pipeline.core.disk import (
    MODEL_BYTES_PER_PARAMETER,
    TEXT_RATIO,
    DiskNeed,
    FreeSpace,
    RunSizes,
    existing_folder,
    folder_bytes,
    free_space,
    size,
)
from pipeline.core.errors import InputError, UserError
from pipeline.dag import STEPS, Node, survey
from pipeline.download.file_names import corpus_files, local_path
from pipeline.sources.chunks import part_facts
from pipeline.sources.data_files import COMPRESSED_SUFFIXES


@dataclass(frozen=True)
class DiskEstimate:
    """What a run still needs, and what is free.

    Attributes:
        stages: The needs by stage.
        free: What is free in `folder`.
        folder: The root, or its nearest parent that exists.
        unknown: What the needs leave out because its size is unknown.
    """

    stages: dict[str, DiskNeed]
    free: FreeSpace
    folder: Path
    unknown: tuple[str, ...]

    @property
    def total(self) -> DiskNeed:
        """The needs of all stages."""
        needs = self.stages.values()
        return DiskNeed(sum(n.bytes for n in needs), sum(n.files for n in needs))

    @property
    def fits(self) -> bool:
        """Whether that much is free, as far as it is known."""
        total, free = self.total, self.free
        enough_bytes = free.bytes is None or total.bytes <= free.bytes
        return enough_bytes and (free.files is None or total.files <= free.files)

    def summary(self) -> str:
        """The estimate in one line."""
        about = "more than" if self.unknown else "about"
        unknown = (
            f" (without {' and '.join(self.unknown)}, of unknown size)" if self.unknown else ""
        )
        total = f"{size(self.total.bytes)} in {self.total.files:,} files"
        needed = f"{about} {total} are needed{unknown}"
        free = [] if self.free.bytes is None else [size(self.free.bytes)]
        free += [] if self.free.files is None else [f"room for {self.free.files:,} files"]
        if not free:
            return f"{needed}; {self.folder} does not report its free space"
        short = "" if self.fits else f": too little for {self._by_stage()}"
        return f"{needed}, {' and '.join(free)} are free in {self.folder}{short}"

    def _by_stage(self) -> str:
        short_of_bytes = self.free.bytes is not None and self.total.bytes > self.free.bytes
        needs = {
            stage: size(need.bytes) if short_of_bytes else f"{need.files:,} files"
            for stage, need in self.stages.items()
        }
        return ", ".join(f"{stage} {need}" for stage, need in needs.items())


def check_disk(
    config: Config, root: Path, probed: int | None = None, stage: str = ""
) -> DiskEstimate:
    """Refuse a run that clearly does not fit.

    Args:
        config: The run.
        root: The folder for all results.
        probed: Bytes of a file of the corpus, as its server reports.
        stage: The only stage that will run; empty for all.

    Raises:
        UserError: Less is free than the run needs.
    """
    estimate = estimate_disk(config, root, probed, stage)
    if not estimate.fits:
        raise UserError(
            estimate.summary(),
            "Free some space, choose another folder with RUNS=…, or start anyway with ARGS=--force",
        )
    return estimate


def estimate_disk(
    config: Config, root: Path, probed: int | None = None, stage: str = ""
) -> DiskEstimate:
    """Estimate what a run still needs; arguments as in `check_disk`."""
    nodes = {node.work.step.name: node for node in survey(config, root)}
    missing = [
        name
        for name, node in nodes.items()
        if not node.complete and (not stage or node.work.step.stage == stage)
    ]
    sizes = _run_sizes(config, root, nodes, probed)
    stages: dict[str, DiskNeed] = {}
    for name, need in estimate_steps(config, sizes, missing).items():
        before = stages.get(nodes[name].work.step.stage, DiskNeed())
        left = max(0.0, need.bytes - _written_bytes(name, nodes))
        after = DiskNeed(before.bytes + left, before.files + need.files)
        stages[nodes[name].work.step.stage] = after
    unknown = ["the corpus"] if sizes.text is None and set(missing) - {"download.model"} else []
    unknown += ["the model"] if sizes.model is None and "download.model" in missing else []
    return DiskEstimate(stages, free_space(root), existing_folder(root), tuple(unknown))


def estimate_steps(config: Config, sizes: RunSizes, names: Collection[str]) -> dict[str, DiskNeed]:
    """What the named steps will write; unknown sizes count as nothing."""
    steps = [step for step in STEPS if step.name in names]
    return {s.name: s.estimate(config, sizes) if s.estimate else DiskNeed() for s in steps}


def _run_sizes(
    config: Config, root: Path, nodes: Mapping[str, Node], probed: int | None
) -> RunSizes:
    """Exact sizes from finished steps, else as published or probed."""
    sizes = _published_sizes(config, root, probed)
    if corpus := nodes["download.corpus"].done.get("corpus"):
        total = sum(output.size for output in corpus.outputs.values())
        sizes = replace(sizes, text=sizes.text or int(total * _text_ratio(list(corpus.outputs))))
    if nodes["decompress.chunks"].complete:
        parts = nodes["decompress.chunks"].done.values()
        sizes = replace(sizes, text=sum(part_facts(part)["bytes"] for part in parts))
    if base := nodes["download.model"].done.get("base"):
        sizes = replace(sizes, model=MODEL_BYTES_PER_PARAMETER * base.facts["parameters"])
    return sizes


def _published_sizes(config: Config, root: Path, probed: int | None) -> RunSizes:
    dataset = config.dataset
    model = _model_bytes(config)
    scheme = urlparse(dataset.urls[0]).scheme
    if scheme == "docstrings":
        text = dataset.max_bytes
        return RunSizes(int(text / TEXT_RATIO) if text else None, text, model)
    if scheme == "hf":
        return RunSizes(dataset.size, None, model)
    try:
        names = corpus_files(dataset)
        local = [Path(path) for path in map(_local_path, names.values()) if path]
        found = [(path.name, os.stat(path)) for path in local]
    except (InputError, OSError):
        return RunSizes(None, None, model)
    if found:
        device = os.stat(existing_folder(root)).st_dev
        copied = sum(file.st_size for _, file in found if file.st_dev != device)
        text = int(sum(file.st_size * _text_ratio([name]) for name, file in found))
        return RunSizes(copied, text, model, len(found))
    file_bytes = dataset.size or probed
    total = file_bytes * len(names) if file_bytes else None
    text = int(total * _text_ratio(list(names))) if total else None
    return RunSizes(total, text, model, len(names))


def _model_bytes(config: Config) -> int | None:
    model = config.model
    if model.path:
        return folder_bytes(Path(model.path))
    return MODEL_BYTES_PER_PARAMETER * model.parameters if model.parameters else None


def _local_path(urls: list[str]) -> str:
    return str(local_path(urls[0]) or "")


def _text_ratio(names: list[str]) -> float:
    """Bytes of JSON lines in a byte of these files; files without an ending count as compressed."""
    plain = all(
        Path(name).suffix and not name.lower().endswith(COMPRESSED_SUFFIXES) for name in names
    )
    return 1.0 if plain else TEXT_RATIO


def _written_bytes(name: str, nodes: Mapping[str, Node]) -> int:
    """Bytes that an unfinished step has written already."""
    if name == "evaluate.report":
        return 0  # its folder is that of the whole run
    # train keeps its token cache beside the shards
    caches = nodes["tokenize.shards"].work.folder.glob("cache-*") if name == "train.train" else ()
    return sum(map(folder_bytes, (nodes[name].work.folder, *caches)))
