"""Benchmark cases: which system runs on which corpus, and the cost of each repetition."""

from __future__ import annotations

import functools
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import product_cli, verify_output
from bench.corpora import Corpus
from bench.measure import CommandFailed, Usage, measure
from bench.peers import Peer
from bench.product_cli import ProductRun

Runner = Callable[[Corpus], Usage]


@dataclass
class Case:
    """One system on one kind of corpus.

    `run` is called with a tiny corpus and with the corpus itself. The tiny run gives the start-up
    cost; the difference of the two gives the cost of each further GB. `failure` says why the case
    was not run, or is "".
    """

    name: str
    kind: str
    corpus: Corpus
    tiny: Corpus
    run: Runner
    full: list[Usage] = field(default_factory=list)
    start: list[Usage] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    def repeat(self) -> None:
        """Run one more repetition, unless an earlier one failed."""
        if self.failure:
            return
        try:
            self.start.append(self.run(self.tiny))
            self.full.append(self.run(self.corpus))
        except CommandFailed as error:
            lines = str(error).strip().splitlines()
            errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
            self.failure = (errors or lines)[-1][:200]

    def seconds_per_gb(self, clock: str = "cpu") -> list[float]:
        """Seconds (`cpu` or `wall`) for each further GB without start-up, one per repetition."""
        start = median(getattr(usage, clock) for usage in self.start)
        further_gb = self.corpus.gigabytes - self.tiny.gigabytes
        # With little work, noise can make the difference negative: report 0 then.
        return [max(0.0, getattr(usage, clock) - start) / further_gb for usage in self.full]


@dataclass(frozen=True)
class Environment:
    """The base model, scratch space, the core to bind to, and the number of cores."""

    model: Path
    scratch: Path
    core: int
    cores: int


def product_cases(
    env: Environment, kind: str, corpus: Corpus, tiny: Corpus
) -> tuple[list[Case], ProductRun]:
    """Our stages on a corpus, in the order in which they depend on each other, and lower bounds."""
    runs = {c.name: product_cli.prepare(c, env.model, env.scratch) for c in (tiny, corpus)}
    ids, _ = verify_output.reference_ids(corpus, env.model)
    pool = env.scratch / f"{kind}-pool.npy"
    verify_output.save_pool(ids, pool)

    def decompress(corpus: Corpus) -> Usage:
        runs[corpus.name].delete_outputs("chunks", "shards")
        return runs[corpus.name].stage("decompress", core=env.core)

    def tokenize(corpus: Corpus) -> Usage:
        runs[corpus.name].delete_outputs("shards")
        return runs[corpus.name].stage("tokenize.shards", core=env.core)

    def seal(corpus: Corpus) -> Usage:
        return runs[corpus.name].stage("tokenize.seal", core=env.core)

    def lower_bound(corpus: Corpus, mode: str = "write") -> Usage:
        out = env.scratch / "lower-bound.parquet"
        command = [sys.executable, "-m", "bench.lower_bound", mode, str(out), str(pool)]
        return measure([*command, *map(str, runs[corpus.name].chunks())], core=env.core)

    own_writer = functools.partial(lower_bound, mode="write-own")
    stages = [("decompress", decompress), ("tokenize", tokenize), ("seal", seal)]
    stages += [("lower bound", lower_bound), ("lower bound, own writer", own_writer)]
    return [Case(name, kind, corpus, tiny, run) for name, run in stages], runs[corpus.name]


def decompress_cases(env: Environment, kind: str, corpus: Corpus, tiny: Corpus) -> list[Case]:
    """Decompress on all cores, and a bare decode of the same file."""
    runs = {c.name: product_cli.prepare(c, env.model, env.scratch) for c in (tiny, corpus)}

    def decompress(corpus: Corpus) -> Usage:
        runs[corpus.name].delete_outputs("chunks")
        return runs[corpus.name].stage("decompress", cpus=env.cores)

    def decode(corpus: Corpus) -> Usage:
        return measure([sys.executable, "-m", "bench.lower_bound", "decode", str(corpus.packed)])

    stages = [("decompress, all cores", decompress), ("bare decode", decode)]
    return [Case(name, kind, corpus, tiny, run) for name, run in stages]


def peer_case(env: Environment, kind: str, peer: Peer, corpus: Corpus, tiny: Corpus) -> Case:
    """A peer on a corpus, in the file format that the peer reads."""
    out = env.scratch / peer.name / kind

    def tokenize(corpus: Corpus) -> Usage:
        shutil.rmtree(out, ignore_errors=True)
        source = corpus.in_format(peer.format)
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
        # HOME: some peers look for caches and settings there.
        environment = {**offline, "RAYON_NUM_THREADS": "1", "HOME": str(env.scratch)}
        command = peer.command(source, out, env.model, 1)
        return measure(command, core=env.core, environment=environment)

    case = Case(peer.name, kind, corpus, tiny, tokenize)
    case.facts = {"title": peer.title, "form": peer.format, "goal": peer.goal, "note": peer.note}
    return case


def check_peer(env: Environment, case: Case, peer: Peer) -> None:
    """Record the size of a peer's output, and whether its ids are correct."""
    if case.failure:
        return
    out = env.scratch / peer.name / case.kind
    ids, _ = verify_output.reference_ids(case.corpus, env.model)
    case.facts["bytes_per_token"] = verify_output.folder_bytes(out / "ids") / len(ids)
    files = sorted(out.glob(peer.ids)) if peer.ids else []
    case.facts["ids"] = "" if not files else verify_output.same_counts(files, ids)


def check_product(env: Environment, case: Case, run: ProductRun) -> None:
    """Record whether our shards are correct, their size, and how fast they are read."""
    if case.failure:
        return
    ids, starts = verify_output.reference_ids(case.corpus, env.model)
    shards = run.shards()
    binary = verify_output.binary_bytes(shards, env.scratch / "binary.parquet")
    blank = verify_output.blank_documents(case.corpus)
    exact, expected = verify_output.compare(shards, ids, starts, blank)
    case.facts |= {
        "exact": exact,
        "expected": expected,
        "bytes_per_token": sum(path.stat().st_size for path in shards) / len(ids),
        "column_to_binary": verify_output.column_bytes(shards) / binary,
        "read_tokens_per_second": verify_output.read_rate(shards, env.core),
    }


def exactness(env: Environment, corpus: Corpus) -> tuple[int, int]:
    """How many documents our shards of a corpus hold exactly, and how many they should hold."""
    run = product_cli.prepare(corpus, env.model, env.scratch)
    run.stage("decompress")
    run.stage("tokenize.shards")
    ids, starts = verify_output.reference_ids(corpus, env.model)
    return verify_output.compare(run.shards(), ids, starts, verify_output.blank_documents(corpus))
