"""Tables and goals of the tokenization benchmark, from the results that `bench.data` saves."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path
from statistics import median
from typing import Any

PEAK_GOAL_MB = 600
NOISE_SECONDS_PER_GB = 0.01  # below the cost of a copy in memory
HEAD = """| system | reads | MB / CPU s (range) | CPU s/GB | / lower bound | start-up CPU s | \
wall s for MB | peak MB | bytes/token | ids |
|---|---|---:|---:|---:|---:|---:|---:|---:|---|"""

TITLES = {
    "lower bound": "lower bound: decode, parse, pyarrow's writer",
    "lower bound, own writer": "lower bound with our writer",
    "bare decode": "bare decode",
}


def machine() -> str:
    """The processor, the number of usable cores, and the Python version."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def tables(results: dict[str, Any]) -> str:
    """The comparison of all systems, and the goals."""
    options = results["options"]
    lines = [f"{results['when'][:10]}, {results['machine']}."]
    repeat = options["repeat"]
    lines.append(
        f"Median and range of {repeat} runs, without start-up (measured on a few documents and "
        "shown separately). MB and GB are of plain jsonl; peak is the total of all processes. "
        "Every system had one core, except where decompress has all. Slow peers, whose cost is "
        f"linear, had {options['slow_mb']:g} MB, the others {options['mb']:g} MB."
    )
    for kind in dict.fromkeys(case["kind"] for case in results["cases"]):
        lines += ["", *_corpus_table(kind, [c for c in results["cases"] if c["kind"] == kind])]
    adversarial = results["adversarial"]
    lines += ["", "Adversarial texts with exactly the ids of Hugging Face's tokenizers: "
              f"{adversarial['exact']:,} of {adversarial['expected']:,} "
              f"({adversarial['documents'] - adversarial['expected']} more are blank and left out "
              "by design)."]  # fmt: skip
    lines += ["", "| goal | corpus | limit | measured | met |", "|---|---|---|---:|---|"]
    for name, kind, is_minimum, limit, value in goals(results["cases"]):
        met = "yes" if (value >= limit if is_minimum else value <= limit) else "**no**"
        measured = f"{value:.4g} | {met}" if value == value else "below noise | ?"
        lines.append(f"| {name} | {kind} | {'≥' if is_minimum else '≤'} {limit:.4g} | {measured} |")
    notes = {
        c["facts"]["title"]: c["facts"]["note"] for c in results["cases"] if "note" in c["facts"]
    }
    lines += ["", *(f"- {title}: {note}." for title, note in notes.items() if note)]
    return "\n".join(lines)


def _corpus_table(kind: str, cases: list[dict[str, Any]]) -> list[str]:
    corpus = next(c["corpus"] for c in cases if c["name"] == "tokenize")
    mean = corpus["text"] / corpus["documents"]
    lines = [
        f"**{kind}**: {corpus['documents']:,} documents of {mean:,.0f} bytes on average, cut from "
        f"{corpus['distinct'] / 1e6:,.0f} MB of distinct text.",
        "",
        HEAD,
    ]
    bound = next(c for c in cases if c["name"] == "lower bound")
    return lines + [_row(case, bound) for case in cases]


def _row(case: dict[str, Any], bound: dict[str, Any]) -> str:
    facts, peer = case["facts"], "title" in case["facts"]
    title = facts.get("title") or TITLES.get(case["name"], f"**{case['name']}**")
    chunks = ("tokenize", "lower bound", "lower bound, own writer")
    reads = facts.get("form") or ("chunks" if case["name"] in chunks else "")
    reads = {"zst": ".jsonl.zst", "gz": ".jsonl.gz", "jsonl": ".jsonl"}.get(reads, reads)
    if case["failure"]:
        return f"| {title} | {reads} | not run: {case['failure'].replace('|', '/')} |" + " |" * 7
    costs = case["seconds_per_gb"]
    cost = median(costs)
    has_ratio = (case["name"] == "tokenize" or peer) and not bound["failure"]
    ratio = f"{_ratio(cost, _cost(bound)):,.2f}".replace("nan", "") if has_ratio else ""
    rate = "below noise"
    if min(costs) > NOISE_SECONDS_PER_GB:
        rate = f"{1000 / cost:,.3g} ({1000 / max(costs):,.3g} to {1000 / min(costs):,.3g})"
    wall = f"{_median(case, 'wall'):.1f} for {case['corpus']['size'] / 1e6:,.0f}"
    start = f"{_median(case, 'cpu', 'start'):.2f}"
    peak = f"{_median(case, 'tree') / 1e6:,.0f}"
    size = f"{facts['bytes_per_token']:.2f}" if "bytes_per_token" in facts else ""
    if case["name"] == "seal":
        rate = ""  # the seal reads hashes, not text
    return (
        f"| {title} | {reads} | {rate} | {cost:,.4g} | {ratio} | {start} | {wall} | {peak} "
        f"| {size} | {_ids(facts)} |"
    )


