"""Tables and goals of the training benchmark, from the results that `bench.train` saves."""

from __future__ import annotations

import random
from statistics import median
from typing import Any

PACKED_PEERS = ("trainer-packed", "sft")
BOOTSTRAP_SAMPLES = 5_000
SYSTEMS_HEAD = """| system | real tokens / CPU s (range) | padding | lost | peak MB | steps | \
held-out loss after tokens |
|---|---:|---:|---:|---:|---:|---:|"""
CONFIGURATIONS_HEAD = """| configuration | windows / step | CPU s / step | windows / CPU s | \
real tokens / CPU s | peak MB |
|---|---:|---:|---:|---:|---:|"""


def tables(results: dict[str, Any]) -> str:
    """The comparison of systems, the logged configurations, and the goals."""
    windows, padded_length, packed, length = results["slots"]
    lengths, scores = results["lengths"], results["scores"]
    mean = sum(lengths) / len(lengths)
    base = sum(scores["base"]["nats"]) / sum(scores["base"]["tokens"])
    checkpointing = "with" if results["checkpointing"] else "without"
    return "\n".join(
        [
            f"{results['when'][:10]}, {results['machine']}; one core.",
            f"{results['model']}, LoRA in bf16 {checkpointing} gradient checkpointing; about "
            f"{windows * padded_length:,} positions per step ({windows} × {padded_length} padded, "
            f"{packed} × {length} packed, {results['flat']} whole documents with HF's packing). "
            f"{len(lengths):,} documents of {mean:.0f} tokens on average. Median and range of all "
            f"steps except the first. Held-out loss of {len(scores['base']['tokens'])} documents, "
            f"{sum(scores['base']['tokens']):,} tokens, in fp32; before training {base:.4f}. Peak "
            "is VmHWM.",
            "",
            SYSTEMS_HEAD,
            *(_row(system, results) for system in results["systems"]),
            "",
            CONFIGURATIONS_HEAD,
            *(_configuration_row(system, results) for system in results["logged"]),
            "",
            *_configuration_ratios(results),
            "",
            "| goal | limit | measured | met |",
            "|---|---|---:|---|",
            *(f"| {' | '.join(goal)} |" for goal in goals(results)),
        ]
    )


def _timed(system: dict[str, Any]) -> list[dict[str, Any]]:
    """All steps except the first, which includes one-time work."""
    steps: list[dict[str, Any]] = system["steps"]
    return steps[1:] or steps


def rates(system: dict[str, Any]) -> list[float]:
    """Real tokens per CPU second of each timed step."""
    return [row["tokens"] / row["cpu"] for row in _timed(system)]


def lost_share(name: str, results: dict[str, Any]) -> float:
    """Share of the corpus that the system never trains on; ours is measured, not derived."""
    padded_length, lengths = results["slots"][1], results["lengths"]
    if name == "gristmill":
        (system,) = [system for system in results["systems"] if system["name"] == name]
        return 1 - system["steps"][0]["seen"] / sum(lengths)
    if name not in ("student", "trainer-padded"):
        return 0.0
    return 1 - sum(min(n, padded_length - 1) for n in lengths) / sum(lengths)


def _peak_mb(system: dict[str, Any]) -> float:
    return max(row["peak"] for row in system["steps"]) / 1e6


def _padding_share(system: dict[str, Any]) -> float:
    slots = sum(row["slots"] for row in system["steps"])
    return 1 - sum(row["tokens"] for row in system["steps"]) / slots


def _heldout_loss(name: str, results: dict[str, Any]) -> float:
    score = results["scores"][name]
    return float(sum(score["nats"]) / sum(score["tokens"]))


def _row(system: dict[str, Any], results: dict[str, Any]) -> str:
    name = system["name"]
    title = f"**{system['title']}**" if name == "gristmill" else system["title"]
    if system["failure"]:
        return f"| {title} | not run: {system['failure'].replace('|', '/')} |" + " |" * 5
    speed, tokens = rates(system), sum(row["tokens"] for row in system["steps"])
    return (
        f"| {title} | {median(speed):.1f} ({min(speed):.1f} to {max(speed):.1f}) "
        f"| {_padding_share(system):.1%} | {lost_share(name, results):.1%} "
        f"| {_peak_mb(system):,.0f} | {len(system['steps'])} "
        f"| {_heldout_loss(name, results):.4f} after {tokens:,} |"
    )


def _windows_per_step(system: dict[str, Any], results: dict[str, Any]) -> float:
    """Windows of 512 positions in an optimizer step."""
    return float(median(row["slots"] for row in system["steps"]) / results["slots"][1])


def _configuration_row(system: dict[str, Any], results: dict[str, Any]) -> str:
    if system["failure"]:
        return f"| {system['title']} | not run: {system['failure'].replace('|', '/')} |" + " |" * 4
    cpu, windows = median(row["cpu"] for row in _timed(system)), _windows_per_step(system, results)
    return (
        f"| {system['title']} | {windows:.0f} | {cpu:.1f} | {windows / cpu:.3f} "
        f"| {median(rates(system)):.1f} | {_peak_mb(system):,.0f} |"
    )


