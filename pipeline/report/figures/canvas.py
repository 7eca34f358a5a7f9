"""Where figures are drawn: matplotlib to SVG that follows the reader's light or dark colours.

matplotlib draws in the light ones. In a page they become CSS variables, and text takes the font of
the page; in the files beside it, SVG and PNG, they stay, for slides and for programs that know no
variables. Each figure comes in two widths, for a desk and for a phone, where a shrunken one could
not be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Colours = Mapping[str, tuple[str, str]]

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
"""CSS variables of page and figures: light, dark; no two are equal in light."""
DPI = 200

WIDTHS = {"wide": 5.4, "narrow": 3.7}

Plot = Callable[[Any], None]
"""Draws on the axes that it is given."""


def css(colours: Colours = COLOURS) -> str:
    """The colours as CSS, light unless the reader prefers dark."""
    light, dark = (
        "".join(f"--{name}:{pair[i]};" for name, pair in colours.items()) for i in (0, 1)
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def light(name: str) -> str:
    """The colour of that name, as matplotlib draws it."""
    return COLOURS[name][0]


def narrow(ax: Any) -> bool:
    """Whether these axes are for a phone."""
    return bool(ax.figure.get_figwidth() == WIDTHS["narrow"])


def paint(
    name: str, plot: Plot, width: float, ratio: float, least: float = 2.5, to: Path | None = None
) -> str:
    """An SVG element of that width in inches, of height width × ratio, but `least` at least.

    Args:
        name: Decides the ids in it; two figures on a page must not share one.
        plot: Draws it.
        width: In inches.
        ratio: Height by width.
        least: Height at least, in inches.
        to: Where it goes as files, too, without their `.svg` and `.png`; None for nowhere.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_style(), "svg.hashsalt": name}):
        figure = Figure(figsize=(width, max(width * ratio, least)), layout="constrained")
        plot(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        if to:
            to.with_name(f"{to.name}.svg").write_text(file.getvalue(), encoding="utf-8")
            figure.savefig(to.with_name(f"{to.name}.png"), dpi=DPI)
    return _adapt(file.getvalue())


def _style() -> Any:
    ink, muted, line, card = (light(name) for name in ("ink", "muted", "line", "card"))
    return {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Arial"],
        "figure.facecolor": card,
        "figure.constrained_layout.w_pad": 0.08,  # inches: a reader's font may be wider
        "axes.facecolor": card,
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
        svg = svg.replace(light(name), f"var(--{name})")
    return svg.replace("xlink:href", "href").strip()
