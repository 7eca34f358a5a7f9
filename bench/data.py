"""Tokenizing beside the peers: what it costs, what it gives, and whether the goals are reached.

    make bench-data [ARGS="--quick --peers=none --grow"]

Every system tokenizes the same documents with the same tokenizer, on one core, one repetition of
each in turn, so that what else the machine does meets all of them alike. The cost of starting is
the cost of a run on a few documents; it is shown apart.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import adversarial, cases, corpora, growth, model, peers, table
from bench.cases import Bench, Case
from jobs.core.environment import TASK_ENVIRONMENT

ROOT = Path(__file__).resolve().parent
DATA, RESULTS, README = ROOT / ".data", ROOT / "results", ROOT / "README.md"
LARGE = 2  # decompress is fast: its corpus is so many times larger
KINDS = tuple(corpora.LENGTHS)


def say(text: str) -> None:
    """Tell how far it is, beside the results."""
    print(text, file=sys.stderr, flush=True)


def compare(bench: Bench, chosen: list[peers.Peer], options: argparse.Namespace) -> dict[str, Any]:
    """Run all systems and return what was found, as it is saved."""
    source = functools.cache(lambda: corpora.cached(DATA))
    make = functools.partial(corpora.make, folder=DATA, source=source)
    unavailable = {peer.name: why for peer in chosen if (why := peers.build(peer.pins))}
    all_cases: list[Case] = []
    ours, theirs = [], []
    for kind in KINDS:
        tiny, corpus, slow = make(kind, 0), make(kind, options.mb), make(kind, options.slow_mb)
        mean = corpus.text / corpus.documents
        say(f"{kind}: {corpus.documents:,} documents, {mean:,.0f} bytes each")
        own, run = cases.of_ours(bench, kind, corpus, tiny)
        all_cases += own
        ours.append((own[1], run))
        all_cases += cases.of_decompress(bench, kind, make(kind, LARGE * options.mb), tiny)
        for peer in chosen:
            case = cases.of_peer(bench, kind, peer, slow if peer.slow else corpus, tiny)
            case.why = unavailable.get(peer.name, "")
            theirs.append((case, peer))
            all_cases.append(case)
    for repetition in range(options.repeat):
        for case in all_cases:
            say(f"{repetition + 1}/{options.repeat} {case.kind} {case.name} {case.why}")
            case.once()
    say("comparing ids")
    for case, run in ours:
        cases.judge_ours(bench, case, run)
    for case, peer in theirs:
        cases.judge_peer(bench, case, peer)
    hard = corpora.write("adversarial", DATA, adversarial.texts, float("inf"))
    right, wanted = cases.exactness(bench, hard)
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": table.machine(),
        "options": vars(options),
        "adversarial": {"right": right, "wanted": wanted, "documents": hard.documents},
        "cases": [_plain(case) for case in all_cases],
    }


def _plain(case: Case) -> dict[str, Any]:
    """A case as it is saved."""
    found = {
        "name": case.name,
        "kind": case.kind,
        "why": case.why,
        "corpus": asdict(case.corpus) | {"folder": ""},
        "tiny": asdict(case.tiny) | {"folder": ""},
        "facts": case.facts,
        "full": [asdict(usage) for usage in case.full],
        "start": [asdict(usage) for usage in case.start],
    }
    if not case.why:
        found["seconds_per_gb"] = case.marginal()
        found["wall_per_gb"] = case.marginal("wall")
    return found


def publish(found: dict[str, Any], name: str, text: str, options: argparse.Namespace) -> None:
    """Print the tables; save them, and what they were made from, unless they are only a try."""
    print(text)
    folder = DATA if options.quick else RESULTS
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    if not options.quick:
        README.write_text(table.replace(README.read_text(encoding="utf-8"), name, text), "utf-8")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], prog="make bench-data ARGS="
    )
    parser.add_argument("--quick", action="store_true", help="small and once, to try it; not saved")
    parser.add_argument("--peers", default="all", help="none, all, or names with commas between")
    parser.add_argument("--grow", action="store_true", help="how our cost grows, in place of peers")
    parser.add_argument("--mb", type=float, help="MB of jsonl for fast systems (256, a chunk)")
    parser.add_argument("--slow-mb", type=float, help="MB of jsonl for slow peers (20)")
    parser.add_argument("--repeat", type=int, help="how often; the median is shown (5)")
    options = parser.parse_args()
    defaults = (6, 3, 1) if options.quick else (256, 20, 5)
    for name, value in zip(("mb", "slow_mb", "repeat"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Do what the command line says."""
    options = arguments()
    chosen = peers.choose(options.peers)
    os.environ.update(TASK_ENVIRONMENT)  # what each of our jobs starts with; the peers get it, too
    scratch = DATA / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    cores = sorted(os.sched_getaffinity(0))
    base = model.make(DATA / "model", lambda: corpora.cached(DATA))
    bench = Bench(base, scratch, cores[-1], len(cores))
    if options.grow:
        found = growth.measure_all(bench, DATA, options.quick, say)
        publish(found, "growth", growth.tables(found), options)
    else:
        found = compare(bench, chosen, options)
        publish(found, "data", table.tables(found), options)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
