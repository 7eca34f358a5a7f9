"""The systems as cases: what is run on which corpus, and what each repetition of it cost."""

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
from bench.measure import Failed, Usage, measure
from bench.peers import Peer
from bench.product_cli import Run

Runner = Callable[[Corpus], Usage]


@dataclass
class Case:
    """One system on one kind of corpus.

    `run` is called with a tiny corpus, then with the corpus itself: the difference is what each
    further GB costs, and the former is the cost of starting.
    """

    name: str
    kind: str
    corpus: Corpus
    tiny: Corpus
    run: Runner
    full: list[Usage] = field(default_factory=list)
    start: list[Usage] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    def once(self) -> None:
        """One more repetition, unless an earlier one failed."""
        if self.why:
            return
        try:
            self.start.append(self.run(self.tiny))
            self.full.append(self.run(self.corpus))
        except Failed as error:
            lines = str(error).strip().splitlines()
            named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
            self.why = (named or lines)[-1][:200]

    def marginal(self, what: str = "cpu") -> list[float]:
        """Seconds for each further GB, start-up removed, by repetition."""
        start = median(getattr(usage, what) for usage in self.start)
        more = self.corpus.gigabytes - self.tiny.gigabytes
        # noise may make little work cost less than none: that is 0, and not made into a ratio
        return [max(0.0, getattr(usage, what) - start) / more for usage in self.full]

    def middle(self, what: str, start: bool = False) -> float:
        """Median of `cpu`, `wall`, `tree` or `process` over the repetitions."""
        return float(median(getattr(usage, what) for usage in (self.start if start else self.full)))


@dataclass(frozen=True)
class Bench:
    """Where things are: the model, scratch space, the core to bind to, and how many there are."""

    model: Path
    scratch: Path
    core: int
    cores: int


def of_ours(bench: Bench, kind: str, corpus: Corpus, tiny: Corpus) -> tuple[list[Case], Run]:
    """Our stages on a corpus, in the order in which they follow each other, and the floors."""
    runs = {c.name: product_cli.prepare(c, bench.model, bench.scratch) for c in (tiny, corpus)}
    ids, _ = verify_output.reference(corpus, bench.model)
    pool = bench.scratch / f"{kind}-pool.npy"
    verify_output.save_pool(ids, pool)

    def decompress(corpus: Corpus) -> Usage:
        runs[corpus.name].forget("chunks", "shards")
        return runs[corpus.name].stage("decompress", core=bench.core)

    def tokenize(corpus: Corpus) -> Usage:
        runs[corpus.name].forget("shards")
        return runs[corpus.name].stage("tokenize.shards", core=bench.core)

    def seal(corpus: Corpus) -> Usage:
        return runs[corpus.name].stage("tokenize.seal", core=bench.core)

    def floor(corpus: Corpus, how: str = "write") -> Usage:
        out = bench.scratch / "floor.parquet"
        words = [sys.executable, "-m", "bench.lower_bound", how, str(out), str(pool)]
        return measure([*words, *map(str, runs[corpus.name].chunks())], core=bench.core)

    own = functools.partial(floor, how="write-own")
    stages = [("decompress", decompress), ("tokenize", tokenize), ("seal", seal)]
    stages += [("floor", floor), ("own floor", own)]
    return [Case(name, kind, corpus, tiny, run) for name, run in stages], runs[corpus.name]


def of_decompress(bench: Bench, kind: str, corpus: Corpus, tiny: Corpus) -> list[Case]:
    """Decompress with all cores, beside a bare decode of the same file."""
    runs = {c.name: product_cli.prepare(c, bench.model, bench.scratch) for c in (tiny, corpus)}

    def decompress(corpus: Corpus) -> Usage:
        runs[corpus.name].forget("chunks")
        return runs[corpus.name].stage("decompress", cpus=bench.cores)

    def decode(corpus: Corpus) -> Usage:
        return measure([sys.executable, "-m", "bench.lower_bound", "decode", str(corpus.packed)])

    stages = [("decompress, all cores", decompress), ("bare decode", decode)]
    return [Case(name, kind, corpus, tiny, run) for name, run in stages]


def of_peer(bench: Bench, kind: str, peer: Peer, corpus: Corpus, tiny: Corpus) -> Case:
    """A peer on a corpus, in the form that it reads."""
    out = bench.scratch / peer.name / kind

    def tokenize(corpus: Corpus) -> Usage:
        shutil.rmtree(out, ignore_errors=True)
        source = corpus.form(peer.form)
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
        # home: some of them look for caches and settings there
        environment = {**offline, "RAYON_NUM_THREADS": "1", "HOME": str(bench.scratch)}
        words = peer.words(source, out, bench.model, 1)
        return measure(words, core=bench.core, environment=environment)

    case = Case(peer.name, kind, corpus, tiny, tokenize)
    case.facts = {"title": peer.title, "form": peer.form, "goal": peer.goal, "note": peer.note}
    return case


def judge_peer(bench: Bench, case: Case, peer: Peer) -> None:
    """Note what a peer has written: its size, and whether its ids are the right ones."""
    if case.why:
        return
    out = bench.scratch / peer.name / case.kind
    ids, _ = verify_output.reference(case.corpus, bench.model)
    case.facts["bytes_per_token"] = verify_output.size(out / "ids") / len(ids)
    files = sorted(out.glob(peer.ids)) if peer.ids else []
    case.facts["ids"] = "" if not files else verify_output.same_counts(files, ids)


def judge_ours(bench: Bench, case: Case, run: Run) -> None:
    """Note what our shards hold, how large they are, and how fast they are read."""
    if case.why:
        return
    ids, starts = verify_output.reference(case.corpus, bench.model)
    shards = run.shards()
    binary = verify_output.binary_bytes(shards, bench.scratch / "binary.parquet")
    right, wanted = verify_output.compare(shards, ids, starts, verify_output.blank(case.corpus))
    case.facts |= {
        "right": right,
        "wanted": wanted,
        "bytes_per_token": sum(path.stat().st_size for path in shards) / len(ids),
        "column_to_binary": verify_output.column_bytes(shards) / binary,
        "read_tokens_per_second": verify_output.read_rate(shards, bench.core),
    }


def exactness(bench: Bench, corpus: Corpus) -> tuple[int, int]:
    """How many documents of a corpus our shards hold exactly, of how many they should."""
    run = product_cli.prepare(corpus, bench.model, bench.scratch)
    run.stage("decompress")
    run.stage("tokenize.shards")
    ids, starts = verify_output.reference(corpus, bench.model)
    return verify_output.compare(run.shards(), ids, starts, verify_output.blank(corpus))