def _ids(facts: dict[str, Any]) -> str:
    if "exact" in facts:
        return f"exact: {facts['exact']:,} of {facts['expected']:,} documents"
    if facts.get("ids", "") == "":
        return "truncated at 512" if "title" in facts else ""
    return "same counts" if facts["ids"] else "**different ids**"


def _cost(case: dict[str, Any]) -> float:
    return float(median(case["seconds_per_gb"]))


def _ratio(one: float, other: float) -> float:
    """Ratio of two costs; nan if either is below the noise."""
    return one / other if min(one, other) > NOISE_SECONDS_PER_GB else math.nan


def _median(case: dict[str, Any], field: str, run: str = "full") -> float:
    return float(median(usage[field] for usage in case[run]))


def goals(cases: list[dict[str, Any]]) -> list[tuple[str, str, bool, float, float]]:
    """Name, corpus, whether the limit is a minimum (else a maximum), limit, measured value."""
    rows = []
    for kind in dict.fromkeys(case["kind"] for case in cases):
        named = {c["name"]: c for c in cases if c["kind"] == kind and not c["failure"]}
        if "tokenize" not in named:
            continue
        tokenize = named["tokenize"]
        for case in named.values():
            if case["facts"].get("goal"):
                ratio = _ratio(_cost(case), _cost(tokenize))
                rows.append(
                    (
                        f"MB / CPU s, relative to {case['facts']['title']}",
                        kind,
                        True,
                        case["facts"]["goal"],
                        ratio,
                    )
                )
        rows += [(name, kind, *rest) for name, *rest in _product_goals(named)]
    return rows


def _product_goals(named: dict[str, Any]) -> list[tuple[str, bool, float, float]]:
    tokenize, all_cores = named["tokenize"], named["decompress, all cores"]
    facts, bare = tokenize["facts"], named["bare decode"]
    cores = len(os.sched_getaffinity(0))
    decode, wall = median(bare["wall_per_gb"]), median(all_cores["wall_per_gb"])
    stages = [named[name] for name in ("decompress", "tokenize", "seal")]
    largest = max(_median(case, "process") for case in stages)
    return [
        ("tokenize / lower bound", False, 2.2,
         _ratio(_cost(tokenize), _cost(named["lower bound"]))),
        ("tokenize / lower bound with our writer", False, 2.2,
         _ratio(_cost(tokenize), _cost(named["lower bound, own writer"]))),
        ("decompress, wall / max(bare decode, CPU / cores)", False, 1.15,
         _ratio(wall, max(decode, _cost(all_cores) / cores))),
        ("decompress, CPU s/GB", False, 4.5, _cost(all_cores)),
        (".jsonl.zst to sealed shards, CPU s/GB", False, 15, sum(map(_cost, stages))),
        ("peak of the largest process, MB", False, PEAK_GOAL_MB, largest / 1e6),
        ("ids column / binary uint16 with zstd 1", False, 1.06, facts["column_to_binary"]),
        ("reading shards, million tokens / CPU s", True, 80, facts["read_tokens_per_second"] / 1e6),
        ("documents with exactly the reference ids, %", True, 100,
         100 * facts["exact"] / facts["expected"]),
    ]  # fmt: skip


def replace(text: str, name: str, new: str) -> str:
    """Replace the table of that name in a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.partition(end)[2]}"
