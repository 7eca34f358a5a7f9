"""Which of several runs is best, in one sentence that says no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.verdict import FEW, signed, signed_number


def best(rows: Sequence[dict[str, Any]], evaluation: dict[str, Any]) -> int | None:
    """The run of fewest bits per byte on validation, among those that were scored on test.

    Args:
        rows: The runs.
        evaluation: By split, what each run scored, in the same order.

    Returns:
        Its place; None where fewer than two were scored, or not on the same documents.
    """
    chosen, judged = (evaluation[split] for split in ("validation", "test"))
    if not (chosen["documents"] and judged["documents"]):
        return None
    scored = [
        (chosen["runs"][place]["tuned"]["bits_per_byte"], place)
        for place in range(len(rows))
        if chosen["runs"][place] and judged["runs"][place]
    ]
    return min(scored)[1] if len(scored) > 1 else None


def verdict(
    rows: Sequence[dict[str, Any]], evaluation: dict[str, Any], pairs: dict[str, Any]
) -> dict[str, str | None]:
    """What can be said of the runs.

    Args:
        rows: The runs.
        evaluation: As in `best`.
        pairs: How the best one's test score compares with each other one's, by letter.

    Returns:
        outcome: better, undecided or open; best: its letter, or None; words.
    """
    judged = evaluation["test"]["runs"]
    scored = [row["letter"] for row, one in zip(rows, judged, strict=True) if one]
    if len(scored) < 2:
        only = f"only {scored[0]} is evaluated" if scored else "none of them is evaluated"
        return _said("open", None, f"Nothing to compare yet: {only}.")
    place = best(rows, evaluation)
    if place is None:
        return _said(
            "open",
            None,
            "No ranking: they were not scored on the same documents, so a difference in their "
            "scores may be one of the documents.",
        )
    letter, documents = rows[place]["letter"], judged[place]["documents"]
    if documents < FEW:
        few = f"{documents} test document{'s say' if documents > 1 else ' says'} too little"
        return _said("open", None, f"No ranking: {few}.")
    known = {other: pair for other, pair in pairs.items() if pair}
    behind = [other for other, pair in known.items() if pair["ci95"][1] < 0]
    ahead = [other for other, pair in known.items() if pair["ci95"][0] > 0]
    if ahead:
        told = _listed({other: known[other] for other in ahead})
        words = f"{letter} did best on validation, but on test it is behind: {told}."
        return _said("undecided", None, words)
    if len(behind) == len(known):
        words = (
            f"{letter} is best: on {documents:,} test documents, {_listed(known)}."
            if len(known) > 1
            else f"{letter} is better: on {documents:,} test documents, {_listed(known)}."
        )
        return _said("better", letter, words)
    open_ = {other: pair for other, pair in known.items() if other not in behind}
    words = (
        f"{letter} did best on validation, but on {documents:,} test documents no difference to "
        f"{_and(list(open_))} was shown: {_listed(open_)}; an interval includes zero."
    )
    return _said("undecided", None, words)


def _said(outcome: str, letter: str | None, words: str) -> dict[str, str | None]:
    return {"outcome": outcome, "best": letter, "words": words}


def _listed(pairs: dict[str, Any]) -> str:
    return _and([f"{_amount(pair)} against {other}" for other, pair in pairs.items()], "; ")


def _amount(pair: dict[str, Any]) -> str:
    """A paired difference in words."""
    low, high = pair["ci95"]
    if pair["unit"] == "token":
        interval = f"95 % interval {signed(low)} to {signed(high)} %"
        return f"{signed(pair['percent'])} % in perplexity ({interval})"
    values = [signed_number(value) for value in (pair["bits"], low, high)]
    return f"{values[0]} bits per byte (95 % interval {values[1]} to {values[2]})"


def _and(words: list[str], between: str = ", ") -> str:
    return words[0] if len(words) == 1 else f"{between.join(words[:-1])} and {words[-1]}"
