"""Looking before leaping: are corpus and model to be had? Asked before anything is queued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.cluster.profile import Profile
from pipeline.config import Config
from pipeline.core.errors import InputError, UserError
from pipeline.core.registry import Dataset
from pipeline.dag import find
from pipeline.download.stage import corpus_files
from pipeline.train import tensorboard as board

WHERE = "where there is internet"


def check_packages(config: Config) -> None:
    """Raise `UserError` if a setting needs a package that is not installed."""
    if config.train.tensorboard:
        board.check_package()


def check_site(config: Config, site: Profile) -> None:
    """Raise `UserError` if the settings need a GPU where the site gives none."""
    scoring = min(site.granted_gpus(step) for step in ("evaluate.base", "evaluate.tuned"))
    check_device(config, site.granted_gpus(), scoring)


def check_device(config: Config, gpus: int, scoring: int | None = None) -> None:
    """Raise `UserError` if the settings need a GPU, and none is asked for: first reason first.

    Args:
        config: The run.
        gpus: Those of its training.
        scoring: Those of its evaluation; None for as many.
    """
    train = config.train
    here = "and there is none here"
    if gpus and not (gpus if scoring is None else scoring):
        here = "and evaluate gets none here"  # after hours of training
    elif gpus:
        return
    if train.weights == "nf4":
        why = "on a CPU nothing is learned after the first validation"
        raise UserError(
            f"train.weights=nf4 needs a GPU, {here}: {why}", "use train.weights=int8, or gpus: 1"
        )
    if train.precision == "fp16":
        why = "on a CPU it is slower than fp32, and overflows"
        raise UserError(
            f"train.precision=fp16 needs a GPU, {here}: {why}", "use train.precision=auto"
        )
    if not gpus and train.attention == "flash":
        raise UserError(f"train.attention=flash needs a GPU, {here}", "use train.attention=auto")


def probe(config: Config, root: Path) -> int | None:
    """Ask for the corpus and the model, where they are not there yet.

    Returns:
        Bytes of a file of the corpus, where its server says them.

    Raises:
        InputError: No mirror has the corpus, each is named with what it answered; or the hub has
            not the model; or both.
    """
    dataset, model = config.dataset, config.model
    asked: list[Callable[[], int | None]] = []
    if not find(config, root, "download.corpus").complete:
        asked.append(lambda: _probe_corpus(dataset))
    if model.repo and not find(config, root, "download.model").complete:
        asked.append(lambda: _probe_hub(model.repo or "", model.revision, "model"))
    missing: list[InputError] = []
    size = None
    for ask in asked:
        try:
            size = ask() or size
        except InputError as error:
            missing.append(error)
    if missing:
        what = "; and ".join(error.what for error in missing)
        raise InputError(what, "; and ".join(dict.fromkeys(error.hint for error in missing)))
    return size


def _probe_hub(repo: str, revision: str | None, kind: str) -> None:
    from pipeline.download.hub import resolve_revision

    try:
        resolve_revision(repo, revision, kind)
    except InputError as error:
        raise InputError(error.what, f"{error.hint}, or make fetch {WHERE}") from None


def _probe_corpus(dataset: Dataset) -> int | None:
    if dataset.urls[0].startswith("docstrings:"):
        return None
    if dataset.urls[0].startswith("hf:"):
        _probe_hub(dataset.urls[0].removeprefix("hf://"), dataset.revision, "dataset")
        return None
    from pipeline.download.fetch import probe_mirrors

    first = next(iter(corpus_files(dataset).values()))  # of many years one stands for all
    try:
        found = probe_mirrors(first)
    except InputError as error:
        other = f"DATASET={dataset.instead}, or " if dataset.instead else ""
        hint = f"try {other}FILE=/a/local/copy, or make fetch {WHERE}"
        raise InputError(f"data set {dataset.id} cannot be reached: {error.what}", hint) from None
    # published sizes are off by a few bytes at times; the sha256 decides, later
    if dataset.size and found.size and abs(found.size - dataset.size) > dataset.size // 100:
        raise InputError(
            f"{found.url} has {found.size} bytes, data set {dataset.id} {dataset.size}",
            "For a sample or another version write a YAML file with it in urls: see README",
        )
    return found.size
