"""Disk space that the steps of this stage need."""

from __future__ import annotations

from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.stage import RunConfig

# Bytes per byte of JSON lines, measured on 4.9 MB of NIH abstracts with GPT-2's tokenizer: 0.289.
SHARD_RATIO = 0.3
FILES_PER_CHUNK = 6
SEAL_FILES = 4


def estimate_shards(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The shards of all chunks."""
    settings = config.decompress
    chunks = sizes.chunk_count(settings.chunk_bytes, settings.part_bytes)
    return DiskNeed((sizes.text or 0) * SHARD_RATIO, FILES_PER_CHUNK * chunks)


def estimate_seal(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The seal and the dataset card: a few small files."""
    return DiskNeed(0, SEAL_FILES)
