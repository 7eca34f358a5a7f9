"""Handing on what a run has trained, `make export`: here, in the foreground, or under srun."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.core.console import say
from jobs.core.permissions import open_like
from pipeline.config import Config, resume_command
from pipeline.core import provenance
from pipeline.core.disk import size
from pipeline.core.errors import InputError
from pipeline.core.receipt import verify
from pipeline.core.stage import damage_set_aside
from pipeline.dag import Node, survey
from pipeline.export import export
from pipeline.export.model_card import write_card
from pipeline.modeling.device import Precision


def export_run(config: Config, root: Path, to: Path | None, precision: Precision) -> None:
    """Write merged weights, tokenizer and card of a run's training; says where.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        to: The folder to write; None for `export` in the run's own.
        precision: Of the weights: fp32, bf16 or fp16.

    Raises:
        InputError: The training is not finished, or what is exported is damaged.
        UserError: There is too little memory, or something else is where it is to go.
    """
    nodes = {node.work.step.name: node for node in survey(config, root)}
    run = root / "runs" / config.name
    place = (to.expanduser() if to else run / "export").resolve()
    source = _source(config, nodes["train.train"], run)
    with damage_set_aside("the make pipeline that began it makes it anew"):
        report = _report(nodes["evaluate.report"])
        if report is None:
            say("it is not evaluated yet: the card will be without scores")
        card = write_card(config, source.best_receipt.facts, report, precision)
        identity = export.identity(source, card, precision, provenance.code_version())
        if export.check_place(place, identity):
            say(f"it is there already: {place}")
            return
        export.check_memory(source.parameters, precision)
        memory, disk = export.needed(source.parameters, precision)
        say(
            f"writing {source.parameters:,} weights in {precision}: {size(disk)}, and up to "
            f"{size(memory)} of memory"
        )
        give = open_like(run, place)
        export.export(source, card, place, identity, precision, give)
    say(f"exported: {place}  (its README.md is the model card)")


def _source(config: Config, trained: Node, run: Path) -> export.Source:
    if not trained.complete:
        raise InputError(
            f"{config.name} is not trained to the end yet",
            "make status, with the same NAME and RUNS, says how far it is; to go on: "
            f"{resume_command(run)}",
        )
    base, base_receipt = trained.work.inputs["download.model"].one()
    ((name, receipt),) = trained.done.items()
    return export.Source(base, base_receipt, trained.work.folder / name, receipt)


def _report(node: Node) -> dict[str, object] | None:
    """The numbers of the run's report; None if it is not finished."""
    if not node.complete:
        return None
    ((name, receipt),) = node.done.items()
    path = verify(node.work.folder / name, "report.json", receipt)
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found
