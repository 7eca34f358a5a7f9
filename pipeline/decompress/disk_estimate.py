"""Disk space that this stage needs."""

from __future__ import annotations

from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.stage import RunConfig

# Bytes per byte of JSON lines, measured on 4.9 MB of NIH abstracts at zstd level 1: 0.356.
CHUNK_RATIO = 0.36
FILES_PER_CHUNK = 3
FILES_PER_PART = 2


def estimate_chunks(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The chunks, and the receipts of the parts they are cut from."""
    settings = config.decompress
    parts = sizes.part_count(settings.part_bytes)
    chunks = sizes.chunk_count(settings.chunk_bytes, settings.part_bytes)
    files = FILES_PER_CHUNK * chunks + FILES_PER_PART * parts + 2
    return DiskNeed((sizes.text or 0) * CHUNK_RATIO, files)
