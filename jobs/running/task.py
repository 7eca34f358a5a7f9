"""One task: an element of an array, run in this process. Whoever starts it, this is what runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.cluster.allocation import Allocation, process_gone, process_label
from jobs.core.console import say
from jobs.core.environment import prepare_environment
from jobs.monitoring.progress_file import Journal, logs_folder, progress_mark
from pipeline.config import Config
from pipeline.core import provenance
from pipeline.core.error_translation import explain
from pipeline.core.errors import Busy, Failure, InputError, Interrupted
from pipeline.core.redaction import redact
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.core.task_log import DONE, FAILED, INTERRUPTED, status_file
from pipeline.dag import Node, find

LAG = 90.0  # network file systems may show an old listing for that long


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
    """Run every `of`-th item of a step, from `element` on, unless it is done.

    `plan`: the id of the plan that asks for it, for its journal.

    Returns:
        How many items were done, adopted and skipped.

    Raises:
        InputError: A step before it is not finished.
        Failure, Interrupted: As the step says.
    """
    prepare_environment(step, root)
    folder = logs_folder(root, config.name)
    folder.mkdir(parents=True, exist_ok=True)
    rank = allocation.rank
    # what others read is of rank 0
    journal = Journal(status_file(folder, step, element, rank))
    journal.start(allocation, element, of, plan)
    outcomes = {"done": 0, "adopted": 0, "skipped": 0}
    with _noting(journal, step, root):
        node = _find_soon(config, root, step, LAG if allocation.job else 0.0, stop)
        if node.items is None:
            needs = [n for n in node.work.step.needs if not find(config, root, n).complete]
            raise InputError(
                f"{step} cannot start: not finished: {', '.join(needs)}",
                f"run: make pipeline DATASET={config.dataset.id}",
            )
        if not rank:
            journal.count_idle(progress_mark(node.work.folder))
        mine = node.items[element::of]
        journal.tell = _log
        ctx = Context(
            stop=stop,
            progress=journal.progress,
            log=_log if not rank else lambda text: _log(f"rank {rank}: {text}"),
            cpus=allocation.cpus,
            gpus=allocation.gpus,
            rank=rank,
            local_rank=allocation.local_rank,
            world=allocation.world,
            rendezvous=allocation.rendezvous,
            attempt=allocation.attempt,
            label=process_label(),
            gone=process_gone,
            code=provenance.code_version(),
        )
        for number, item in enumerate(mine):
            journal.begin(item.name, number, len(mine))
            outcome = run_item(node.work, item, ctx)
            outcomes[outcome] += 1
            ctx.log(f"{step} {item.name}: {outcome}")
        journal.write(
            state=DONE,
            number=len(mine),
            done=outcomes["done"],
            adopted=outcomes["adopted"],
            skipped=outcomes["skipped"],
        )
    return outcomes


def _log(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')} {text}")


def _find_soon(config: Config, root: Path, step: str, lag: float, stop: Stop) -> Node:
    """The node of a step, once this host's file system shows what another has finished."""
    end = time.monotonic() + lag
    while True:
        node = find(config, root, step)
        if node.items is not None or time.monotonic() > end:
            return node
        stop.check()
        time.sleep(5.0)


@contextmanager
def _noting(journal: Journal, step: str, root: Path) -> Iterator[None]:
    """Write down how a task ends that does not end well."""
    try:
        yield
    except Interrupted as error:
        journal.write(state=INTERRUPTED, message=str(error))
        raise
    except Failure as error:
        busy = isinstance(error, Busy)
        journal.write(state=FAILED, message=str(error), exit_code=error.exit_code, busy=busy)
        raise
    except BaseException as error:
        fault = explain(error, root) if isinstance(error, Exception) else None
        message = redact(str(fault or f"{step}: {type(error).__name__}: {error}"))
        journal.write(state=FAILED, message=message, exit_code=fault.exit_code if fault else 1)
        if fault:
            raise fault from error
        raise
