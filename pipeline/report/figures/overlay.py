"""The figures of several runs side by side: each run has a colour and a marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.figures import canvas
from pipeline.report.figures.canvas import light, narrow, paint
from pipeline.report.figures.figures import smooth
from pipeline.report.formatting import number
from pipeline.report.history.training_curve import Curve

RUN_COLOURS = (
    canvas.COLOURS["tuned"],
    canvas.COLOURS["alarm"],
    ("#5b4bb5", "#a99bff"),
    ("#866a00", "#d9b53a"),
    ("#b0305f", "#f283a8"),
    ("#2f7a2f", "#7fcf7a"),
    ("#2563b8", "#7fb2ff"),
    ("#5f6570", "#a9b1bc"),
)
"""Of the runs, in order: (light, dark). The first two are colours of the page."""
MARKERS = "os^DvPX*"
WIDE_INCHES, NARROW_INCHES = 10.6, canvas.WIDTHS_INCHES["narrow"]
MAX_NAME_CHARS = 34


def css() -> str:
    """The colours of page and figures as CSS."""
    return canvas.css({**canvas.COLOURS, **{f"run{n}": pair for n, pair in enumerate(RUN_COLOURS)}})


def draw(content: dict[str, Any], curves: Sequence[Curve | None], folder: Path) -> dict[str, Any]:
    """Draw the figures that the data allow, and write them as SVG and PNG files into `folder`.

    Args:
        content: Of `compare.json`.
        curves: The learning curve of each run, as far as it is.
        folder: The folder to write into.

    Returns:
        `figures` and `colours`, for the template of the page.
    """
    from markupsafe import Markup

    runs = content["runs"]
    plots: dict[str, tuple[tuple[float, float], Callable[[Any], None]]] = {}
    split = next((s for s in ("test", "validation") if s in content["evaluation"]), None)
    if split:
        scores = content["evaluation"][split]
        count = sum(one is not None for one in scores["runs"])
        ratios = (0.09 + 0.055 * count, 0.3 + 0.22 * count)
        plots["scores"] = ratios, lambda ax: _scores(ax, runs, scores, split)
    if any(curve and not curve.empty for curve in curves):
        plots["curves"] = (0.46, 1.75), lambda ax: _curves(ax, runs, curves)
    drawn = {}
    for name, (ratios, plot) in plots.items():
        files = folder / name, None
        sizes = zip(("wide", "narrow"), (WIDE_INCHES, NARROW_INCHES), ratios, files, strict=True)
        drawn[name] = {
            size: _with_variables(paint(f"{name}-{size}", plot, width, ratio, to=to))
            for size, width, ratio, to in sizes
        }
    return {
        "figures": {n: {s: Markup(svg) for s, svg in of.items()} for n, of in drawn.items()},
        "colours": Markup(css()),
    }


def _colour(index: int) -> str:
    """The colour of a run, as matplotlib draws it."""
    return RUN_COLOURS[index][0]


def _with_variables(svg: str) -> str:
    for index in range(len(RUN_COLOURS)):
        svg = svg.replace(_colour(index), f"var(--run{index})")
    return svg


def _label(ax: Any, run: dict[str, Any]) -> str:
    """A run's letter, and its name, shortened if it is long."""
    if narrow(ax):
        return str(run["letter"])
    name = run["name"].replace("$", r"\$")
    short = name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"
    return f"{run['letter']} · {short}"


def _scores(ax: Any, runs: Sequence[dict[str, Any]], scores: dict[str, Any], split: str) -> None:
    """The score of each run, base and adapted; perplexity if all have the same tokens."""
    pair = ("perplexity", "ci95") if scores["tokens"] else ("bits_per_byte", "bits_ci95")
    measure, interval = pair
    shown = [
        (n, run, one) for n, (run, one) in enumerate(zip(runs, scores["runs"], strict=True)) if one
    ]
    for y, (index, _, one) in enumerate(shown):
        value = one["tuned"][measure]
        if "base" in one:
            base = one["base"][measure]
            ax.plot([value, base], [y, y], color=light("line"), lw=1.4, zorder=1)
            ax.plot([base], [y], "o", mfc="none", mew=1.5, ms=7, color=light("base"))
        low, high = one["tuned"][interval]
        ax.plot([low, high], [y, y], color=_colour(index), lw=2.6, solid_capstyle="round")
        ax.plot([value], [y], MARKERS[index], color=_colour(index), ms=8)
        style = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
        ax.annotate(number(value), (value, y), color=light("ink"), **style)
    ax.set_yticks(range(len(shown)), [_label(ax, run) for _, run, _ in shown])
    ax.set_ylim(len(shown) - 0.5, -0.75)
    ax.margins(x=0.08)
    ax.set_xlabel(f"{measure.replace('_', ' ')} on {split}; lower is better; ring: base model")
    if narrow(ax):
        ax.set_xlabel(f"{measure.replace('_', ' ')}, {split}; ring: base model")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0, labelcolor=light("ink"))


def _curves(ax: Any, runs: Sequence[dict[str, Any]], curves: Sequence[Curve | None]) -> None:
    """Validation and training loss of each run, by tokens trained on."""
    figure, phone = ax.figure, narrow(ax)
    labels = [_label(ax, run) for run in runs]
    ax.remove()
    grid = (2, 1) if phone else (1, 2)
    validation, training = figure.subplots(*grid, sharex=phone)
    shown = [(n, curve) for n, curve in enumerate(curves) if curve and not curve.empty]
    known = all(curve.read and curve.read[-1][1] for _, curve in shown)
    for index, curve in shown:
        at = _tokens_at(curve) if known else lambda steps: np.asarray(steps, dtype=float)
        style = {"color": _colour(index), "label": labels[index]}
        if curve.validation:
            steps, losses = np.array(curve.validation, dtype=float).T
            validation.plot(at(steps), losses, marker=MARKERS[index], ms=5, lw=1.8, **style)
        if curve.train:
            steps, losses = np.array(curve.train, dtype=float).T
            positions, means = smooth(steps, losses)
            training.plot(at(positions), means, lw=1.8, **style)
    for panel, title in ((validation, "validation"), (training, "training, smoothed")):
        panel.set_title(title, loc="left", fontsize=10, color=light("ink"))
        panel.set_ylabel("loss, nats per token")
        panel.set_xlabel("tokens trained on" if known else "optimizer step")
        panel.xaxis.set_major_formatter(_short)
        panel.locator_params(axis="x", nbins=5)
    handles = {
        label: h
        for p in (validation, training)
        for h, label in zip(*p.get_legend_handles_labels(), strict=True)
    }
    legend = {"loc": "outside upper left", "ncols": 4 if phone else (3 if len(handles) > 4 else 2)}
    figure.legend(handles.values(), handles.keys(), **legend)


def _short(value: float, _: Any = None) -> str:
    """A number for an axis: 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _tokens_at(curve: Curve) -> Callable[[Any], Any]:
    """Function from steps to the tokens trained on up to them."""
    steps, tokens = np.array([(0, 0), *curve.read], dtype=float).T
    return lambda at: np.interp(at, steps, tokens)
