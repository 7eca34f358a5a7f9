"""A corpus on its way to sealed shards through a queue in which nothing is left in peace.

    python -m bench.fault_storm [--mb 3000] [--kind law] [--frames 12] [--elements 8] [--kills 20]
                          [--every 3] [--seed 0]

On the test cluster (tests/cluster/up.sh, started and stopped here unless it is up already), a
server on the loopback gives a `.jsonl.zst`, which is downloaded, decompressed, tokenized by an
array, and sealed, while running elements are struck at random (bench/fault_injection.py) and what has
failed is submitted again. The whole plan is queued, as a user would, but for train and evaluate
being held by the profile, so that the seal is the end. Then the same corpus goes the same way
undisturbed, without a queue.

Exit code 1 if a digest differs, a file does not have the bytes of its receipt, or a committed file
was written again.
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
from bench.download import Sender
from bench.fault_injection import Storm
from bench.immutability_check import Witness
from pipeline.config import Config, resolve
from pipeline.core.receipt import hash_json, load
from pipeline.dag import survey
from tests.cluster.fixture import HERE as CLUSTER
from tests.cluster.fixture import ROOT as PLACE
from tests.cluster.fixture import Cluster, up

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "bench" / ".data"
STAGES = ("download", "decompress", "tokenize")
NAME, DATASET = "storm", "stormy"
CHUNKS = 32
SHOWN = ("tokenize.shards", "tokenize.seal")
INCOMPLETE = "incomplete"
DOWNLOAD = 20.0  # seconds that an undisturbed download takes: on the loopback it would take none
TIMEOUT = 7200.0


def say(text: str) -> None:
    """Tell how far it is, beside the result."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def pack(plain: Path, frames: int, seed: int) -> Path:
    """A corpus as so many zstd frames, cut at random places that are no line ends; kept."""
    path = plain.with_name(f"{plain.stem}-{frames}-{seed}.jsonl.zst")
    if path.exists():
        return path
    chance, size = random.Random(seed), plain.stat().st_size
    part = path.with_suffix(".part")
    with plain.open("rb") as file, part.open("wb") as to:
        cuts = sorted(_inside(file, chance.randrange(1, size)) for _ in range(frames - 1))
        file.seek(0)
        for end in [*cuts, size]:
            with zstandard.ZstdCompressor(corpora.LEVEL).stream_writer(to, closefd=False) as press:
                while left := end - file.tell():
                    press.write(file.read(min(left, 1 << 20)))
    part.rename(path)
    return path


def _inside(file: BinaryIO, place: int) -> int:
    """A place within a line, this one or the next."""
    file.seek(place - 1)
    return place + (file.read(1) == b"\n")


