"""Which of several runs is best, as far as the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.findings import MIN_DOCUMENTS
from pipeline.report.formatting import signed, signed_number


def best_run(rows: Sequence[dict[str, Any]], evaluation: dict[str, Any]) -> int | None:
    """The run with the fewest bits per byte on validation, among those that were scored on test.

    Args:
        rows: The runs.
        evaluation: By split, the scores of each run, in the same order.

    Returns:
        Its index; None if fewer than two runs were scored, or not on the same documents.
    """
    chosen, tested = (evaluation[split] for split in ("validation", "test"))
    if not (chosen["documents"] and tested["documents"]):
        return None
    scored = [
        (chosen["runs"][index]["tuned"]["bits_per_byte"], index)
        for index in range(len(rows))
        if chosen["runs"][index] and tested["runs"][index]
    ]
    return min(scored)[1] if len(scored) > 1 else None


def verdict(
    rows: Sequence[dict[str, Any]], evaluation: dict[str, Any], pairs: dict[str, Any]
) -> dict[str, str | None]:
    """The verdict that the scores support.

    Args:
        rows: The runs.
        evaluation: As in `best_run`.
        pairs: By letter, the paired difference on test between the best run and each other run.

    Returns:
        `outcome`: better, undecided or open. `best`: its letter, or None. `words`: a sentence.
    """
    chosen, tested = (evaluation[split]["runs"] for split in ("validation", "test"))
    both = [
        one is not None and other is not None for one, other in zip(chosen, tested, strict=True)
    ]
    scored = [row["letter"] for row, complete in zip(rows, both, strict=True) if complete]
    if len(scored) < 2:
        only = f"only {scored[0]} is evaluated" if scored else "none of them is evaluated"
        return _verdict("open", None, f"Nothing to compare yet: {only}.")
    index = best_run(rows, evaluation)
    if index is None:
        return _verdict(
            "open",
            None,
            "No ranking: the runs were not scored on the same documents, so a difference in their "
            "scores may come from the documents.",
        )
    letter, documents = rows[index]["letter"], tested[index]["documents"]
    if documents < MIN_DOCUMENTS:
        few = f"{documents} test document{'s are' if documents > 1 else ' is'} too few"
        return _verdict("open", None, f"No ranking: {few}.")
    return _ranked(letter, f"{documents:,} test documents", pairs)


def _ranked(letter: str, documents: str, pairs: dict[str, Any]) -> dict[str, str | None]:
    """The verdict on the run that is best on validation, from its paired differences on test."""
    behind = {other: pair for other, pair in pairs.items() if pair["ci95"][1] < 0}
    ahead = {other: pair for other, pair in pairs.items() if pair["ci95"][0] > 0}
    if ahead:
        sentence = f"No clear best run: {letter} is best on validation, but on {documents}"
        return _verdict("undecided", None, f"{sentence} {_describe(*_smallest(ahead))}.")
    if len(behind) < len(pairs):
        level = {other: pair for other, pair in pairs.items() if other not in behind}
        sentence = (
            f"No run is significantly better: {letter} is best on validation, but on {documents} "
        )
        sentence += f"{_describe(*_smallest(level))}, which includes zero"
        others = [other for other in level if other != _smallest(level)[0]]
        sentence += f"; nor does it differ significantly from {_join(others)}" if others else ""
        return _verdict("undecided", None, f"{sentence}.")
    next_, pair = _smallest(behind)
    rank = "best" if len(pairs) > 1 else "better"
    sentence = f"{letter} is {rank}: on {documents} {_describe(next_, pair)}"
    others = [other for other in behind if other != next_]
    sentence += f"; it is also better than {_join(others)}" if others else ""
    return _verdict("better", letter, f"{sentence}.")


def _verdict(outcome: str, letter: str | None, sentence: str) -> dict[str, str | None]:
    return {"outcome": outcome, "best": letter, "words": sentence}


def _smallest(pairs: dict[str, Any]) -> tuple[str, Any]:
    """The smallest of paired differences, with the letter of the run."""
    return min(pairs.items(), key=lambda item: abs(_value(item[1])))


def _value(pair: dict[str, Any]) -> float:
    value: float = pair["percent"] if pair["unit"] == "token" else pair["bits"]
    return value


def _describe(other: str, pair: dict[str, Any]) -> str:
    """A paired difference to another run as a clause."""
    low, high = pair["ci95"]
    if pair["unit"] == "byte":
        values = [signed_number(value) for value in (pair["bits"], low, high)]
        clause = f"its bits per byte differ from those of {other} by {values[0]}"
        return f"{clause} (95 % interval {values[1]} to {values[2]})"
    if low <= 0 <= high:
        clause = f"its perplexity differs from that of {other} by {signed(pair['percent'])} %"
        return f"{clause} (95 % interval {signed(low)} to {signed(high)} %)"
    ends = sorted((abs(low), abs(high)))
    side = "lower" if high < 0 else "higher"
    clause = f"its perplexity is {abs(pair['percent']):.1f} % {side} than that of {other}"
    return f"{clause} (95 % interval {ends[0]:.1f} to {ends[1]:.1f} %)"


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
