"""One task: an element of an array, run in this process. Whoever starts it, this is what runs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import provenance
from pipeline.config import Config
from pipeline.dag import find
from pipeline.errors import Failure, InputError, Interrupted
from pipeline.files import write_text
from pipeline.stage import Context, run_item
from pipeline.stop import Stop

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
EVERY = 0.5


@dataclass
class Journal:
    """How far a task is, in a small file that others read: `logs/<step>-<element>.json`."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    _written: float = 0.0

    def progress(self, done: int, total: int | None, unit: str = "bytes", **facts: Any) -> None:
        """Note the progress of the item at hand; written at most every half second."""
        self.content.setdefault("first", done)
        self.content |= {"done": done, "total": total, "unit": unit, "facts": facts}
        if time.monotonic() - self._written > EVERY:
            self.write()

    def begin(self, item: str, number: int, items: int) -> None:
        """Note that an item begins, the `number`-th of `items`."""
        self.content.pop("first", None)
        self.write(item=item, number=number, items=items, since=time.time(), done=0, total=None)

    def write(self, **more: Any) -> None:
        """Write the file now."""
        self.content |= {**more, "time": time.time()}
        with contextlib.suppress(OSError):  # it is only news: no work ends for want of it
            write_text(self.path, json.dumps(self.content))
        self._written = time.monotonic()


def process_label(pid: int | None = None) -> str:
    """A name for a process that no later one on this host will have."""
    pid = pid or os.getpid()
    return f"{socket.gethostname()}:{pid}:{_born(pid)}"


def process_gone(label: str) -> bool | None:
    """Whether the process of a label has ended; None if it is on another host."""
    try:
        host, pid, born = label.rsplit(":", 2)
        return None if host != socket.gethostname() else _born(int(pid)) != born
    except ValueError:
        return None


def _born(pid: int) -> str:
    """Start time of a process, in clock ticks since boot; empty if there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def logs_folder(root: Path, name: str) -> Path:
    """Where the logs of a run are."""
    return root / "runs" / name / "logs"


def prepare(step: str, root: Path) -> None:
    """Set what libraries read at import: offline after download, caches below the root."""
    if not step.startswith("download."):
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    # not HF_HOME: the user's login is there
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
        os.environ.setdefault(name, str(root / "cache" / name.lower()))
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("TRITON_CACHE_DIR", str(root / "cache" / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "cache" / "inductor"))
    os.environ.setdefault("MPLCONFIGDIR", str(root / "cache" / "matplotlib"))


def run_task(
    config: Config,
    root: Path,
    step: str,
    element: int = 0,
    of: int = 1,
    *,
    stop: Stop,
    cpus: int = 1,
    gpus: int = 0,
) -> dict[str, int]:
    """Run every `of`-th item of a step, from `element` on, unless it is done.

    Returns:
        How many items were done, adopted and skipped.

    Raises:
        InputError: A step before it is not finished.
        Failure, Interrupted: As the step says.
    """
    prepare(step, root)
    folder = logs_folder(root, config.name)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"{step}-{element}.json")
    journal.write(
        label=process_label(), started=time.time(), element=element, of=of, state="running"
    )
    outcomes = {"done": 0, "adopted": 0, "skipped": 0}
    try:
        node = find(config, root, step)
        if node.items is None:
            raise InputError(
                f"{step} cannot start: {', '.join(node.work.step.needs)} are not all finished",
                f"run: make pipeline DATASET={config.dataset.id}",
            )
        mine = node.items[element::of]
        ctx = Context(
            stop=stop,
            progress=journal.progress,
            log=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True),
            cpus=cpus,
            gpus=gpus,
            label=process_label(),
            gone=process_gone,
            code=provenance.code_version(),
        )
        for number, item in enumerate(mine):
            journal.begin(item.name, number, len(mine))
            outcome = run_item(node.work, item, ctx)
            outcomes[outcome] += 1
            ctx.log(f"{step} {item.name}: {outcome}")
    except Interrupted as error:
        journal.write(state="interrupted", message=str(error))
        raise
    except Failure as error:
        journal.write(state="failed", message=str(error), exit_code=error.exit_code)
        raise
    except OSError as error:
        failure = InputError(
            f"{step}: {error.strerror or error} ({error.filename or root})", remedy(error)
        )
        journal.write(state="failed", message=str(failure), exit_code=failure.exit_code)
        raise failure from error
    except BaseException as error:
        message = f"{step}: {type(error).__name__}: {error}"
        journal.write(state="failed", message=message, exit_code=1)
        raise
    journal.write(state="done", number=len(mine), **outcomes)
    return outcomes


def remedy(error: OSError) -> str:
    """What to do about an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Make room, or choose another place with RUNS=…; finished work stays"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Choose a place that you may write to with RUNS=…"
    return "Run the same command again: finished work stays"
