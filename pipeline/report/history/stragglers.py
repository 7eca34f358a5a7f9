"""The slowest units of each stage compared with similar units, to reveal a slow node or odd chunk.

They are read from receipts, so units that another run computed count as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import Any

from pipeline.core.receipt import Receipt, load
from pipeline.core.stage import Input, Inputs
from pipeline.tokenize.facts import shard_facts

SLOWEST_SHOWN = 3
MIN_MARKED_SECONDS = 10.0
"""Seconds; a faster unit is not marked, however slow compared with others."""
MIN_UNITS_TO_COMPARE = 4
"""The median of fewer similar units means little; three splits are too few."""
DEFINITIONS = {
    "slowest": "the slowest units of a step. bytes: of text read (chunks, shards, scores) or of "
    "downloaded files. times_median: the ratio to the median of comparable units (of_units); null "
    f"if there are fewer than {MIN_UNITS_TO_COMPARE}",
}


def slowest(inputs: Inputs) -> dict[str, list[dict[str, Any]]]:
    """By stage, the slowest few units of each kind, in the order of steps and seconds."""
    rows_by_stage: dict[str, list[dict[str, Any]]] = {}
    for step, finished_step in inputs.items():
        rows = rows_by_stage.setdefault(step.partition(".")[0], [])
        for kind in _kinds(step, finished_step):
            typical = median(receipt.spent for receipt in kind)
            reference = typical if len(kind) >= MIN_UNITS_TO_COMPARE and typical else None
            longest = sorted(kind, key=lambda r: (-r.spent, r.unit))[:SLOWEST_SHOWN]
            rows += [_row(step, receipt, reference, len(kind)) for receipt in longest]
    return rows_by_stage


def _row(step: str, receipt: Receipt, reference: float | None, of: int) -> dict[str, Any]:
    took, read = receipt.spent, _bytes(step, receipt)
    return {
        "step": step,
        "name": receipt.unit,
        "seconds": took,
        "bytes": read,
        "mb_per_second": round(read / took / 1e6, 3) if read is not None and took else None,
        "host": receipt.host,
        "times_median": round(took / reference, 2) if reference else None,
        "of_units": of,
    }


def _kinds(step: str, finished_step: Input) -> list[list[Receipt]]:
    """Groups of comparable units: those that record how much text they read, and the others.

    The score of a split cannot be compared with generated texts of the same step.
    """
    kinds: dict[bool, list[Receipt]] = defaultdict(list)
    for receipt in _leaves(finished_step):
        kinds[_bytes(step, receipt) is None].append(receipt)
    return list(kinds.values())


def _leaves(finished_step: Input) -> Iterator[Receipt]:
    """The receipts of units that were computed: of an item itself only if it lists no units.

    Units that no longer exist are left out, as are adopted ones.
    """
    for receipt in finished_step.receipts.values():
        listed = [load(finished_step.folder / name) for name in receipt.units] or [receipt]
        yield from (leaf for leaf in listed if leaf and not leaf.facts.get("adopted"))


def _bytes(step: str, receipt: Receipt) -> int | None:
    if step.startswith("tokenize."):
        return sum(split["bytes"] for split in shard_facts(receipt)["splits"].values())
    if step.startswith("download."):
        return sum(output.size for output in receipt.outputs.values())
    size: int | None = receipt.facts.get("bytes")
    return size
