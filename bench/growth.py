"""How our cost grows with the corpus, the workers and the tasks; and what 50 GB would then take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import corpora, product_cli, table
from bench.cases import Bench
from bench.measure import Usage

KIND = "law"
SIZES = (100, 300, 1000, 3000)
QUICK = (3, 6)
TASKS = (4, 16)
IDLE = 10_000  # an element of so many has no chunk
FAR, CORES = 50.0, (16, 64)
STAGES = ("decompress", "tokenize", "seal")
CHUNK = 0.256  # GB of text, the product's default


@dataclass(frozen=True)
class Point:
    """What one way to do it cost: CPU and wall seconds, and bytes of the largest process.

    `idle`: CPU seconds of a task that finds nothing to do. `digest`: of the sealed shards.
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
    bench: Bench, data: Path, quick: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every point once: the sizes, then other workers and tasks on the largest."""
    source = functools.cache(lambda: corpora.cached(data))
    sizes = QUICK if quick else SIZES
    make = functools.partial(corpora.make, KIND, folder=data, source=source)
    tiny = _point(bench, make(0), 1, 1)
    points = []
    for size in sizes:
        say(f"{size} MB")
        points.append(_point(bench, make(size), 1, 1))
    largest = make(sizes[-1])
    for cpus, tasks in [(2, 1), *((1, count) for count in TASKS)]:
        say(f"{sizes[-1]} MB, {cpus} workers, {tasks} tasks")
        points.append(_point(bench, largest, cpus, tasks))
    return {
        "machine": table.machine(),
        "distinct": largest.distinct,
        "start": asdict(tiny),
        "points": [asdict(point) for point in points],
    }


def _point(bench: Bench, corpus: corpora.Corpus, cpus: int, tasks: int) -> Point:
    run = product_cli.prepare(corpus, bench.model, bench.scratch)
    core = bench.core if cpus == 1 else None
    first = run.stage("decompress", cpus=cpus, core=core)
    each: list[Usage] = [
        run.stage("tokenize.shards", cpus=cpus, core=core, of=f"{element}/{tasks}")
        for element in range(tasks)
    ]
    idle = run.stage("tokenize.shards", cpus=cpus, core=core, of=f"{IDLE}/{IDLE + 1}")
    last = run.stage("tokenize.seal", cpus=cpus, core=core)
    chunks = len(run.chunks())
    digest = run.digest()
    run.forget("chunks", "shards", "raw")
    return Point(
        gb=corpus.gigabytes,
        chunks=chunks,
        cpus=cpus,
        tasks=tasks,
        decompress=first.cpu,
        tokenize=sum(usage.cpu for usage in each),
        seal=last.cpu,
        idle=idle.cpu,
        # tasks are run one after another here; at once they would take as long as the longest
        wall=first.wall + max(usage.wall for usage in each) + last.wall,
        peak=max(usage.process for usage in (first, *each, last)),
        digest=digest,
    )


def tables(found: dict[str, Any]) -> str:
    """How it grows, and the extrapolation with each of its assumptions."""
    start, points = found["start"], found["points"]
    lines = [
        f"{found['machine']}. {KIND}, one run each; the text is {found['distinct'] / 1e6:,.0f} MB "
        "and goes round again, cut elsewhere. CPU s/GB with start-up removed (that of every task), "
        f"in chunks of {CHUNK * 1000:.0f} MB, so that of 16 tasks some may idle; peak "
        "is the largest process.",
        "",
        "| GB | workers | tasks | decompress | tokenize | seal | all | start-up CPU s | peak MB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in points:
        cost = _further(start, p)
        parts = [f"{value:.2f}" for value in (*cost.values(), sum(cost.values()))]
        lines.append(
            f"| {p['gb']:.3g} | {p['cpus']} | {p['tasks']} | {' | '.join(parts)} "
            f"| {sum(_starting(start, p)[name] for name in STAGES):.1f} | {p['peak'] / 1e6:,.0f} |"
        )
    totals = [sum(_further(start, p).values()) for p in points]
    least = min(totals)
    spread = f"{max(totals) / least:.2f}" if least > table.NOISE else "lost in noise"
    memory = max(p["peak"] for p in points) / min(p["peak"] for p in points)
    ends = {gb: {p["digest"] for p in points if p["gb"] == gb} for gb in {p["gb"] for p in points}}
    same = "the same" if all(len(digests) == 1 for digests in ends.values()) else "**not the same**"
    lines += [
        "",
        f"Dearest by cheapest: CPU s/GB {spread}, memory {memory:.2f}. The content digest of the "
        f"sealed shards is {same} whatever the workers and tasks.",
    ]
    return "\n".join([*lines, "", *_far(start, _plain(points)[-1])])


def _starting(start: dict[str, Any], point: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of starting: each stage, tokenize once a task, less where that has no chunk."""
    busy = min(point["tasks"], point["chunks"])
    tokenize = busy * start["tokenize"] + (point["tasks"] - busy) * start["idle"]
    return {**start, "tokenize": tokenize}


def _further(start: dict[str, Any], point: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of each further GB, by stage."""
    starting, more = _starting(start, point), point["gb"] - start["gb"]
    return {name: max(0.0, point[name] - starting[name]) / more for name in STAGES}


def _shared(start: dict[str, Any], cost: dict[str, float]) -> str:
    """Seconds of decompress if its parts are dealt out as well, by number of cores."""
    each = (start["decompress"] + FAR / cores * cost["decompress"] for cores in CORES)
    return " or ".join(f"{seconds:.0f}" for seconds in each)


def _plain(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p for p in points if (p["cpus"], p["tasks"]) == (1, 1)]


def _far(start: dict[str, Any], end: dict[str, Any]) -> list[str]:
    cost = _further(start, end)
    chunks = round(FAR / CHUNK)
    lines = [
        f"**{FAR:.0f} GB, by arithmetic; nothing that large was run.** Further GB cost "
        + ", ".join(f"{name} {value:.2f}" for name, value in cost.items())
        + " CPU s each. With one core a task:",
        "",
        "| tasks | decompress s | tokenize s | seal s | all s |",
        "|---:|---:|---:|---:|---:|",
    ]
    for cores in CORES:
        rounds = -(-chunks // cores)
        first = start["decompress"] + FAR * cost["decompress"]
        middle = start["tokenize"] + rounds * CHUNK * cost["tokenize"]
        last = start["seal"] + FAR * cost["seal"]
        lines.append(
            f"| {cores} | {first:.0f} | {middle:.0f} | {last:.0f} | {first + middle + last:.0f} |"
        )
    return [
        *lines,
        "",
        "Assumed: cost per GB stays what it is from the smallest to the largest size above; the "
        "corpus is one zstd frame, which one core decodes alone, and decompress gets no help "
        "from other cores (in many frames or files it would be shared out as tokenize is, and "
        f"take {_shared(start, cost)} s); {chunks} chunks are dealt out evenly, so a task has "
        "the rounded-up share; a core is as fast when all of them work (memory bandwidth, "
        "clock) as one was here; the file system keeps up with all tasks at once, so that CPU "
        "seconds are seconds; one start-up a task; the real text has as many bytes a token and "
        "as many repeated words; a stage begins when the one before it has ended; download and "
        "waiting for the scheduler are not counted.",
    ]
