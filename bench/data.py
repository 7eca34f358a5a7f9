"""Tokenization compared with other libraries: cost, correctness, and whether goals are met.

    make bench-data [ARGS="--quick --peers=none --grow"]

Every system tokenizes the same documents with the same tokenizer on one core. Repetitions are
interleaved, so that other load on the machine affects all systems alike. The start-up cost is
measured by a run on a few documents and reported separately.
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
from bench.cases import Case, Environment
from jobs.core.environment import TASK_ENVIRONMENT

ROOT = Path(__file__).resolve().parent
DATA, RESULTS, README = ROOT / ".data", ROOT / "results", ROOT / "README.md"
DECOMPRESS_SIZE_FACTOR = 2  # decompress is fast, so its corpus is larger
KINDS = tuple(corpora.LENGTHS)


def log(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def compare(
    env: Environment, selected: list[peers.Peer], options: argparse.Namespace
) -> dict[str, Any]:
    """Run all systems and return the results as they are saved."""
    source = functools.cache(lambda: corpora.cached(DATA))
    make = functools.partial(corpora.make, folder=DATA, source=source)
    unavailable = {peer.name: error for peer in selected if (error := peers.build(peer.pins))}
    all_cases: list[Case] = []
    product_cases, peer_cases = [], []
    for kind in KINDS:
        tiny, corpus, slow = make(kind, 0), make(kind, options.mb), make(kind, options.slow_mb)
        mean = corpus.text / corpus.documents
        log(f"{kind}: {corpus.documents:,} documents, {mean:,.0f} bytes each")
        own, run = cases.product_cases(env, kind, corpus, tiny)
        all_cases += own
        product_cases.append((own[1], run))
        all_cases += cases.decompress_cases(
            env, kind, make(kind, DECOMPRESS_SIZE_FACTOR * options.mb), tiny
        )
        for peer in selected:
            case = cases.peer_case(env, kind, peer, slow if peer.slow else corpus, tiny)
            case.failure = unavailable.get(peer.name, "")
            peer_cases.append((case, peer))
            all_cases.append(case)
    for repetition in range(options.repeat):
        for case in all_cases:
            log(f"{repetition + 1}/{options.repeat} {case.kind} {case.name} {case.failure}")
            case.repeat()
    log("comparing ids")
    for case, run in product_cases:
        cases.check_product(env, case, run)
    for case, peer in peer_cases:
        cases.check_peer(env, case, peer)
    adversarial_corpus = corpora.write("adversarial", DATA, adversarial.texts, float("inf"))
    exact, expected = cases.exactness(env, adversarial_corpus)
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": table.machine(),
        "options": vars(options),
        "adversarial": {
            "exact": exact,
            "expected": expected,
            "documents": adversarial_corpus.documents,
        },
        "cases": [_case_record(case) for case in all_cases],
    }


def _case_record(case: Case) -> dict[str, Any]:
    """A case as it is saved."""
    record = {
        "name": case.name,
        "kind": case.kind,
        "failure": case.failure,
        "corpus": asdict(case.corpus) | {"folder": ""},
        "tiny": asdict(case.tiny) | {"folder": ""},
        "facts": case.facts,
        "full": [asdict(usage) for usage in case.full],
        "start": [asdict(usage) for usage in case.start],
    }
    if not case.failure:
        record["seconds_per_gb"] = case.seconds_per_gb()
        record["wall_per_gb"] = case.seconds_per_gb("wall")
    return record


def publish(results: dict[str, Any], name: str, text: str, options: argparse.Namespace) -> None:
    """Print the tables; save them and the results in the repository, but not those of --quick."""
    print(text)
    folder = DATA if options.quick else RESULTS
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    if not options.quick:
        README.write_text(table.replace(README.read_text(encoding="utf-8"), name, text), "utf-8")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], prog="make bench-data ARGS="
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short trial on little data; not saved"
    )
    parser.add_argument("--peers", default="all", help="none, all, or a comma-separated list")
    parser.add_argument("--grow", action="store_true", help="measure how our cost grows instead")
    parser.add_argument(
        "--mb", type=float, help="MB of jsonl for fast systems (default 256, one chunk)"
    )
    parser.add_argument("--slow-mb", type=float, help="MB of jsonl for slow peers (default 20)")
    parser.add_argument("--repeat", type=int, help="repetitions; the median is shown (default 5)")
    options = parser.parse_args()
    defaults = (6, 3, 1) if options.quick else (256, 20, 5)
    for name, value in zip(("mb", "slow_mb", "repeat"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Run the benchmark."""
    options = arguments()
    selected = peers.select(options.peers)
    os.environ.update(TASK_ENVIRONMENT)  # the environment of our jobs, also for the peers
    scratch = DATA / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    cores = sorted(os.sched_getaffinity(0))
    base = model.make(DATA / "model", lambda: corpora.cached(DATA))
    env = Environment(base, scratch, cores[-1], len(cores))
    if options.grow:
        results = growth.measure_all(env, DATA, options.quick, log)
        publish(results, "growth", growth.tables(results), options)
    else:
        results = compare(env, selected, options)
        publish(results, "data", table.tables(results), options)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
