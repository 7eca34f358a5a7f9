"""The figures of a report; `canvas` says how they are drawn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.figures import gantt
from pipeline.report.figures.canvas import WIDTHS_INCHES, Plot, light, narrow, paint
from pipeline.report.formatting import number
from pipeline.report.history.training_curve import Curve
from pipeline.report.results import Results

MAX_POINTS = 400


def draw(
    report: dict[str, Any], curve: Curve | None, results: Results, folder: Path
) -> dict[str, dict[str, str]]:
    """Draw the figures that the data allow.

    The wide ones are also written into `folder`, as SVG and PNG.

    Args:
        report: Content of `report.json`.
        curve: Of the training.
        results: Of the evaluation.
        folder: The folder to write into.

    Returns:
        By name and width ("wide", "narrow"), the SVG element.
    """
    plots: dict[str, tuple[float, Plot]] = {
        **_evaluation_plots(report, results),
        **_training_plots(curve, _best(report, curve)),
    }
    if results.lengths is not None and len(results.lengths) > 1:
        plots["lengths"] = 0.5, lambda ax: _lengths(ax, results.lengths)
    drawn = {
        name: {
            size: paint(f"{name}-{size}", plot, width, ratio, to=_file(folder, name, size))
            for size, width in WIDTHS_INCHES.items()
        }
        for name, (ratio, plot) in plots.items()
    }
    if timeline := report.get("timeline"):
        drawn["time"] = {
            size: _time(timeline, size, _file(folder, "time", size))
            for size in gantt.GANTT_WIDTHS_INCHES
        }
    return drawn


def _file(folder: Path, name: str, size: str) -> Path | None:
    """Where a figure of that width is written to; None for nowhere."""
    return folder / name if size == "wide" else None


def _evaluation_plots(report: dict[str, Any], results: Results) -> dict[str, tuple[float, Plot]]:
    plots: dict[str, tuple[float, Plot]] = {}
    held_out = [s for s in ("test", "validation") if "paired" in results.evaluation.get(s, {})]
    if held_out:
        plots["intervals"] = 0.44, lambda ax: _intervals(ax, report["evaluation"], held_out)
    test = results.evaluation.get("test", {})
    if len(results.changes.get("test", ())) > 1:
        plots["documents"] = 0.52, lambda ax: _documents(ax, results.changes["test"])
    if len(test.get("by_length", ())) > 1:
        plots["length"] = 0.52, lambda ax: _by_length(ax, test["by_length"])
    if len(test.get("by_position", ())) > 1:
        plots["position"] = 0.52, lambda ax: _by_position(ax, test["by_position"])
    return plots


def _best(report: dict[str, Any], curve: Curve | None) -> tuple[int, float] | None:
    """The checkpoint that was kept, or the best one so far."""
    if training := report["training"]:
        return training["best_step"], training["best_loss"]
    return curve.best if curve else None


def _training_plots(
    curve: Curve | None, best: tuple[int, float] | None
) -> dict[str, tuple[float, Plot]]:
    if not curve or curve.empty:
        return {}
    plots: dict[str, tuple[float, Plot]] = {"curve": (0.66, lambda ax: _curve(ax, curve, best))}
    if len(curve.norms) > 1:
        plots["norms"] = 0.5, lambda ax: _norms(ax, curve)
    if len(curve.speeds) > 1:
        plots["speed"] = 0.5, lambda ax: _speed(ax, curve)
    return plots


def _time(timeline: dict[str, Any], size: str, to: Path | None) -> str:
    """When each step waited and ran; as wide as the page."""
    width, height = gantt.GANTT_WIDTHS_INCHES[size], gantt.height(timeline, size)
    plot = partial(gantt.plot, timeline=timeline, size=size, colour=light)
    return paint(f"time-{size}", plot, width, height / width, 0.0, to)


def _intervals(ax: Any, evaluation: dict[str, Any], splits: list[str]) -> None:
    """Perplexity with its interval, base above adapted, by split."""
    rows = [(split, model) for split in splits for model in ("base", "tuned")]
    for y, (split, model) in enumerate(rows):
        scores = evaluation[split][model]
        low, high = scores["ci95"]
        colour = light(model)
        ax.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round")
        ax.plot([scores["perplexity"]], [y], "o", color=colour, ms=7)
        point, style = (scores["perplexity"], y), {"textcoords": "offset points", "ha": "center"}
        ax.annotate(number(scores["perplexity"]), point, (0, 8), **style)
    names = {"base": "base", "tuned": "adapted"}
    comma = "\n" if narrow(ax) else ", "
    ax.set_yticks(range(len(rows)), [f"{split}{comma}{names[model]}" for split, model in rows])
    ax.set_ylim(len(rows) - 0.5, -0.7)
    ax.margins(x=0.12)
    ax.set_xlabel("perplexity; lower is better")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _curve(ax: Any, curve: Curve, best: tuple[int, float] | None) -> None:
    """Loss by step: training (each step and averaged), validation, best checkpoint, restarts."""
    for i, step in enumerate(curve.restarts):
        label = "restart" if i == 0 else None
        ax.axvline(step, color=light("alarm"), lw=1.2, ls=(0, (3, 3)), label=label)
    if curve.train:
        steps, losses = np.array(curve.train, dtype=float).T
        ax.plot(*_thin(steps, losses), color=light("faint"), lw=1)
        ax.plot(*smooth(steps, losses), color=light("tuned"), lw=2, label="training")
    if curve.validation:
        ax.plot(
            *zip(*curve.validation, strict=True),
            color=light("ink"),
            lw=1.4,
            marker="o",
            ms=4.5,
            label="validation",
        )
    if best:
        ax.plot(*best, "o", ms=12, mfc="none", mew=1.8, color=light("alarm"), label="best")
    _limit(ax, curve)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("loss, nats per token")
    columns = 2 if narrow(ax) else 4
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns)


def _limit(ax: Any, curve: Curve) -> None:
    """Limit the y axis, so that a few outliers do not flatten the rest."""
    losses = [loss for _, loss in (*curve.train, *curve.validation)]
    low, high = min(losses), max(losses)
    quantile = float(np.quantile(losses, 0.995))
    top = high if high - low < 2 * (quantile - low) else quantile
    margin = 0.06 * (top - low) or 0.1
    ax.set_ylim(low - margin, top + margin)


def _thin(steps: Any, losses: Any) -> tuple[Any, Any]:
    """Every n-th point, so that a long training does not make a large file."""
    every = -(-len(steps) // MAX_POINTS)
    return steps[::every], losses[::every]


def smooth(steps: Any, losses: Any) -> tuple[Any, Any]:
    """Means over up to 60 equal intervals."""
    stretches = np.array_split(np.arange(len(steps)), min(60, max(1, len(steps) // 3)))
    means = [np.array([v[s].mean() for s in stretches]) for v in (steps, losses)]
    return means[0], means[1]


def _documents(ax: Any, changes: Any) -> None:
    """Histogram of the change of each document."""
    low, high = np.quantile([*changes, 0.0], [0.002, 0.998])
    width = max(high - low, 1e-6) / np.clip(2 * np.sqrt(len(changes)), 9, 36)
    # zero is the edge of a bin, so that each bin is on one side
    bins = np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
    counts, _ = np.histogram(np.clip(changes, bins[0], bins[-1]), bins)
    middles = (bins[:-1] + bins[1:]) / 2
    colours = [light("tuned") if middle < 0 else light("alarm") for middle in middles]
    ax.bar(middles, counts, width * 0.86, color=colours)
    ax.axvline(0, color=light("ink"), lw=1)
    ax.set_xlabel("change of the document’s loss, nats per token")
    ax.set_ylabel("documents")
    ax.locator_params(axis="y", integer=True, nbins=6)
    for side, text in ((-1, "← improved"), (1, "worse →")):
        align = "left" if side < 0 else "right"
        place = {"transform": ax.transAxes, "ha": align, "va": "bottom"}
        ax.text(0 if side < 0 else 1, 1.02, text, color=light("muted"), **place)


def _by_length(ax: Any, rows: list[dict[str, Any]]) -> None:
    """Change of perplexity, with its interval, by document length."""
    ax.axvline(0, color=light("ink"), lw=1)
    for y, row in enumerate(rows):
        low, high = row["paired"]["ci95_percent"]
        colour = light("tuned" if high < 0 else "alarm" if low > 0 else "base")
        ax.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round")
        ax.plot([row["paired"]["perplexity_change_percent"]], [y], "o", color=colour, ms=7)
    names = [f"{span(row)}{_separator(ax)}({row['documents']:,})" for row in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.08)
    ax.set_xlabel("change of perplexity, %")
    ax.set_ylabel("tokens (documents)")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def span(row: dict[str, Any]) -> str:
    """The bounds of a group in words: under 64, 64 – 127, 2,048 and more."""
    low, high = row["from"], row["below"]
    if not low:
        return f"under {high:,}"
    if high is None:
        return f"{low:,} and more"
    return f"{low:,} – {high - 1:,}" if high - low > 1 else f"{low:,}"


def _separator(ax: Any) -> str:
    return "\n" if narrow(ax) else " "


def _by_position(ax: Any, rows: list[dict[str, Any]]) -> None:
    """Perplexity of tokens by their position in the document."""
    positions = [(row["from"] + row["below"] - 1) / 2 + 1 for row in rows]
    for model, name in (("base", "base"), ("tuned", "adapted")):
        losses = [row[model] for row in rows]
        ax.plot(positions, losses, color=light(model), lw=1.8, marker="o", ms=4.5, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    _plain_ticks(ax.xaxis, ax.yaxis)
    ax.set_xlabel("position in the document, tokens")
    ax.set_ylabel("perplexity")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _plain_ticks(*axes: Any) -> None:
    """Plain numbers on logarithmic axes; ticks at 1, 2, 5 if there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axis.set_minor_formatter(NullFormatter())


