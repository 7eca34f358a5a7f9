"""What took longest, by stage: a slow node or an odd chunk is seen by what its like took.

It is read off receipts, so what was made under another run, or on another day, counts as well.
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
"""Seconds; nobody looks after a unit that took less, whatever its like took."""
MIN_UNITS_TO_COMPARE = 4
"""Of a kind; what the median of fewer is compared with says nothing, nor do three splits."""
DEFINITIONS = {
    "slowest": "the units of a step that took longest. bytes: of text read (chunks, shards, "
    "scores), or of files that came. times_median: the seconds as a multiple of the median of the "
    f"units of a kind (of_units); null where there are fewer than {MIN_UNITS_TO_COMPARE}",
}


def slowest(inputs: Inputs) -> dict[str, list[dict[str, Any]]]:
    """By stage, the few units of each kind that took longest, in the order of steps and seconds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step, given in inputs.items():
        rows = found.setdefault(step.partition(".")[0], [])
        for kind in _kinds(step, given):
            usual = median(receipt.spent for receipt in kind)
            times = usual if len(kind) >= MIN_UNITS_TO_COMPARE and usual else None
            longest = sorted(kind, key=lambda r: (-r.spent, r.unit))[:SLOWEST_SHOWN]
            rows += [_row(step, receipt, times, len(kind)) for receipt in longest]
    return found


def _row(step: str, receipt: Receipt, usual: float | None, of: int) -> dict[str, Any]:
    took, read = receipt.spent, _bytes(step, receipt)
    return {
        "step": step,
        "name": receipt.unit,
        "seconds": took,
        "bytes": read,
        "mb_per_second": round(read / took / 1e6, 3) if read is not None and took else None,
        "host": receipt.host,
        "times_median": round(took / usual, 2) if usual else None,
        "of_units": of,
    }


def _kinds(step: str, given: Input) -> list[list[Receipt]]:
    """The units that can be compared: those that say how much text they read, and the others.

    A score of a split and the samples beside it have nothing in common but the step.
    """
    kinds: dict[bool, list[Receipt]] = defaultdict(list)
    for receipt in _leaves(given):
        kinds[_bytes(step, receipt) is None].append(receipt)
    return list(kinds.values())


def _leaves(given: Input) -> Iterator[Receipt]:
    """The receipts of what was worked on: an item's own only where it lists no units.

    Units that are no longer there leave none behind, and the item that listed them took no time to
    speak of; nor did what was adopted.
    """
    for receipt in given.receipts.values():
        listed = [load(given.folder / name) for name in receipt.units] or [receipt]
        yield from (leaf for leaf in listed if leaf and not leaf.facts.get("adopted"))


def _bytes(step: str, receipt: Receipt) -> int | None:
    if step.startswith("tokenize."):
        return sum(split["bytes"] for split in shard_facts(receipt)["splits"].values())
    if step.startswith("download."):
        return sum(output.size for output in receipt.outputs.values())
    size: int | None = receipt.facts.get("bytes")
    return size
