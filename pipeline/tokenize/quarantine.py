"""Lines that are no records: put aside with their place, and when there are too many of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core.errors import CorruptInput
from pipeline.sources.records import EXCERPT_CHARS, MalformedRecord, MissingField

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """The malformed lines of a chunk, one JSON object each: file, line, reason, how it begins.

    Args:
        path: The file to write.
        limit: How many lines are put aside; it bounds the file, too.

    Attributes:
        count: Lines put aside.
        first: The first of them, and the text field that may have been meant.
        empty: Lines without a text; they are only counted.
        sound: Records that were understood; the caller counts them.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._limit = limit
        self.count = self.empty = self.sound = 0
        self.first: dict[str, Any] | None = None

    def add(self, file: str, line: int, data: bytes, bad: MalformedRecord) -> None:
        """Put a line aside.

        Args:
            file: The raw file it stands in.
            line: Its number there, from 1.
            data: The line.
            bad: Why, and what a row of a table says of its place.

        Raises:
            CorruptInput: It is one too many.
        """
        self.count += 1
        entry = {
            "file": file,
            "line": line if bad.line is None else bad.line,
            "reason": bad.reason,
            "text": data[:EXCERPT_CHARS].decode("utf-8", "replace")
            if bad.text is None
            else bad.text,
        }
        if self.first is None:
            self.first = {**entry, "missing": asdict(bad.missing) if bad.missing else None}
        if self.count > self._limit:
            raise refusal(self.count, self.sound, self.first)
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """No more lines will come."""
        self._file.close()


def refusal(bad: int, sound: int, first: dict[str, Any], where: str = "") -> CorruptInput:
    """The error that refuses a corpus of so many malformed lines.

    Args:
        bad: Malformed lines so far.
        sound: Records so far.
        first: The first of the malformed, see `Quarantine`.
        where: The files that hold them all.
    """
    told = f"{first['file']}, line {first['line']}: {first['reason']}"
    missing = MissingField(**first["missing"]) if first["missing"] else None
    if missing and missing.suggestion and not sound:
        return CorruptInput(
            f"no record has the field {missing.field!r}; its fields are {missing.names} "
            f"({first['file']}, line {first['line']})",
            f'Say which is the text: ARGS="dataset.text_field={missing.suggestion}"',
        )
    return CorruptInput(
        f"{bad} of {bad + sound} lines are malformed; the first is {told}: {first['text'][:60]!r}",
        (f"See {where}. " if where else "") + _remedy(first["text"], mostly=bad > sound),
    )


def _remedy(text: str, mostly: bool) -> str:
    """What to do, by how the first malformed line begins, and whether most lines are."""
    start = text.lstrip().lower()
    if mostly and start.startswith(("<!doctype", "<html", "<?xml")):
        return "It is a web page in place of the corpus: get the file again"
    if mostly and start.startswith("["):
        return "It is one JSON array, and an object a line is wanted: jq -c '.[]' makes that of it"
    check = "Check dataset.form and dataset.text_field"
    more = 'ARGS="tokenize.max_bad_lines=… tokenize.max_bad_share=…"'
    return check if mostly else f"{check}, or allow more: {more}"
