"""How much the report will write, with the code, logs and plans of its run."""

from __future__ import annotations

from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.stage import RunConfig

# Independent of corpus and model; measured: 0.8 MB in 200 files.
RUN_BYTES, RUN_FILES = 2_000_000, 220


def estimate_report(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The report and everything else in the folder of the run."""
    return DiskNeed(RUN_BYTES, RUN_FILES)
