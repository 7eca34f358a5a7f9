"""Stress-test the data stages, from download to seal, with random faults in the queue.

    python -m bench.fault_storm [--mb 3000] [--kind law] [--frames 12] [--elements 8] [--kills 20]
                                [--every 3] [--seed 0]

Runs on the test cluster (tests/cluster/up.sh), which is started and stopped unless it is already
running. A server on the loopback provides a `.jsonl.zst`; it is downloaded, decompressed, tokenized
by an array, and sealed, while random faults hit the running jobs (bench/fault_injection.py) and
failed jobs are submitted again. The whole plan is queued, as usual, but the profile holds train and
evaluate, so the seal is the last step. Then the same corpus is processed without a queue and
without faults.

The exit code is 1 if a digest differs, a file does not match its receipt, or a committed file was
rewritten.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import yaml
import zstandard

from bench import corpora, fault_injection, model
from bench.download import KillingServer
from bench.fault_injection import FaultInjector
from bench.immutability_check import ImmutabilityCheck
from pipeline.config import Config, resolve
from pipeline.core.receipt import hash_json, load
from pipeline.dag import survey
from tests.cluster.fixture import HERE as CLUSTER_SCRIPTS
from tests.cluster.fixture import ROOT as CLUSTER_ROOT
from tests.cluster.fixture import Cluster, up

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "bench" / ".data"
STAGES = ("download", "decompress", "tokenize")
NAME, DATASET = "storm", "stormy"
CHUNKS = 32
SHOWN_STEPS = ("tokenize.shards", "tokenize.seal")
INCOMPLETE = "incomplete"
DOWNLOAD_SECONDS = 20.0  # the bandwidth is limited to this, or the download would be over at once
TIMEOUT_SECONDS = 7200.0


def log(text: str) -> None:
    """Print progress to standard error, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def compress_in_frames(plain: Path, frames: int, seed: int) -> Path:
    """Compress a corpus to several zstd frames, cut at random positions within lines; cached."""
    path = plain.with_name(f"{plain.stem}-{frames}-{seed}.jsonl.zst")
    if path.exists():
        return path
    rng, size = random.Random(seed), plain.stat().st_size
    compressor = zstandard.ZstdCompressor(corpora.ZSTD_LEVEL)
    part = path.with_suffix(".part")
    with plain.open("rb") as file, part.open("wb") as out:
        cuts = sorted(_within_line(file, rng.randrange(1, size)) for _ in range(frames - 1))
        file.seek(0)
        for end in [*cuts, size]:
            with compressor.stream_writer(out, closefd=False) as frame:
                while left := end - file.tell():
                    frame.write(file.read(min(left, 1 << 20)))
    part.rename(path)
    return path


def _within_line(file: BinaryIO, position: int) -> int:
    """The position, or the next one if a line ends there."""
    file.seek(position - 1)
    return position + (file.read(1) == b"\n")