def _lengths(ax: Any, tokens: Any) -> None:
    """Histogram of document lengths."""
    low, high = max(1, int(tokens.min())), int(tokens.max()) + 1
    edges = np.unique(np.geomspace(low, max(high, low + 1), 25).round())
    counts, _ = np.histogram(tokens, edges)
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=light("tuned"))
    for edge in edges[1:-1]:
        ax.axvline(edge, color=light("card"), lw=0.8)
    ax.set_xscale("log")
    _plain_ticks(ax.xaxis)
    ax.set_xlabel("document length, tokens")
    ax.set_ylabel("documents")
    ax.grid(axis="x", visible=False)
    ax.locator_params(axis="y", integer=True, nbins=6)


def _norms(ax: Any, curve: Curve) -> None:
    """Gradient norm of each step, and the skipped steps."""
    steps, norms = np.array(curve.norms, dtype=float).T
    norms = np.maximum(norms, 1e-12)
    ax.plot(*_thin(steps, norms), color=light("faint"), lw=1)
    ax.plot(*smooth(steps, norms), color=light("tuned"), lw=2, label="gradient norm")
    if curve.skipped:
        top = float(norms.max())
        ax.plot(
            curve.skipped,
            [top] * len(curve.skipped),
            "x",
            color=light("alarm"),
            label="skipped step",
            clip_on=False,
        )
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("gradient norm")
    if curve.skipped:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _speed(ax: Any, curve: Curve) -> None:
    """Tokens per second of each step."""
    steps, speeds = np.array(curve.speeds, dtype=float).T
    ax.plot(*_thin(steps, speeds), color=light("faint"), lw=1)
    ax.plot(*smooth(steps, speeds), color=light("tuned"), lw=2)
    ax.set_ylim(0, None)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("tokens per second")