class Way:
    """The same corpus and settings below a root: struck in the queue, or undisturbed."""

    def __init__(self, root: Path, dataset: Path, base: Path | str, words: list[str]) -> None:
        self.root, self.words = root, words
        self._run = [f"--dataset={dataset}", f"--model={base}", f"--name={NAME}", f"--root={root}"]
        self.config: Config = resolve(str(dataset), str(base), None, words, NAME)

    def submit(self, profile: Path) -> subprocess.Popen[str]:
        """What `make pipeline` calls."""
        with (self.root.parent / "submits.log").open("a") as log:
            return self._start(["submit", *self._run, f"--profile={profile}"], log)

    def calm(self) -> float:
        """Each stage by hand, one after another, in one process; seconds."""
        started = time.monotonic()
        with (self.root.parent / "calm.log").open("a") as log:
            for stage in STAGES:
                words = ["run", stage, *self._run, "--profile=local"]
                if self._start(words, log).wait():
                    sys.exit(f"{stage} failed: {log.name}")
        return time.monotonic() - started

    def _start(self, words: list[str], log: IO[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs", *words, *self.words]
        return subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
        )

    def sealed(self) -> bool:
        """Whether the seal stands."""
        return any((self.root / "data" / DATASET).glob("shards-*/seal/receipt.json"))

    def digests(self) -> dict[str, str]:
        """Content digest of each step up to the seal; one that is not complete has none."""
        found = {}
        for node in survey(self.config, self.root):
            if node.work.step.stage in STAGES:
                whole = hash_json(sorted(receipt.digest for receipt in node.done.values()))
                found[node.work.step.name] = whole if node.complete else INCOMPLETE
        return found

    def verify(self) -> int:
        """Read every file of every unit of the corpus; how many units were as their receipts say.

        Raises:
            CorruptInput: One was not.
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
    """The test cluster; stopped afterwards if it did not run before."""
    before = (PLACE / "env.sh").exists()
    done = up()
    if done.returncode:
        sys.exit(done.stderr.strip())
    cluster = Cluster(PLACE)
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        if cluster.squeue():
            sys.exit(f"{PLACE} is in use: set GRISTMILL_CLUSTER")
        yield cluster
    finally:
        cluster.cancel_all()
        if not before:
            subprocess.run([CLUSTER / "down.sh"], check=True, timeout=60)


def prepare(chosen: argparse.Namespace, folder: Path) -> tuple[Sender, Way, Way, Path]:
    """The server, the two ways of its corpus, and the profile of the one through the queue."""
    source = functools.cache(lambda: corpora.cached(DATA))
    corpus = corpora.make(chosen.kind, chosen.mb, DATA, source)
    packed = pack(corpus.plain, chosen.frames, chosen.seed)
    base = model.make(DATA / "model", source)
    server = Sender(packed, [])
    dataset = folder / f"{DATASET}.yaml"
    url = f"http://127.0.0.1:{server.server_port}/{packed.name}"
    dataset.write_text(yaml.safe_dump({"urls": [url], "id_field": "meta.id"}))
    words = [f"decompress.chunk_bytes={corpus.size // CHUNKS}", f"tokenize.tasks={chosen.elements}"]
    words.append(f"download.bandwidth={max(0.1, packed.stat().st_size / 1e6 / DOWNLOAD):.3f}")
    words.append(f"decompress.tasks={chosen.elements}")
    words.append(f"decompress.part_bytes={packed.stat().st_size // chosen.elements}")
    profile = folder / "site.yaml"
    held = {stage: {"sbatch": {"hold": True}} for stage in ("train", "evaluate")}
    profile.write_text(yaml.safe_dump({"extends": "gristmill-test", "jobs": held}))
    ways = [Way(folder / name, dataset, base, words) for name in ("struck", "calm")]
    return server, ways[0], ways[1], profile


def blow(chosen: argparse.Namespace, way: Way, profile: Path) -> tuple[Storm, Witness, float, int]:
    """Send the corpus through the queue; the storm, what was seen, seconds, and restarts."""
    witness = Witness(way.root, DATASET)

    def over() -> bool:
        witness.look()
        return way.sealed()

    with running_cluster() as cluster:
        storm = Storm(
            cluster,
            fault_injection.TO_SEAL,
            way.root / "runs" / NAME / "logs",
            functools.partial(way.submit, profile),
            fault_injection.draw(fault_injection.TO_SEAL, chosen.kills, chosen.every, chosen.seed),
            chosen.seed,
            say,
        )  # fmt: skip
        seconds = storm.blow(over, TIMEOUT)
        restarts = storm.restarts()
    witness.look()
    witness.compare()
    return storm, witness, seconds, restarts


def table(rows: list[tuple[str, ...]]) -> str:
    """A table whose first row is its head."""
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *rest])


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=3000, help="MB of plain jsonl")
    parser.add_argument("--kind", choices=corpora.LENGTHS, default="law")
    parser.add_argument("--frames", type=int, default=12, help="zstd frames, cut within lines")
    parser.add_argument("--elements", type=int, default=8, help="of each array")
    fault_injection.add_options(parser, 3.0)
    return parser.parse_args()


def main() -> None:
    """Run it once and print what it came to."""
    chosen = arguments()
    folder = DATA / "storm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["NO_PROXY"] = "127.0.0.1"
    server, struck, calm, profile = prepare(chosen, folder)
    say("in the queue")
    storm, witness, wall, restarts = blow(chosen, struck, profile)
    say("undisturbed")
    calm_wall = calm.calm()
    server.shutdown()
    say("reading all files again")
    units = struck.verify()
    ours, theirs = struck.digests(), calm.digests()
    kinds, steps = storm.kinds(), dict.fromkeys(ours, 0)
    for _, step in storm.struck.elements():
        steps[step] += 1
    what = f"{chosen.kind}, {chosen.mb:,} MB, {chosen.frames} frames, seed {chosen.seed}"
    row = ("struck", *map(str, kinds.values()), str(restarts), str(storm.submits), f"{wall:.0f} s")
    peace = ("undisturbed", *("" for _ in kinds), "", "", f"{calm_wall:.0f} s")
    print(table([
        (what, *kinds, "restarts", "submits", "wall", *SHOWN),
        (*row, *(ours[step][:12] for step in SHOWN)),
        (*peace, *(theirs[step][:12] for step in SHOWN)),
    ]))  # fmt: skip
    hit = ", ".join(f"{step} {n}" for step, n in steps.items() if n)
    print(f"\nstruck: {hit or 'nothing'}; {len(storm.left)} strikes came too late")
    differ = [step for step in ours if ours[step] != theirs[step] or ours[step] == INCOMPLETE]
    print(f"digests: {'DIFFERENT: ' + ' '.join(differ) if differ else 'equal, of all steps'}")
    print(
        f"{len(witness.marks)} committed files ({witness.seen('chunks')} units of chunks, "
        f"{witness.seen('shards')} of shards): {len(witness.rewritten)} written again; "
        f"{units} units read again and right"
    )
    for path in sorted(witness.rewritten):
        print(f"  written again: {path}")
    if differ or witness.rewritten:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