class PipelineRun:
    """A run of the pipeline below its own root, through the queue or locally."""

    def __init__(self, root: Path, dataset: Path, base: Path | str, overrides: list[str]) -> None:
        self.root, self.overrides = root, overrides
        self._run = [f"--dataset={dataset}", f"--model={base}", f"--name={NAME}", f"--root={root}"]
        self.config: Config = resolve(str(dataset), str(base), None, overrides, NAME)

    def submit(self, profile: Path) -> subprocess.Popen[str]:
        """Start the submission that `make pipeline` runs."""
        with (self.root.parent / "submits.log").open("a") as output:
            return self._start(["submit", *self._run, f"--profile={profile}"], output)

    def run_local(self) -> float:
        """Run the data stages one after another without a queue; returns the wall seconds."""
        started = time.monotonic()
        with (self.root.parent / "local.log").open("a") as output:
            for stage in STAGES:
                arguments = ["run", stage, *self._run, "--profile=local"]
                if self._start(arguments, output).wait():
                    sys.exit(f"{stage} failed: {output.name}")
        return time.monotonic() - started

    def _start(self, arguments: list[str], output: IO[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs", *arguments, *self.overrides]
        return subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True
        )

    def is_sealed(self) -> bool:
        """Whether the shards are sealed."""
        return any((self.root / "data" / DATASET).glob("shards-*/seal/receipt.json"))

    def digests(self) -> dict[str, str]:
        """The content digest of each data step, or `INCOMPLETE`."""
        digests = {}
        for node in survey(self.config, self.root):
            if node.work.step.stage in STAGES:
                digest = hash_json(sorted(receipt.digest for receipt in node.done.values()))
                digests[node.work.step.name] = digest if node.complete else INCOMPLETE
        return digests

    def verify(self) -> int:
        """Compare every file of every unit of the corpus with its receipt; returns the units.

        Raises:
            CorruptInput: A file does not match.
        """
        units = 0
        for path in (self.root / "data" / DATASET).glob("*/[!.]*/receipt.json"):
            receipt = load(path.parent)
            assert receipt is not None, path
            receipt.verify(path.parent)
            units += 1
        return units


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The test cluster; stopped afterwards if it was not running before."""
    was_running = (CLUSTER_ROOT / "env.sh").exists()
    done = up()
    if done.returncode:
        sys.exit(done.stderr.strip())
    cluster = Cluster(CLUSTER_ROOT)
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        if cluster.squeue():
            sys.exit(f"{CLUSTER_ROOT} is in use: set GRISTMILL_CLUSTER")
        yield cluster
    finally:
        cluster.cancel_all()
        if not was_running:
            subprocess.run([CLUSTER_SCRIPTS / "down.sh"], check=True, timeout=60)


def prepare(
    options: argparse.Namespace, folder: Path
) -> tuple[KillingServer, PipelineRun, PipelineRun, Path]:
    """The server, the run with faults, the run without, and the profile of the first."""
    source = functools.cache(lambda: corpora.cached(DATA))
    corpus = corpora.make(options.kind, options.mb, DATA, source)
    packed = compress_in_frames(corpus.plain, options.frames, options.seed)
    packed_bytes = packed.stat().st_size
    base = model.make(DATA / "model", source)
    server = KillingServer(packed, [])
    dataset = folder / f"{DATASET}.yaml"
    url = f"http://127.0.0.1:{server.server_port}/{packed.name}"
    dataset.write_text(yaml.safe_dump({"urls": [url], "id_field": "meta.id"}))
    overrides = [
        f"decompress.chunk_bytes={corpus.size // CHUNKS}",
        f"tokenize.tasks={options.elements}",
        f"download.bandwidth={max(0.1, packed_bytes / 1e6 / DOWNLOAD_SECONDS):.3f}",
        f"decompress.tasks={options.elements}",
        f"decompress.part_bytes={packed_bytes // options.elements}",
    ]
    profile = folder / "site.yaml"
    held = {stage: {"sbatch": {"hold": True}} for stage in ("train", "evaluate")}
    profile.write_text(yaml.safe_dump({"extends": "gristmill-test", "jobs": held}))
    with_faults, without = (
        PipelineRun(folder / name, dataset, base, overrides) for name in ("faults", "no-faults")
    )
    return server, with_faults, without, profile


def run_with_faults(
    options: argparse.Namespace, run: PipelineRun, profile: Path
) -> tuple[FaultInjector, ImmutabilityCheck, float, int]:
    """Run the pipeline in the queue with faults.

    Returns:
        The injector, the record of committed files, wall seconds, and restarts.
    """
    committed = ImmutabilityCheck(run.root, DATASET)
    faults = fault_injection.DATA_FAULTS

    def is_done() -> bool:
        committed.record()
        return run.is_sealed()

    with running_cluster() as cluster:
        injector = FaultInjector(
            cluster,
            faults,
            run.root / "runs" / NAME / "logs",
            functools.partial(run.submit, profile),
            fault_injection.sample_faults(faults, options.kills, options.every, options.seed),
            options.seed,
            log,
        )
        seconds = injector.run(is_done, TIMEOUT_SECONDS)
        restarts = injector.restarts()
    committed.record()
    committed.compare()
    return injector, committed, seconds, restarts


def table(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *rest])


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=3000, help="MB of plain jsonl")
    parser.add_argument("--kind", choices=corpora.LENGTHS, default="law")
    parser.add_argument("--frames", type=int, default=12, help="zstd frames, cut within lines")
    parser.add_argument("--elements", type=int, default=8, help="elements of each job array")
    fault_injection.add_options(parser, 3.0)
    return parser.parse_args()


def main() -> None:
    """Run with and without faults, and print the comparison."""
    options = parse_arguments()
    folder = DATA / "fault-storm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["NO_PROXY"] = "127.0.0.1"
    server, with_faults, without, profile = prepare(options, folder)
    log("running with faults")
    injector, committed, seconds, restarts = run_with_faults(options, with_faults, profile)
    log("running without faults")
    seconds_without = without.run_local()
    server.shutdown()
    log("verifying all files")
    units = with_faults.verify()
    digests, expected = with_faults.digests(), without.digests()
    counts, steps = injector.count_by_kind(), dict.fromkeys(digests, 0)
    for _, step in injector.injected.elements():
        steps[step] += 1
    title = f"{options.kind}, {options.mb:,} MB, {options.frames} frames, seed {options.seed}"
    numbers = (*counts.values(), restarts, injector.submits)
    print(table([
        (title, *counts, "restarts", "submits", "wall", *SHOWN_STEPS),
        ("with faults", *map(str, numbers), f"{seconds:.0f} s",
         *(digests[step][:12] for step in SHOWN_STEPS)),
        ("without", *("" for _ in numbers), f"{seconds_without:.0f} s",
         *(expected[step][:12] for step in SHOWN_STEPS)),
    ]))  # fmt: skip
    per_step = ", ".join(f"{step} {count}" for step, count in steps.items() if count)
    print(f"\nfaults: {per_step or 'none'}; {len(injector.pending)} not injected before the seal")
    differing = [
        step for step, digest in digests.items() if digest != expected[step] or digest == INCOMPLETE
    ]
    print(f"digests: {'DIFFERENT: ' + ' '.join(differing) if differing else 'equal for all steps'}")
    print(
        f"{len(committed.states)} committed files ({committed.count_units('chunks')} units of "
        f"chunks, {committed.count_units('shards')} of shards): {len(committed.rewritten)} "
        f"rewritten; {units} units verified"
    )
    for path in sorted(committed.rewritten):
        print(f"  rewritten: {path}")
    if differing or committed.rewritten:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
