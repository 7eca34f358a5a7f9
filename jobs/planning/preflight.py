"""Checks before anything is queued: packages, GPUs, and whether corpus and model are available."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.cluster.profile import Profile
from pipeline.config import Config
from pipeline.core.errors import InputError, UserError
from pipeline.core.registry import Dataset
from pipeline.dag import find
from pipeline.download.file_names import corpus_files
from pipeline.train import tensorboard

FETCH_ELSEWHERE = "or run make fetch where there is internet"


def check_packages(config: Config) -> None:
    """Raise `UserError` if a setting needs a package that is not installed."""
    if config.train.tensorboard:
        tensorboard.check_package()


def check_site(config: Config, site: Profile) -> None:
    """Raise `UserError` if the settings need a GPU where the site grants none."""
    scoring = min(site.granted_gpus(step) for step in ("evaluate.base", "evaluate.tuned"))
    check_device(config, site.granted_gpus(), scoring)


def check_device(config: Config, gpus: int, scoring: int | None = None) -> None:
    """Raise `UserError` for the first setting that needs a GPU where there is none.

    Args:
        config: The run.
        gpus: GPUs of its training.
        scoring: GPUs of its evaluation; None for as many as its training.
    """
    train = config.train
    where = "and there is none here"
    if gpus and not (gpus if scoring is None else scoring):
        where = "and evaluate gets none here"  # it would fail after hours of training
    elif gpus:
        return
    if train.weights == "nf4":
        why = "on a CPU nothing is learned after the first validation"
        raise UserError(
            f"train.weights=nf4 needs a GPU, {where}: {why}", "Use train.weights=int8, or gpus: 1"
        )
    if train.precision == "fp16":
        why = "on a CPU it is slower than fp32 and overflows"
        raise UserError(
            f"train.precision=fp16 needs a GPU, {where}: {why}", "Use train.precision=auto"
        )
    if not gpus and train.attention == "flash":
        raise UserError(f"train.attention=flash needs a GPU, {where}", "Use train.attention=auto")


def check_sources(config: Config, root: Path) -> int | None:
    """Check that the corpus and the model are available, unless they are downloaded already.

    Returns:
        Bytes of a file of the corpus, if its server reports them.

    Raises:
        InputError: No mirror has the corpus (each is named with its response), or the hub does not
            have the model, or both.
    """
    dataset, model = config.dataset, config.model
    checks: list[Callable[[], int | None]] = []
    if not find(config, root, "download.corpus").complete:
        checks.append(lambda: _check_corpus(dataset))
    if model.repo and not find(config, root, "download.model").complete:
        checks.append(lambda: _check_hub(model.repo or "", model.revision, "model"))
    missing: list[InputError] = []
    size = None
    for check in checks:
        try:
            size = check() or size
        except InputError as error:
            missing.append(error)
    if missing:
        what = "; and ".join(error.what for error in missing)
        raise InputError(what, "; and ".join(dict.fromkeys(error.hint for error in missing)))
    return size


def _check_hub(repo: str, revision: str | None, kind: str) -> None:
    from pipeline.download.hub import resolve_revision

    try:
        resolve_revision(repo, revision, kind)
    except InputError as error:
        raise InputError(error.what, f"{error.hint}, {FETCH_ELSEWHERE}") from None


def _check_corpus(dataset: Dataset) -> int | None:
    if dataset.urls[0].startswith("docstrings:"):
        return None
    if dataset.urls[0].startswith("hf:"):
        _check_hub(dataset.urls[0].removeprefix("hf://"), dataset.revision, "dataset")
        return None
    from pipeline.download.probe import probe_mirrors

    first = next(iter(corpus_files(dataset).values()))  # of a corpus by year, check the first year
    try:
        remote = probe_mirrors(first)
    except InputError as error:
        other = f"DATASET={dataset.instead}, or " if dataset.instead else ""
        hint = f"try {other}FILE=/a/local/copy, {FETCH_ELSEWHERE}"
        raise InputError(f"data set {dataset.id} cannot be reached: {error.what}", hint) from None
    # published sizes can be off by a few bytes; the sha256 decides later
    if dataset.size and remote.size and abs(remote.size - dataset.size) > dataset.size // 100:
        raise InputError(
            f"{remote.url} has {remote.size} bytes, but data set {dataset.id} has {dataset.size}",
            "For a sample or another version write a YAML file with this URL: see docs/own-data.md",
        )
    return remote.size
