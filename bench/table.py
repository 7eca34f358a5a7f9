"""Tables and goals, from what `bench.data` has saved."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path
from statistics import median
from typing import Any

PEAK = 600e6
NOISE = 0.01  # s/GB; a copy in memory costs more
HEAD = """| system | reads | MB / CPU s (range) | CPU s/GB | of the floor | start-up CPU s | \
wall s of MB | peak MB | bytes/token | ids |
|---|---|---:|---:|---:|---:|---:|---:|---:|---|"""

OTHERS = {
    "floor": "floor: decode, parse, pyarrow's writer",
    "own floor": "the same with our writer",
    "bare decode": "bare decode",
}


def machine() -> str:
    """The processor, its cores, Python."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def tables(found: dict[str, Any]) -> str:
    """The comparison of all systems, and the goals."""
    options, lines = found["options"], [f"{found['when'][:10]}, {found['machine']}."]
    repeat = options["repeat"]
    lines.append(
        f"Median of {repeat} with the range; start-up (a run on a few documents) is taken off and "
        "shown apart. MB and GB are of plain jsonl; peak is of all processes together. Every "
        "system had one core, but decompress where it says so. Slow peers had "
        f"{options['slow_mb']:g} MB, as their cost is linear, the others {options['mb']:g} MB."
    )
    for kind in dict.fromkeys(case["kind"] for case in found["cases"]):
        lines += ["", *_kind(kind, [c for c in found["cases"] if c["kind"] == kind])]
    hard = found["adversarial"]
    lines += ["", f"Adversarial texts with exactly the ids of Hugging Face's tokenizers: "
              f"{hard['right']:,} of {hard['wanted']:,} ({hard['documents'] - hard['wanted']} more "
              "are nothing but white space, and left out by design)."]  # fmt: skip
    lines += ["", "| goal | corpus | | measured | reached |", "|---|---|---|---:|---|"]
    for name, kind, least, limit, value in goals(found["cases"]):
        reached = "yes" if (value >= limit if least else value <= limit) else "**no**"
        said = f"{value:.4g} | {reached}" if value == value else "lost in noise | ?"
        lines.append(f"| {name} | {kind} | {'≥' if least else '≤'} {limit:.4g} | {said} |")
    notes = {
        c["facts"]["title"]: c["facts"]["note"] for c in found["cases"] if "note" in c["facts"]
    }
    lines += ["", *(f"- {title}: {note}." for title, note in notes.items() if note)]
    return "\n".join(lines)


def _kind(kind: str, cases: list[dict[str, Any]]) -> list[str]:
    corpus = next(c["corpus"] for c in cases if c["name"] == "tokenize")
    mean = corpus["text"] / corpus["documents"]
    lines = [
        f"**{kind}**: {corpus['documents']:,} documents of {mean:,.0f} bytes on average, cut from "
        f"{corpus['distinct'] / 1e6:,.0f} MB of distinct text.",
        "",
        HEAD,
    ]
    floor = next(c for c in cases if c["name"] == "floor")
    return lines + [_row(case, floor) for case in cases]


def _row(case: dict[str, Any], floor: dict[str, Any]) -> str:
    facts, peer = case["facts"], "title" in case["facts"]
    title = facts.get("title") or OTHERS.get(case["name"], f"**{case['name']}**")
    chunks = ("tokenize", "floor", "own floor")
    reads = facts.get("form") or ("chunks" if case["name"] in chunks else "")
    reads = {"zst": ".jsonl.zst", "gz": ".jsonl.gz", "jsonl": ".jsonl"}.get(reads, reads)
    if case["why"]:
        return f"| {title} | {reads} | not run: {case['why'].replace('|', '/')} |" + " |" * 7
    costs = case["seconds_per_gb"]
    cost = median(costs)
    share = case["name"] == "tokenize" or peer
    of_floor = f"{_ratio(cost, _cost(floor)):,.2f}" if share and not floor["why"] else ""
    of_floor = of_floor.replace("nan", "")
    rate = "lost in noise"
    if min(costs) > NOISE:
        rate = f"{1000 / cost:,.3g} ({1000 / max(costs):,.3g} to {1000 / min(costs):,.3g})"
    wall = f"{_middle(case, 'wall'):.1f} of {case['corpus']['size'] / 1e6:,.0f}"
    start = f"{_middle(case, 'cpu', 'start'):.2f}"
    peak = f"{_middle(case, 'tree') / 1e6:,.0f}"
    size = f"{facts['bytes_per_token']:.2f}" if "bytes_per_token" in facts else ""
    if case["name"] == "seal":
        rate = ""  # it reads hashes, not text
    return (
        f"| {title} | {reads} | {rate} | {cost:,.4g} | {of_floor} | {start} | {wall} | {peak} "
        f"| {size} | {_ids(facts)} |"
    )


