"""A report for people: `report.html`, one file that needs no network, and `report.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.disk import size
from pipeline.report import figures
from pipeline.report.curve import Curve
from pipeline.report.stragglers import SEVERAL
from pipeline.report.verdict import number, signed, signed_number

TEMPLATES = Path(__file__).parent


def render(
    report: dict[str, Any],
    curve: Curve | None,
    changes: dict[str, Any],
    samples: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Write `report.html`, `report.md` and the figures as SVG files.

    Args:
        report: Content of `report.json`.
        curve: Of the training; None where there is none yet.
        changes: By split, the change of each document, nats a token, (documents,).
        samples: prompt, reference, and of base and tuned greedy and sampled.
        folder: Where to.
    """
    from markupsafe import Markup

    drawn = figures.draw(report, curve, changes)
    for name, sizes in drawn.items():
        file = folder / f"{name}.svg"
        file.write_text(figures.standalone(sizes["wide"]), encoding="utf-8")
    content = {
        **report,
        "curve": curve if report["training"] else None,
        "live": None if report["training"] else curve,
        "samples": samples,
        "slowest": _compared(report["stages"]),
        "several": SEVERAL,
        "figures": {n: {s: Markup(svg) for s, svg in sizes.items()} for n, sizes in drawn.items()},
        "colours": Markup(figures.css()),
    }
    fill("template", content, folder / "report")


def fill(template: str, content: dict[str, Any], to: Path) -> None:
    """Write a page as `<to>.html` and `<to>.md`, from the templates of that name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: bool(name and name.endswith(".html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "count": count,
        "size": lambda value: size(value).replace(" ", "\u00a0"),
        "duration": duration,
        "percent": percent,
        "signed_number": signed_number,
    }
    for suffix in (".html", ".md"):
        text = environment.get_template(template + suffix).render(content)
        to.with_name(to.name + suffix).write_text(text, encoding="utf-8")


def _compared(stages: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By step, the slowest of several units of a kind."""
    steps: dict[str, list[dict[str, Any]]] = {}
    for stage in stages.values():
        for row in stage["slowest"]:
            if row["times_median"] is not None:
                steps.setdefault(row["step"], []).append(row)
    return steps


def count(value: float | None) -> str:
    """A whole number with its thousands apart, a dash for none."""
    return "–" if value is None else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.0f}\u00a0%"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}\u00a0min"
    return f"{seconds / 3600:.1f}\u00a0h"