def _configuration_ratios(results: dict[str, Any]) -> list[str]:
    done = {s["name"]: s for s in results["logged"] if not s["failure"]}
    if not {"A", "B"} <= set(done):
        return []
    speed = {
        name: median(row["slots"] / row["cpu"] for row in _timed(system))
        for name, system in done.items()
    }
    text = (
        f"B processes {speed['B'] / speed['A']:.2f} times the samples of A per CPU second; on "
        "the student project's RTX8000 the factor was 8.8 (3.95 s for 32, 1.80 s for 128)."
    )
    if "gristmill-B" in done:
        ratio = median(rates(done["gristmill-B"])) / median(rates(done["A"]))
        text += f" Gristmill with the settings of B: {ratio:.2f} times the real tokens of A."
    return [text]


def speed_ratio(gristmill: dict[str, Any], peer: dict[str, Any]) -> tuple[float, float, float]:
    """Ratio of our tokens per CPU second to the peer's, with its 95 % interval.

    The bootstrap resamples the timed rounds in which both took a step, one right after the other.
    """
    one, other = ({row["round"]: row for row in _timed(s)} for s in (gristmill, peer))
    rounds = sorted(set(one) & set(other))
    rng = random.Random(0)

    def ratio(sample: list[int]) -> float:
        ours, theirs = (
            sum(s[n]["tokens"] for n in sample) / sum(s[n]["cpu"] for n in sample)
            for s in (one, other)
        )
        return float(ours / theirs)

    samples = sorted(ratio(rng.choices(rounds, k=len(rounds))) for _ in range(BOOTSTRAP_SAMPLES))
    return ratio(rounds), *_interval(samples)


def loss_difference(gristmill: dict[str, Any], peer: dict[str, Any]) -> tuple[float, float, float]:
    """Our held-out loss minus the peer's in nats per token, with its 95 % interval.

    The bootstrap resamples documents.
    """
    deltas = [a - b for a, b in zip(gristmill["nats"], peer["nats"], strict=True)]
    tokens, rng = gristmill["tokens"], random.Random(0)

    def mean(sample: list[int]) -> float:
        return float(sum(deltas[n] for n in sample) / sum(tokens[n] for n in sample))

    every = list(range(len(deltas)))
    samples = sorted(mean(rng.choices(every, k=len(every))) for _ in range(BOOTSTRAP_SAMPLES))
    return mean(every), *_interval(samples)


def _interval(samples: list[float]) -> tuple[float, float]:
    """The central 95 % of sorted bootstrap samples."""
    return samples[len(samples) * 25 // 1000], samples[len(samples) * 975 // 1000]


def goals(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of the table of goals: name, limit, measured value, met or not."""
    done = {s["name"]: s for s in results["systems"] if not s["failure"]}
    if "gristmill" not in done:
        return []
    gristmill, rows = done["gristmill"], []

    def row(name: str, limit: str, measured: str, met: bool) -> None:
        rows.append((name, limit, measured, "yes" if met else "**no**"))

    if "student" in done:
        ratio, low, high = speed_ratio(gristmill, done["student"])
        row("real tokens / CPU s, relative to the student project's loop", "≥ 1.5",
            f"{ratio:.3f} ({low:.3f} to {high:.3f})", ratio >= 1.5)  # fmt: skip
    lost = lost_share("gristmill", results)
    row("share of the corpus lost to truncation", "0", f"{lost:.1%}", lost == 0)
    packed_peers = [done[name] for name in PACKED_PEERS if name in done]
    if packed_peers:
        best = max(packed_peers, key=lambda system: median(rates(system)))
        ratio, low, high = speed_ratio(gristmill, best)
        row(f"real tokens / CPU s, relative to the best packed peer ({best['title']})", "≥ 0.97",
            f"{ratio:.3f} ({low:.3f} to {high:.3f})", ratio >= 0.97)  # fmt: skip
        scores = results["scores"]
        delta, low, high = loss_difference(scores["gristmill"], scores[best["name"]])
        row("held-out loss minus that peer's, nats (equal if the interval contains 0)", "≤ 0",
            f"{delta:+.4f} ({low:+.4f} to {high:+.4f})", low <= 0)  # fmt: skip
    overhead = median(step["cpu"] / step["bare"] - 1 for step in _timed(gristmill))
    row(
        "overhead of the loop over forward and backward alone",
        "≤ 3 %",
        f"{overhead:.1%}",
        overhead <= 0.03,
    )
    others = [system for system in done.values() if system is not gristmill]
    if others:
        lowest = min(others, key=_peak_mb)
        row(f"peak memory below every peer (lowest: {lowest['title']})",
            f"< {_peak_mb(lowest):,.0f} MB",
            f"{_peak_mb(gristmill):,.0f} MB", _peak_mb(gristmill) < _peak_mb(lowest))  # fmt: skip
    return rows
