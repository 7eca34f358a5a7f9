"""The quarantine: malformed lines with their position and reason, and the limit on their number."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pipeline.core.errors import CorruptInput
from pipeline.sources.records import EXCERPT_CHARS, MalformedRecord, MissingField
from pipeline.tokenize.facts import MalformedLine

QUARANTINE = "quarantine.jsonl"
SHOWN_CHARACTERS = 60  # of a malformed line in an error


class Quarantine:
    """Writes the malformed lines of a chunk, one JSON object each: file, line, reason, text.

    Args:
        path: The file to write.
        limit: The largest number of malformed lines; it also bounds the file.

    Attributes:
        count: Malformed lines so far.
        first: The first malformed line.
        blank_lines: Lines without text; set by the caller, for facts.
        documents: Documents that were read; set by the caller, for error messages.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._limit = limit
        self.count = self.blank_lines = self.documents = 0
        self.first: MalformedLine | None = None

    def add(self, file: str, line: int, data: bytes, malformed: MalformedRecord) -> None:
        """Add a line.

        Args:
            file: The raw file of the line.
            line: Its number there, from 1.
            data: The line.
            malformed: The reason; for a row of a table also its own line number and text.

        Raises:
            CorruptInput: There are more lines than the limit.
        """
        self.count += 1
        start = data[:EXCERPT_CHARS].decode("utf-8", "replace")
        entry: MalformedLine = {
            "file": file,
            "line": line if malformed.line is None else malformed.line,
            "reason": malformed.reason,
            "text": start if malformed.text is None else malformed.text,
            "missing": asdict(malformed.missing) if malformed.missing else None,
        }
        if self.first is None:
            self.first = entry
        if self.count > self._limit:
            raise too_many_malformed(self.count, self.documents, self.first)
        written = {name: value for name, value in entry.items() if name != "missing"}
        self._file.write(json.dumps(written, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def too_many_malformed(
    malformed: int, documents: int, first: MalformedLine, where: str = ""
) -> CorruptInput:
    """The error for a corpus with too many malformed lines.

    Args:
        malformed: Number of malformed lines so far.
        documents: Number of documents so far.
        first: The first malformed line.
        where: Pattern of the files that list all of them.
    """
    missing = MissingField(**first["missing"]) if first["missing"] else None
    if missing and missing.suggestion and not documents:
        return CorruptInput(
            f"no record has the field {missing.field!r}; its fields are {missing.names} "
            f"({first['file']}, line {first['line']})",
            f'Name the field with the text: ARGS="dataset.text_field={missing.suggestion}"',
        )
    shown = f"{first['file']}, line {first['line']}: {first['reason']}"
    return CorruptInput(
        f"{malformed} of {malformed + documents} lines are malformed; the first is {shown}: "
        f"{first['text'][:SHOWN_CHARACTERS]!r}",
        (f"See {where}. " if where else "") + _remedy(first["text"], mostly=malformed > documents),
    )


def _remedy(text: str, mostly: bool) -> str:
    """What to do, given the text of the first malformed line and whether most lines are."""
    start = text.lstrip().lower()
    if mostly and start.startswith(("<!doctype", "<html", "<?xml")):
        return "It is a web page in place of the corpus: download the file again"
    if mostly and start.startswith("["):
        return "It is one JSON array, not one object per line. Convert it with: jq -c '.[]'"
    check = "Check dataset.form and dataset.text_field"
    more = 'ARGS="tokenize.max_bad_lines=… tokenize.max_bad_share=…"'
    return check if mostly else f"{check}, or allow more: {more}"
