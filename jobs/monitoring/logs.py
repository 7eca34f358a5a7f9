"""The logs of a run, of tasks that ran here and of SLURM jobs, oldest first."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.monitoring.progress_file import logs_folder

POLL_SECONDS = 0.5
# lines that submitit writes for every task
SUBMITIT_LINES = re.compile(
    r"^submitit INFO \(.*?\) - (Starting with|Loading pickle|Job completed|Exiting after s).*\n?",
    re.MULTILINE,
)


def find_logs(root: Path, name: str) -> list[Path]:
    """The log files of a run, ordered by the time of their last line."""
    folder = logs_folder(root, name)
    found = [*folder.glob("*.log"), *folder.glob("*/*_log.out")]
    existing = [path for path in found if path.exists()]  # links of work by hand may be dangling
    return sorted(existing, key=lambda path: path.stat().st_mtime)


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, without submitit's routine messages."""
    text = SUBMITIT_LINES.sub("", path.read_text(errors="replace"))
    return "\n".join(text.splitlines()[-lines:])


def follow(root: Path, name: str, shown: list[Path]) -> Iterator[str]:
    """Yield what is appended to the logs of a run from now on, new logs included. Never ends.

    Yields:
        Complete lines, and a line with the path of the log whenever it changes.
    """
    offsets = {path: path.stat().st_size for path in shown}
    current = shown[-1] if shown else None
    while True:
        for path in find_logs(root, name):
            with path.open("rb") as file:
                file.seek(offsets.get(path, 0))
                content = file.read()
            content = content[: content.rfind(b"\n") + 1]  # leave an incomplete line for later
            offsets[path] = offsets.get(path, 0) + len(content)
            if text := SUBMITIT_LINES.sub("", content.decode(errors="replace")):
                yield ("" if path == current else f"== {path}\n") + text
                current = path
        time.sleep(POLL_SECONDS)
