"""Where figures are drawn: matplotlib to SVG that follows the reader's light or dark colours.

matplotlib draws with stand-in colours; they become CSS variables, and text stays text in the font
of the page. Each figure comes in two widths, for a desk and for a phone, where a shrunken one could
not be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

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

Plot = Callable[[Any], None]
"""Draws on the axes that it is given."""


def css() -> str:
    """The colours as CSS, light unless the reader prefers dark."""
    light, dark = (
        "".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1)
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def standalone(svg: str) -> str:
    """An SVG element as a file of its own."""
    opened = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    style = f"<style>{css()}svg{{background:var(--card);font-family:sans-serif}}</style>"
    return opened.replace(">", f">{style}", 1)


def narrow(ax: Any) -> bool:
    """Whether these axes are for a phone."""
    return bool(ax.figure.get_figwidth() == WIDTHS["narrow"])


def paint(name: str, plot: Plot, width: float, ratio: float, least: float = 2.5) -> str:
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
    ink, muted, line = (stand_in(name) for name in ("ink", "muted", "line"))
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


def stand_in(name: str) -> str:
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
        svg = svg.replace(stand_in(name), f"var(--{name})")
    return svg.replace("xlink:href", "href").strip()
