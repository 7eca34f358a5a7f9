"""How much the steps of this stage will write."""

from __future__ import annotations

from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.stage import RunConfig

MODEL_FILES = 9


def estimate_corpus(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The files of the corpus, their receipt and their folder."""
    return DiskNeed(sizes.raw or 0, sizes.files + 2)


def estimate_model(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """Weights, tokenizer and configuration of the base model."""
    return DiskNeed(sizes.model or 0, MODEL_FILES)
