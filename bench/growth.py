"""How our cost grows with corpus size, workers and tasks, and an extrapolation to 50 GB."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import corpora, product_cli, table
from bench.cases import Environment
from bench.measure import Usage

KIND = "law"
SIZES_MB = (100, 300, 1000, 3000)
QUICK_SIZES_MB = (3, 6)
TASK_COUNTS = (4, 16)
IDLE_ELEMENT = 10_000  # an array element with this number has no chunk
TARGET_GB, TARGET_TASKS = 50.0, (16, 64)
STAGES = ("decompress", "tokenize", "seal")
CHUNK_GB = 0.256  # of text, the product's default


@dataclass(frozen=True)
class Point:
    """Cost of one corpus size, worker count and task count.

    `decompress`, `tokenize`, `seal`: CPU seconds. `idle`: CPU seconds of a task without work.
    `wall`: seconds. `peak`: bytes of the largest process. `digest`: of the sealed shards.
    """

    gb: float
    chunks: int
    cpus: int
    tasks: int
    decompress: float
    tokenize: float
    seal: float
    idle: float
    wall: float
    peak: int
    digest: str


def measure_all(
    env: Environment, data: Path, quick: bool, log: Callable[[str], None]
) -> dict[str, Any]:
    """Measure each size once, then other worker and task counts on the largest."""
    source = functools.cache(lambda: corpora.cached(data))
    sizes = QUICK_SIZES_MB if quick else SIZES_MB
    make = functools.partial(corpora.make, KIND, folder=data, source=source)
    tiny = _measure_point(env, make(0), 1, 1)
    points = []
    for size in sizes:
        log(f"{size} MB")
        points.append(_measure_point(env, make(size), 1, 1))
    largest = make(sizes[-1])
    for cpus, tasks in [(2, 1), *((1, count) for count in TASK_COUNTS)]:
        log(f"{sizes[-1]} MB, {cpus} workers, {tasks} tasks")
        points.append(_measure_point(env, largest, cpus, tasks))
    return {
        "machine": table.machine(),
        "distinct": largest.distinct,
        "start": asdict(tiny),
        "points": [asdict(point) for point in points],
    }


def _measure_point(env: Environment, corpus: corpora.Corpus, cpus: int, tasks: int) -> Point:
    run = product_cli.prepare(corpus, env.model, env.scratch)
    core = env.core if cpus == 1 else None
    decompress = run.stage("decompress", cpus=cpus, core=core)
    tokenize: list[Usage] = [
        run.stage("tokenize.shards", cpus=cpus, core=core, element=f"{element}/{tasks}")
        for element in range(tasks)
    ]
    idle = run.stage(
        "tokenize.shards", cpus=cpus, core=core, element=f"{IDLE_ELEMENT}/{IDLE_ELEMENT + 1}"
    )
    seal = run.stage("tokenize.seal", cpus=cpus, core=core)
    chunks = len(run.chunks())
    digest = run.digest()
    run.delete_outputs("chunks", "shards", "raw")
    return Point(
        gb=corpus.gigabytes,
        chunks=chunks,
        cpus=cpus,
        tasks=tasks,
        decompress=decompress.cpu,
        tokenize=sum(usage.cpu for usage in tokenize),
        seal=seal.cpu,
        idle=idle.cpu,
        # Tasks run one after another here; in parallel they would take as long as the longest.
        wall=decompress.wall + max(usage.wall for usage in tokenize) + seal.wall,
        peak=max(usage.process for usage in (decompress, *tokenize, seal)),
        digest=digest,
    )


def tables(results: dict[str, Any]) -> str:
    """The growth table, and the extrapolation with all its assumptions."""
    start, points = results["start"], results["points"]
    lines = [
        f"{results['machine']}. {KIND}, one run each. The text is {results['distinct'] / 1e6:,.0f} "
        "MB; larger corpora use it several times, cut at other places. CPU s/GB without the "
        f"start-up of each task. Chunks have {CHUNK_GB * 1000:.0f} MB, so some of 16 tasks may be "
        "idle. Peak is that of the largest process.",
        "",
        "| GB | workers | tasks | decompress | tokenize | seal | all | start-up CPU s | peak MB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in points:
        cost = _cost_per_gb(start, p)
        columns = [f"{value:.2f}" for value in (*cost.values(), sum(cost.values()))]
        lines.append(
            f"| {p['gb']:.3g} | {p['cpus']} | {p['tasks']} | {' | '.join(columns)} "
            f"| {sum(_start_up(start, p)[name] for name in STAGES):.1f} | {p['peak'] / 1e6:,.0f} |"
        )
    totals = [sum(_cost_per_gb(start, p).values()) for p in points]
    lowest = min(totals)
    spread = f"{max(totals) / lowest:.2f}" if lowest > table.NOISE_SECONDS_PER_GB else "below noise"
    memory = max(p["peak"] for p in points) / min(p["peak"] for p in points)
    digests = {
        gb: {p["digest"] for p in points if p["gb"] == gb} for gb in {p["gb"] for p in points}
    }
    same = (
        "the same" if all(len(values) == 1 for values in digests.values()) else "**not the same**"
    )
    lines += [
        "",
        f"Highest / lowest: CPU s/GB {spread}, memory {memory:.2f}. The content digest of the "
        f"sealed shards is {same} for all numbers of workers and tasks.",
    ]
    return "\n".join([*lines, "", *_extrapolation(start, _single_task(points)[-1])])


def _start_up(start: dict[str, Any], point: dict[str, Any]) -> dict[str, float]:
    """Start-up CPU seconds by stage: tokenize once per task, less for tasks without a chunk."""
    busy = min(point["tasks"], point["chunks"])
    tokenize = busy * start["tokenize"] + (point["tasks"] - busy) * start["idle"]
    return {**start, "tokenize": tokenize}


def _cost_per_gb(start: dict[str, Any], point: dict[str, Any]) -> dict[str, float]:
    """CPU seconds for each further GB, by stage."""
    start_up, further_gb = _start_up(start, point), point["gb"] - start["gb"]
    return {name: max(0.0, point[name] - start_up[name]) / further_gb for name in STAGES}


def _parallel_decompress(start: dict[str, Any], cost: dict[str, float]) -> str:
    """Seconds of decompress if its parts are divided among tasks as well, by number of tasks."""
    estimates = (
        start["decompress"] + TARGET_GB / cores * cost["decompress"] for cores in TARGET_TASKS
    )
    return " or ".join(f"{seconds:.0f}" for seconds in estimates)


def _single_task(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p for p in points if (p["cpus"], p["tasks"]) == (1, 1)]


def _extrapolation(start: dict[str, Any], largest: dict[str, Any]) -> list[str]:
    cost = _cost_per_gb(start, largest)
    chunks = round(TARGET_GB / CHUNK_GB)
    lines = [
        f"**Extrapolation to {TARGET_GB:.0f} GB; we have not run a corpus of that size.** Each "
        "further GB costs "
        + ", ".join(f"{name} {value:.2f}" for name, value in cost.items())
        + " CPU s. With one core per task:",
        "",
        "| tasks | decompress s | tokenize s | seal s | all s |",
        "|---:|---:|---:|---:|---:|",
    ]
    for tasks in TARGET_TASKS:
        rounds = -(-chunks // tasks)
        decompress = start["decompress"] + TARGET_GB * cost["decompress"]
        tokenize = start["tokenize"] + rounds * CHUNK_GB * cost["tokenize"]
        seal = start["seal"] + TARGET_GB * cost["seal"]
        lines.append(
            f"| {tasks} | {decompress:.0f} | {tokenize:.0f} | {seal:.0f} "
            f"| {decompress + tokenize + seal:.0f} |"
        )
    return [
        *lines,
        "",
        "Assumptions: the cost per GB stays the same beyond the sizes above; the corpus is one "
        "zstd frame, which a single core decodes (with many frames or files decompress would be "
        f"divided among tasks like tokenize and take {_parallel_decompress(start, cost)} s); "
        f"{chunks} chunks are divided evenly, and the slowest task has the rounded-up share; a "
        "core is as fast when all cores work (memory bandwidth, clock) as one was here; the "
        "file system keeps up with all tasks, so that CPU seconds equal wall seconds; each task "
        "starts up once; the real text has as many bytes per token and as many repeated words; "
        "a stage starts when the previous one has ended; download and time in the queue are "
        "not counted.",
    ]
