"""Export a trained model, `make export`: in the foreground here, or under srun."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.core.console import print_line
from jobs.core.permissions import prepare_parents
from pipeline.config import Config
from pipeline.core import provenance
from pipeline.core.commit import setting_aside_damaged_units
from pipeline.core.disk import size
from pipeline.core.errors import InputError
from pipeline.core.receipt import verify
from pipeline.dag import Node, survey
from pipeline.export import export
from pipeline.export.model_card import write_card
from pipeline.modeling.device import Precision
from pipeline.saved_config import resume_command


def export_run(config: Config, root: Path, to: Path | None, precision: Precision) -> None:
    """Write the merged weights, tokenizer and model card of a trained run, and print where.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        to: The folder to write; None for `export` in the run's folder.
        precision: The precision of the weights: fp32, bf16 or fp16.

    Raises:
        InputError: The training is not finished, or what would be exported is damaged.
        UserError: There is too little memory, or the folder holds something else.
    """
    nodes = {node.work.step.name: node for node in survey(config, root)}
    run = root / "runs" / config.name
    folder = (to.expanduser() if to else run / "export").resolve()
    source = _source(config, nodes["train.train"], run)
    with setting_aside_damaged_units("run the make pipeline command that began it to rebuild it"):
        report = _report(nodes["evaluate.report"])
        if report is None:
            print_line("the run is not evaluated yet: the model card will have no scores")
        card = write_card(config, source.best_receipt.facts, report, precision)
        identity = export.identity(source, card, precision, provenance.code_version())
        if export.check_destination(folder, identity):
            print_line(f"already exported: {folder}")
            return
        export.check_memory(source.parameters, precision)
        memory, disk = export.required_bytes(source.parameters, precision)
        print_line(
            f"writing {source.parameters:,} weights in {precision}: {size(disk)} on disk, up to "
            f"{size(memory)} of memory"
        )
        share = prepare_parents(run, folder)
        export.export(source, card, folder, identity, precision, share)
    print_line(f"exported: {folder}  (its README.md is the model card)")


def _source(config: Config, trained: Node, run: Path) -> export.Source:
    if not trained.complete:
        raise InputError(
            f"the training of {config.name} is not finished",
            "See how far it is with make status and the same NAME and RUNS; to resume: "
            f"{resume_command(run)}",
        )
    base, base_receipt = trained.work.inputs["download.model"].one()
    ((name, receipt),) = trained.done.items()
    return export.Source(base, base_receipt, trained.work.folder / name, receipt)


def _report(node: Node) -> dict[str, object] | None:
    """The content of the run's `report.json`; None if the report is not finished."""
    if not node.complete:
        return None
    ((name, receipt),) = node.done.items()
    path = verify(node.work.folder / name, "report.json", receipt)
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content
