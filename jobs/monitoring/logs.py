"""The logs of a run: those of tasks that ran here, and those that SLURM wrote, the oldest first."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.monitoring.progress_file import logs_folder

EVERY = 0.5
# what submitit says of each task, however little there was to do
USUAL = re.compile(
    r"^submitit INFO \(.*?\) - (Starting with|Loading pickle|Job completed|Exiting after s).*\n?",
    re.MULTILINE,
)


def find_logs(root: Path, name: str) -> list[Path]:
    """The log files of a run, in order of the last line written."""
    folder = logs_folder(root, name)
    found = [*folder.glob("*.log"), *folder.glob("*/*_log.out")]
    there = [path for path in found if path.exists()]  # a link of work by hand may outlive its log
    return sorted(there, key=lambda path: path.stat().st_mtime)


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, what submitit always says left out."""
    told = USUAL.sub("", path.read_text(errors="replace"))
    return "\n".join(told.splitlines()[-lines:])


def follow(root: Path, name: str, shown: list[Path]) -> Iterator[str]:
    """What is added to the logs of a run from now on, new ones too; never ends by itself.

    Yields:
        Text as it comes; a line naming the log where it is another one than before.
    """
    places = {path: path.stat().st_size for path in shown}
    current = shown[-1] if shown else None
    while True:
        for path in find_logs(root, name):
            with path.open("rb") as file:
                file.seek(places.get(path, 0))
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]  # a line that is being written comes when it ends
            places[path] = places.get(path, 0) + len(text)
            if told := USUAL.sub("", text.decode(errors="replace")):
                yield ("" if path == current else f"== {path}\n") + told
                current = path
        time.sleep(EVERY)
