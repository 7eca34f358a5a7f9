"""The five stages in order, and which items of a run are done, from their receipts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.core.receipt import Receipt
from pipeline.core.stage import Input, Item, Step, Work
from pipeline.decompress import stage as decompress
from pipeline.download import stage as download
from pipeline.evaluate import stage as evaluate
from pipeline.report import stage as report
from pipeline.tokenize import stage as tokenize
from pipeline.train import stage as train

STEPS: tuple[Step, ...] = (
    *download.STEPS,
    *decompress.STEPS,
    *tokenize.STEPS,
    *train.STEPS,
    *evaluate.STEPS,
    *report.STEPS,
)
STAGES = tuple(dict.fromkeys(step.stage for step in STEPS))


@dataclass(frozen=True)
class Node:
    """The state of a step in a run.

    `items`: None while a step that it needs is unfinished. `done`: receipts of the finished items,
    by name.
    """

    work: Work
    items: list[Item] | None
    done: dict[str, Receipt]

    @property
    def missing(self) -> list[Item]:
        """The items that are still to do, if they are known."""
        return [item for item in self.items or [] if item.name not in self.done]

    @property
    def complete(self) -> bool:
        """Whether every item is done."""
        return self.items is not None and not self.missing


def keys(config: Config) -> dict[str, str]:
    """The recipe key of every step. It covers the settings of the steps that it needs."""
    by_step: dict[str, str] = {}
    for step in STEPS:
        by_step[step.name] = step.key(config, {need: by_step[need] for need in step.needs})
    return by_step


def survey(config: Config, root: Path) -> Iterator[Node]:
    """The state of every step in order; each is read when the iterator reaches it.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
    """
    full = keys(config)
    short = {name: key[:8] for name, key in full.items()}
    inputs: dict[str, Input] = {}

    def look(step: Step, wanted: frozenset[str] = frozenset()) -> Node:
        folder = root / step.folder(config, short)
        ready = all(need in inputs for need in step.needs)
        given = {need: inputs[need] for need in step.needs} if ready else {}
        work = Work(step, config, full[step.name], folder, given, wanted)
        items = step.items(step.view(config), given) if ready else None
        receipts = ((item.name, work.receipt_of(item)) for item in items or [])
        return Node(work, items, {name: receipt for name, receipt in receipts if receipt})

    for step in STEPS:
        node = look(step)
        if node.complete:
            inputs[step.name] = Input(node.work.folder, node.done)
        # Released units are missing on purpose. If the step that reads them still has items to do,
        # list this step's items again as not done.
        released = [name for name, receipt in node.done.items() if receipt.released]
        if released and node.complete:
            reader = look(next(later for later in STEPS if later.name == step.read_by))
            needed = {item.name for item in reader.missing}
            again = [name for name in released if needed & node.done[name].units.keys()]
            if again:
                del inputs[step.name]
                node = look(step, frozenset(again))
        yield node


def find(config: Config, root: Path, name: str) -> Node:
    """The state of one step."""
    return next(node for node in survey(config, root) if node.work.step.name == name)
