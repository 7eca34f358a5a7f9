"""Draw figures with matplotlib as SVG that follows the reader's light or dark colour scheme.

matplotlib draws in light colours. In a page these become CSS variables, and text takes the font of
the page. The SVG and PNG files beside the page keep the light colours, for slides and for programs
that do not support variables. Each figure has two widths: on a phone a shrunken wide one could not
be read.
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
"""CSS variables of page and figures: (light, dark). The light colours are all different."""
DPI = 200

WIDTHS_INCHES = {"wide": 5.4, "narrow": 3.7}

Plot = Callable[[Any], None]
"""A function that draws on the given axes."""


def css(colours: Colours = COLOURS) -> str:
    """The colours as CSS: light unless the reader prefers dark."""
    light, dark = (
        "".join(f"--{name}:{pair[i]};" for name, pair in colours.items()) for i in (0, 1)
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def light(name: str) -> str:
    """The colour with that name, as matplotlib draws it."""
    return COLOURS[name][0]


def narrow(ax: Any) -> bool:
    """Whether these axes are those of the narrow figure."""
    return bool(ax.figure.get_figwidth() == WIDTHS_INCHES["narrow"])


def paint(
    name: str,
    plot: Plot,
    width: float,
    ratio: float,
    min_height: float = 2.5,
    to: Path | None = None,
) -> str:
    """Draw a figure and return it as an SVG element.

    Args:
        name: Determines the ids in the SVG; it must be unique on a page.
        plot: Draws the figure.
        width: In inches.
        ratio: Height divided by width.
        min_height: In inches.
        to: Path of files to write, without `.svg` and `.png`; None to write none.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_style(), "svg.hashsalt": name}):
        figure = Figure(figsize=(width, max(width * ratio, min_height)), layout="constrained")
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
        "figure.constrained_layout.w_pad": 0.08,  # inches; the reader's font may be wider
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
    """Make a page element from the SVG of matplotlib, with the page's colours and font."""
    svg = svg[svg.index("<svg ") :]
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r' xmlns(:xlink)?="[^"]*"',
        r'(?<=<g) id="[^"]*"',
        r" font-family: [^;\"]*;?",
        r' transform="rotate\(-0 [^"]*"',
    ):
        svg = re.sub(pattern, "", svg, flags=re.S)
    for name in COLOURS:
        svg = svg.replace(light(name), f"var(--{name})")
    return svg.replace("xlink:href", "href").strip()