def _ids(facts: dict[str, Any]) -> str:
    if "right" in facts:
        return f"exact: {facts['right']:,} of {facts['wanted']:,} documents"
    if facts.get("ids", "") == "":
        return "cut at 512" if "title" in facts else ""
    return "same counts" if facts["ids"] else "**other ids**"


def _cost(case: dict[str, Any]) -> float:
    return float(median(case["seconds_per_gb"]))


def _ratio(one: float, other: float) -> float:
    """One cost by another; nan where either is too small to tell from noise."""
    return one / other if min(one, other) > NOISE else math.nan


def _middle(case: dict[str, Any], what: str, run: str = "full") -> float:
    return float(median(usage[what] for usage in case[run]))


def goals(cases: list[dict[str, Any]]) -> list[tuple[str, str, bool, float, float]]:
    """Name, corpus, whether the limit is the least (or else the most), limit, measured."""
    found = []
    for kind in dict.fromkeys(case["kind"] for case in cases):
        named = {c["name"]: c for c in cases if c["kind"] == kind and not c["why"]}
        if "tokenize" not in named:
            continue
        ours = named["tokenize"]
        for case in named.values():
            if case["facts"].get("goal"):
                ratio = _ratio(_cost(case), _cost(ours))
                found.append(
                    (
                        f"MB / CPU s, times {case['facts']['title']}",
                        kind,
                        True,
                        case["facts"]["goal"],
                        ratio,
                    )
                )
        found += [(name, kind, *rest) for name, *rest in _own(named)]
    return found


def _own(named: dict[str, Any]) -> list[tuple[str, bool, float, float]]:
    ours, all_cores = named["tokenize"], named["decompress, all cores"]
    facts, bare = ours["facts"], named["bare decode"]
    cores = len(os.sched_getaffinity(0))
    decode, wall = median(bare["wall_per_gb"]), median(all_cores["wall_per_gb"])
    stages = [named[name] for name in ("decompress", "tokenize", "seal")]
    largest = max(_middle(case, "process") for case in stages)
    return [
        ("tokenize, of the floor", False, 2.2, _ratio(_cost(ours), _cost(named["floor"]))),
        ("tokenize, of the floor with our writer", False, 2.2,
         _ratio(_cost(ours), _cost(named["own floor"]))),
        ("decompress, wall of max(bare decode, CPU / cores)", False, 1.15,
         _ratio(wall, max(decode, _cost(all_cores) / cores))),
        ("decompress, CPU s/GB", False, 4.5, _cost(all_cores)),
        (".jsonl.zst to sealed shards, CPU s/GB", False, 15, sum(map(_cost, stages))),
        ("peak of the largest process, MB", False, PEAK / 1e6, largest / 1e6),
        ("ids column, of uint16 in binary with zstd 1", False, 1.06, facts["column_to_binary"]),
        ("reading back, million tokens / CPU s", True, 80, facts["read_tokens_per_second"] / 1e6),
        ("exactly the right ids, % of texts", True, 100, 100 * facts["right"] / facts["wanted"]),
    ]  # fmt: skip


def replace(text: str, name: str, new: str) -> str:
    """Put a table where the last one of that name stands in a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.partition(end)[2]}"
