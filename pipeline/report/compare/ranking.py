"""Which of several runs is best, in one sentence that says no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.findings import MIN_DOCUMENTS
from pipeline.report.formatting import signed, signed_number


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
    chosen, judged = (evaluation[split]["runs"] for split in ("validation", "test"))
    both = [
        one is not None and other is not None for one, other in zip(chosen, judged, strict=True)
    ]
    scored = [row["letter"] for row, known in zip(rows, both, strict=True) if known]
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
    if documents < MIN_DOCUMENTS:
        few = f"{documents} test document{'s say' if documents > 1 else ' says'} too little"
        return _said("open", None, f"No ranking: {few}.")
    return _ranked(letter, f"{documents:,} test documents", pairs)


def _ranked(letter: str, documents: str, known: dict[str, Any]) -> dict[str, str | None]:
    """What is said of the one that did best on validation, by its paired differences on test."""
    behind = {other: pair for other, pair in known.items() if pair["ci95"][1] < 0}
    ahead = {other: pair for other, pair in known.items() if pair["ci95"][0] > 0}
    if ahead:
        words = f"{letter} did best on validation, but on {documents}"
        return _said("undecided", None, f"{words} {_amount(*_nearest(ahead))}.")
    if len(behind) < len(known):
        level = {other: pair for other, pair in known.items() if other not in behind}
        words = f"No best run was shown: {letter} did best on validation, but on {documents} "
        words += f"{_amount(*_nearest(level))}, which includes zero"
        others = [other for other in level if other != _nearest(level)[0]]
        words += f"; nor does it differ from {_and(others)}" if others else ""
        return _said("undecided", None, f"{words}.")
    next_, pair = _nearest(behind)
    rank = "best" if len(known) > 1 else "better"
    words = f"{letter} is {rank}: on {documents} {_amount(next_, pair)}"
    others = [other for other in behind if other != next_]
    words += f"; {_and(others)} {'are' if len(others) > 1 else 'is'} behind, too" if others else ""
    return _said("better", letter, f"{words}.")


def _said(outcome: str, letter: str | None, words: str) -> dict[str, str | None]:
    return {"outcome": outcome, "best": letter, "words": words}


def _nearest(pairs: dict[str, Any]) -> tuple[str, Any]:
    """Of paired differences, the one that is least, with the run it is to."""
    return min(pairs.items(), key=lambda item: abs(_size(item[1])))


def _size(pair: dict[str, Any]) -> float:
    found: float = pair["percent"] if pair["unit"] == "token" else pair["bits"]
    return found


def _amount(other: str, pair: dict[str, Any]) -> str:
    """A paired difference to another run in words, a clause."""
    low, high = pair["ci95"]
    if pair["unit"] == "byte":
        values = [signed_number(value) for value in (pair["bits"], low, high)]
        told = f"{values[0]} bits per byte against {other}"
        return f"it has {told} (95 % interval {values[1]} to {values[2]})"
    if low <= 0 <= high:
        told = f"{signed(pair['percent'])} % against {other}"
        return f"its perplexity is {told} (95 % interval {signed(low)} to {signed(high)} %)"
    ends = sorted((abs(low), abs(high)))
    side = "lower" if high < 0 else "higher"
    told = f"{abs(pair['percent']):.1f} % {side} than that of {other}"
    return f"its perplexity is {told} (95 % interval {ends[0]:.1f} to {ends[1]:.1f} %)"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
