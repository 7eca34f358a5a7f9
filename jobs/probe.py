"""Looking before leaping: is the corpus to be had at all? Asked before anything is queued."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config
from pipeline.dag import find
from pipeline.errors import InputError
from pipeline.stages.download import local_file


def probe(config: Config, root: Path) -> None:
    """Ask the mirrors of a corpus that is not there yet whether they have it.

    Raises:
        InputError: None has; each is named with what it answered, and the next data set to try.
    """
    if find(config, root, "download.corpus").complete:
        return
    dataset = config.dataset
    hint = (
        f"try DATASET={dataset.instead}, or FILE=/a/local/copy"
        if dataset.instead
        else "try FILE=/a/local/copy"
    )
    path = local_file(dataset)
    if path is not None:
        if not path.is_file():
            raise InputError(f"data set {dataset.id}: there is no file {path}", hint)
    elif dataset.urls[0].startswith("http"):
        from pipeline.data.http import probe_all

        try:
            probe_all(dataset.urls)
        except InputError as error:
            raise InputError(
                f"data set {dataset.id} cannot be reached: {error.what}", hint
            ) from None
