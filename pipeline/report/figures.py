"""The figures of a report, as SVG that follows the reader's light or dark colours.

matplotlib draws with stand-in colours; they become CSS variables, and text stays text in the font
of the page. Each figure comes in two widths, for a desk and for a phone, where a shrunken one could
not be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pipeline.report import gantt
from pipeline.report.curve import Curve
from pipeline.report.verdict import number

COLOURS = {
    "ink": ("#1b2027", "#e6e8eb"),
    "muted": ("#59616c", "#a3abb6"),
    "line": ("#d8d9d6", "#343a42"),
    "paper": ("#fbfaf7", "#15181c"),
    "card": ("#ffffff", "#1c2026"),
    "base": ("#767d87", "#98a1ad"),
    "tuned": ("#0a6c74", "#55c2c3"),
    "faint": ("#a9cfd0", "#2c5f63"),
    "alarm": ("#b4480f", "#f0975a"),
}
"""CSS variables of page and figures: light, dark."""

WIDTHS = {"wide": 5.4, "narrow": 3.7}
POINTS = 400


def css() -> str:
    """The colours as CSS, light unless the reader prefers dark."""
    light, dark = (
        "".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1)
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def draw(
    report: dict[str, Any], curve: Curve | None, changes: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """The figures that the data allow: name → width ("wide", "narrow") → SVG element.

    Args:
        report: Content of `report.json`.
        curve: Of the training.
        changes: By split, the change of each document, nats a token, (documents,).
    """
    paired = [s for s, e in reversed(report["evaluation"].items()) if "paired" in e]
    plots: dict[str, tuple[float, Callable[[Any], None]]] = {}
    if paired:
        plots["intervals"] = 0.44, lambda ax: _intervals(ax, report["evaluation"], paired)
    if curve:
        plots["curve"] = 0.66, lambda ax: _curve(ax, curve)
    if "test" in changes and len(changes["test"]) > 1:
        plots["documents"] = 0.52, lambda ax: _documents(ax, changes["test"])
    drawn = {
        name: {size: _paint(f"{name}-{size}", plot, width, ratio) for size, width in WIDTHS.items()}
        for name, (ratio, plot) in plots.items()
    }
    if report.get("timeline"):
        drawn["time"] = {size: _time(report["timeline"], size) for size in gantt.WIDTHS}
    return drawn


def standalone(svg: str) -> str:
    """An SVG element as a file of its own."""
    opened = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    style = f"<style>{css()}svg{{background:var(--card);font-family:sans-serif}}</style>"
    return opened.replace(">", f">{style}", 1)


def _time(timeline: dict[str, Any], size: str) -> str:
    """Where the time went, over the width of the page."""
    width, height = gantt.WIDTHS[size], gantt.height(timeline, size)
    plot = partial(gantt.plot, timeline=timeline, size=size, colour=_stand_in)
    return _paint(f"time-{size}", plot, width, height / width, least=0.0)


def _intervals(ax: Any, evaluation: dict[str, Any], splits: list[str]) -> None:
    """Perplexity with its interval, base above adapted, by split."""
    rows = [(split, who) for split in splits for who in ("base", "tuned")]
    for y, (split, who) in enumerate(rows):
        found = evaluation[split][who]
        low, high = found["ci95"]
        colour = _stand_in(who)
        ax.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round")
        ax.plot([found["perplexity"]], [y], "o", color=colour, ms=7)
        label = number(found["perplexity"])
        ax.annotate(
            label, (found["perplexity"], y), (0, 8), textcoords="offset points", ha="center"
        )
    names = {"base": "base", "tuned": "adapted"}
    comma = "\n" if _narrow(ax) else ", "
    ax.set_yticks(range(len(rows)), [f"{split}{comma}{names[who]}" for split, who in rows])
    ax.set_ylim(len(rows) - 0.5, -0.7)
    ax.margins(x=0.12)
    ax.set_xlabel("perplexity; lower is better")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _curve(ax: Any, curve: Curve) -> None:
    """Loss by step: training (each step, and smoothed), validation, best checkpoint, restarts."""
    for i, step in enumerate(curve.restarts):
        label = "restart" if i == 0 else None
        ax.axvline(step, color=_stand_in("alarm"), lw=1.2, ls=(0, (3, 3)), label=label)
    if curve.train:
        steps, losses = np.array(curve.train, dtype=float).T
        ax.plot(*_thin(steps, losses), color=_stand_in("faint"), lw=1)
        ax.plot(*_smooth(steps, losses), color=_stand_in("tuned"), lw=2, label="training")
    if curve.validation:
        ax.plot(
            *zip(*curve.validation, strict=True),
            color=_stand_in("ink"),
            lw=1.4,
            marker="o",
            ms=4.5,
            label="validation",
        )
    if curve.best:
        ax.plot(
            *curve.best, "o", ms=12, mfc="none", mew=1.8, color=_stand_in("alarm"), label="best"
        )
    _limit(ax, curve)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("loss, nats per token")
    columns = 2 if _narrow(ax) else 4
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns)


def _narrow(ax: Any) -> bool:
    return bool(ax.figure.get_figwidth() == WIDTHS["narrow"])


def _limit(ax: Any, curve: Curve) -> None:
    """Let a few wild steps not flatten the rest."""
    losses = [loss for _, loss in (*curve.train, *curve.validation)]
    low, high = min(losses), max(losses)
    usual = float(np.quantile(losses, 0.995))
    top = high if high - low < 2 * (usual - low) else usual
    room = 0.06 * (top - low) or 0.1
    ax.set_ylim(low - room, top + room)


def _thin(steps: Any, losses: Any) -> tuple[Any, Any]:
    """Every n-th point, so that a long training makes no large file."""
    every = -(-len(steps) // POINTS)
    return steps[::every], losses[::every]


def _smooth(steps: Any, losses: Any) -> tuple[Any, Any]:
    """Means over up to 60 equal stretches."""
    stretches = np.array_split(np.arange(len(steps)), min(60, max(1, len(steps) // 3)))
    means = [np.array([v[s].mean() for s in stretches]) for v in (steps, losses)]
    return means[0], means[1]


def _documents(ax: Any, changes: Any) -> None:
    """How many documents changed by how much."""
    low, high = np.quantile([*changes, 0.0], [0.002, 0.998])
    width = max(high - low, 1e-6) / np.clip(2 * np.sqrt(len(changes)), 9, 36)
    # zero is the edge of a bin, so that each stands for one side
    bins = np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
    counts, _ = np.histogram(np.clip(changes, bins[0], bins[-1]), bins)
    middles = (bins[:-1] + bins[1:]) / 2
    colours = [_stand_in("tuned") if middle < 0 else _stand_in("alarm") for middle in middles]
    ax.bar(middles, counts, width * 0.86, color=colours)
    ax.axvline(0, color=_stand_in("ink"), lw=1)
    ax.set_xlabel("change of the document’s loss, nats per token")
    ax.set_ylabel("documents")
    ax.locator_params(axis="y", integer=True, nbins=6)
    for side, text in ((-1, "← easier"), (1, "harder →")):
        align = "left" if side < 0 else "right"
        place = {"transform": ax.transAxes, "ha": align, "va": "bottom"}
        ax.text(0 if side < 0 else 1, 1.02, text, color=_stand_in("muted"), **place)


def _paint(
    name: str, plot: Callable[[Any], None], width: float, ratio: float, least: float = 2.5
) -> str:
    """An SVG element of that width in inches, of height width × ratio, but `least` at least."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_style()):
        figure = Figure(figsize=(width, max(width * ratio, least)), layout="constrained")
        plot(figure.add_subplot())
        file = io.StringIO()
        # ids are hashed from content and salt; two figures on a page must not share one
        with rc_context({"svg.hashsalt": name}):
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _adapt(file.getvalue())


def _style() -> Any:
    ink, muted, line = (_stand_in(name) for name in ("ink", "muted", "line"))
    return {
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.8,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.4,
    }


def _stand_in(name: str) -> str:
    """The colour that stands for a CSS variable while matplotlib draws."""
    return f"#0a0b{10 + list(COLOURS).index(name):02x}"


def _adapt(svg: str) -> str:
    """The file that matplotlib writes, as an element for a page, with its colours and its font."""
    svg = svg[svg.index("<svg ") :]
    for unwanted in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r' xmlns(:xlink)?="[^"]*"',
        r'(?<=<g) id="[^"]*"',
        r" font-family: [^;\"]*;?",
        r' transform="rotate\(-0 [^"]*"',
    ):
        svg = re.sub(unwanted, "", svg, flags=re.S)
    for name in COLOURS:
        svg = svg.replace(_stand_in(name), f"var(--{name})")
    return svg.replace("xlink:href", "href").strip()
