"""How much the steps of this stage will write: a few small files."""

from __future__ import annotations

from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.stage import RunConfig


def estimate_scores(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The scores of the splits, and the generated samples."""
    return DiskNeed(0, 10)


def estimate_overlap(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The documents that were found in the training split."""
    return DiskNeed(0, 5)
