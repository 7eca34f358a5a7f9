"""One task: an element of a step's array, in this process. Jobs and local runs both end up here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.cluster.allocation import Allocation, process_gone, process_label
from jobs.core.console import print_line
from jobs.core.environment import prepare_environment
from jobs.monitoring.progress_file import ProgressFile, logs_folder, progress_mark
from pipeline.config import Config
from pipeline.core import provenance
from pipeline.core.error_translation import translate
from pipeline.core.errors import Busy, Failure, InputError, Interrupted
from pipeline.core.redaction import redact
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.core.task_log import DONE, FAILED, INTERRUPTED, status_file
from pipeline.dag import Node, find

LISTING_LAG_SECONDS = 90.0  # network file systems may show an old folder listing that long
LISTING_POLL_SECONDS = 5.0


def run_task(
    config: Config,
    root: Path,
    step: str,
    element: int = 0,
    of: int = 1,
    *,
    stop: Stop,
    allocation: Allocation,
    plan: str = "",
) -> dict[str, int]:
    """Run every `of`-th item of a step, starting with item `element`, unless it is done.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        step: The step's name.
        element: Which task this is.
        of: Among how many tasks the items are divided.
        stop: Asks the task to save and stop.
        allocation: The resources of this process.
        plan: The id of the plan that it belongs to; empty for a task that was started by hand.

    Returns:
        How many items were done, adopted and skipped.

    Raises:
        InputError: A step before it is not finished.
        Failure, Interrupted: As raised by the step.
    """
    prepare_environment(step, root)
    folder = logs_folder(root, config.name)
    folder.mkdir(parents=True, exist_ok=True)
    rank = allocation.rank
    # status and reports read only the file of rank 0
    file = ProgressFile(status_file(folder, step, element, rank))
    file.start(allocation, element, of, plan)
    outcomes = {"done": 0, "adopted": 0, "skipped": 0}
    with _failures_recorded(file, step, root):
        node = _ready_node(config, root, step, allocation, stop)
        if not rank:
            file.count_idle(progress_mark(node.work.folder))
        items = (node.items or [])[element::of]
        file.log = _log
        ctx = _context(file, allocation, stop)
        for number, item in enumerate(items):
            file.begin(item.name, number, len(items))
            outcome = run_item(node.work, item, ctx)
            outcomes[outcome] += 1
            ctx.log(f"{step} {item.name}: {outcome}")
        file.write(
            state=DONE,
            number=len(items),
            done=outcomes["done"],
            adopted=outcomes["adopted"],
            skipped=outcomes["skipped"],
        )
    return outcomes


def _context(file: ProgressFile, allocation: Allocation, stop: Stop) -> Context:
    rank = allocation.rank
    return Context(
        stop=stop,
        progress=file.progress,
        log=_log if not rank else lambda text: _log(f"rank {rank}: {text}"),
        cpus=allocation.cpus,
        gpus=allocation.gpus,
        rank=rank,
        local_rank=allocation.local_rank,
        world_size=allocation.world,
        rendezvous=allocation.rendezvous,
        attempt=allocation.attempt,
        label=process_label(),
        has_ended=process_gone,
        code=provenance.code_version(),
    )


def _log(text: str) -> None:
    print_line(f"{time.strftime('%H:%M:%S')} {text}")


def _ready_node(config: Config, root: Path, step: str, allocation: Allocation, stop: Stop) -> Node:
    """The node of a step whose inputs are finished.

    In a job, waits until this host's file system shows what other hosts have finished.

    Raises:
        InputError: A step before it is not finished.
    """
    end = time.monotonic() + (LISTING_LAG_SECONDS if allocation.job else 0.0)
    while True:
        node = find(config, root, step)
        if node.items is not None:
            return node
        if time.monotonic() > end:
            break
        stop.check()
        time.sleep(LISTING_POLL_SECONDS)
    missing = [n for n in node.work.step.needs if not find(config, root, n).complete]
    raise InputError(
        f"{step} cannot start before these steps are finished: {', '.join(missing)}",
        f"Run: make pipeline DATASET={config.dataset.id}",
    )


@contextmanager
def _failures_recorded(file: ProgressFile, step: str, root: Path) -> Iterator[None]:
    """Write into the progress file how a task failed."""
    try:
        yield
    except Interrupted as error:
        file.write(state=INTERRUPTED, message=str(error))
        raise
    except Failure as error:
        busy = isinstance(error, Busy)
        file.write(state=FAILED, message=str(error), exit_code=error.exit_code, busy=busy)
        raise
    except BaseException as error:
        failure = translate(error, root) if isinstance(error, Exception) else None
        message = redact(str(failure or f"{step}: {type(error).__name__}: {error}"))
        exit_code = failure.exit_code if failure else 1
        file.write(state=FAILED, message=message, exit_code=exit_code)
        if failure:
            raise failure from error
        raise
