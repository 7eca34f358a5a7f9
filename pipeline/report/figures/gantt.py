"""The figure of where the time went: when each step waited, ran, and did work that was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.report.formatting import duration

GANTT_WIDTHS_INCHES = {"wide": 11.0, "narrow": 3.7}
COLOUR_OF = {"waited": "base", "running": "tuned", "lost": "alarm"}
COLUMN_HEADS = {"waited": "waited", "running": "ran", "lost": "lost"}
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
UNIT_SECONDS = {"seconds": 1.0, "minutes": MINUTE, "hours": HOUR, "days": DAY}
TICKS_SECONDS = (
    *(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR),
    *(12 * HOUR, DAY, 2 * DAY, 5 * DAY, 10 * DAY, 30 * DAY),
)
MIN_VISIBLE_SHARE = 0.003  # of the whole time: shorter pieces are drawn that long


def height(timeline: dict[str, Any], size: str) -> float:
    """Height of the figure in inches."""
    rows = len(_rows(timeline))
    return 0.95 + 0.47 * rows if size == "narrow" else 0.9 + 0.33 * rows


def plot(ax: Any, timeline: dict[str, Any], size: str, colour: Callable[[str], str]) -> None:
    """Draw a row for each step that this run computed.

    A thin line: the step waited. A block: it ran; in another colour if the work was lost.

    Args:
        ax: Axes to draw on.
        timeline: See `pipeline.report.history.timeline`.
        size: "wide" or "narrow".
        colour: Maps the name of a colour to the colour.
    """
    rows = _rows(timeline)
    narrow, min_seconds = size == "narrow", MIN_VISIBLE_SHARE * timeline["wall_seconds"]
    block = 0.36 if narrow else 0.56
    thick = {"waited": 0.05 if narrow else 0.07, "running": block, "lost": block}
    _scale(ax, timeline, 5 if narrow else 10)
    for y, (name, step) in enumerate(rows):
        middle = y + 0.1 if narrow else y
        if narrow:  # grid lines would cross the text
            ax.vlines(ax.get_xticks(), middle - 0.26, middle + 0.26, colour("line"), lw=0.8)
        for kind, tint in COLOUR_OF.items():
            pieces = [(a, max(b - a, min_seconds)) for a, b in step["spans"][kind]]
            extent = middle - thick[kind] / 2, thick[kind]
            ax.broken_barh(pieces, extent, facecolors=colour(tint), zorder=2)
        _write(ax, y - 0.3 if narrow else y, name, step, narrow, colour)
        if step["state"] != "done":
            word = {"size": 8.5, "va": "center", "textcoords": "offset points"}
            tint = "alarm" if step["state"] == "failed" else "muted"
            last = step["spans"]["running"][-1][1], middle
            ax.annotate(step["state"], last, (5, 0), color=colour(tint), **word)
    _head(ax, narrow, colour)
    ax.grid(visible=not narrow, axis="x")
    ax.set_ylim(len(rows) - 0.4, -0.6)


def _rows(timeline: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, step) for name, step in timeline["steps"].items() if not step["shared"]]


def _columns(narrow: bool) -> list[float]:
    """Right edges of the numbers, as a share of the axis."""
    return [0.6, 0.8, 1.0] if narrow else [1.08, 1.155, 1.23]


def _write(
    ax: Any, y: float, name: str, step: dict[str, Any], narrow: bool, colour: Callable[[str], str]
) -> None:
    """Write the name of a step and its three durations."""
    across = {"transform": ax.get_yaxis_transform(), "va": "center"}
    start, align = (0.0, "left") if narrow else (-0.012, "right")
    ax.text(start, y, name, color=colour("ink"), ha=align, **across)
    for x, (kind, tint) in zip(_columns(narrow), COLOUR_OF.items(), strict=True):
        seconds = step[f"{kind}_seconds"]
        tint = tint if kind == "lost" and seconds else "muted"
        text = duration(seconds) if seconds or seconds is None else "0"
        ax.text(x, y, text, color=colour(tint), ha="right", **across)


def _head(ax: Any, narrow: bool, colour: Callable[[str], str]) -> None:
    """Write the names of the columns with their colours, which serves as the legend."""
    # Lengths in inches: the number of rows and the width of the axes vary.
    width, tall = ax.figure.get_size_inches()
    stroke = 0.4 / width / (1.0 if narrow else 0.75)
    above = 1 + 0.12 / (tall - 0.6)
    for x, (kind, tint) in zip(_columns(narrow), COLOUR_OF.items(), strict=True):
        style = {"transform": ax.transAxes, "clip_on": False, "solid_capstyle": "butt"}
        weight = 1.2 if kind == "waited" else 5
        ax.plot([x - stroke, x], [above, above], color=colour(tint), lw=weight, **style)
        ax.annotate(
            COLUMN_HEADS[kind],
            (x, above),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            color=colour("muted"),
            ha="right",
        )


def _scale(ax: Any, timeline: dict[str, Any], max_ticks: int) -> None:
    """Choose a common unit and at most `max_ticks` ticks."""
    wall = timeline["wall_seconds"] or 1.0
    margin = 1.12 if any(step["state"] != "done" for _, step in _rows(timeline)) else 1.0
    every = next(
        (tick for tick in TICKS_SECONDS if wall * margin / tick <= max_ticks), TICKS_SECONDS[-1]
    )
    unit = next(name for name, seconds in reversed(UNIT_SECONDS.items()) if every >= seconds)
    count = int(wall * margin / every)
    ticks = [every * i for i in range(count + 1)]
    ax.set_xticks(ticks, [f"{tick / UNIT_SECONDS[unit]:g}" for tick in ticks])
    ax.set_xlim(0, wall * margin)
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{unit} since the first step was submitted")
