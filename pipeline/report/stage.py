"""The step `evaluate.report`: the last one of a run, which writes its report.

It belongs to the stage `evaluate`. It is declared here because evaluation knows nothing of reports.
"""

from __future__ import annotations

import shutil

from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.report import PARTIAL_REPORT, SECTIONS
from pipeline.report.disk_estimate import estimate_report


def items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item, the report. It names the run, so that two runs never share a report."""
    return [Item("report", {"run": config.name, **{n: i.digest for n, i in inputs.items()}})]


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Write `report.json`, `report.md`, `report.html` and the figures; replace an older report.

    Raises:
        CorruptInput: A score or a sample is damaged.
    """
    from pipeline.report.build import write_report_files

    with ctx.commit(item.name) as draft:
        write_report_files(config, inputs, draft.path, ctx.folder / "logs")
    shutil.rmtree(ctx.folder / PARTIAL_REPORT, ignore_errors=True)


STEPS = (
    Step(
        stage="evaluate",
        name="evaluate.report",
        version=2,
        uses=("evaluate.resamples",),
        reads=("name", "recipe", *SECTIONS),
        needs=(
            *("download.corpus", "decompress.chunks"),
            *("tokenize.shards", "tokenize.seal", "download.model", "train.train"),
            *("evaluate.base", "evaluate.tuned", "evaluate.overlap"),
        ),
        folder=lambda config, keys: f"runs/{config.name}",
        items=items,
        run=run,
        estimate=estimate_report,
    ),
)
