"""The pages of a report: `report.html`, one file that needs no network, and `report.md`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.disk import size
from pipeline.evaluate.contamination.ngrams import NGRAM_TOKENS
from pipeline.evaluate.contamination.overlap import QUOTED_SHARE
from pipeline.evaluate.memorization import LONG_COPY_TOKENS
from pipeline.report.figures import canvas, figures
from pipeline.report.findings import enough, overfitted, test_documents
from pipeline.report.formatting import (
    count,
    duration,
    join_names,
    nats,
    number,
    percent,
    signed,
    signed_number,
)
from pipeline.report.history.stragglers import MIN_MARKED_SECONDS, MIN_UNITS_TO_COMPARE
from pipeline.report.history.training_curve import Curve
from pipeline.report.results import Results

SAMPLES_SHOWN = 4  # the others are folded
TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    report: dict[str, Any],
    curve: Curve | None,
    results: Results,
    samples: dict[str, list[dict[str, Any]]],
    folder: Path,
) -> None:
    """Write `report.html`, `report.md` and the figures as SVG and PNG files.

    Args:
        report: Content of `report.json`.
        curve: Of the training; None if there is none yet.
        results: Of the evaluation.
        samples: By kind of prompt: prompt, reference, and what each model generated.
        folder: The folder to write into.
    """
    from markupsafe import Markup

    drawn = figures.draw(report, curve, results, folder)
    shown = None if curve is None or curve.empty else curve
    content = {
        **report,
        "curve": shown if report["training"] else None,
        "live": None if report["training"] else shown,
        "samples": samples,
        "slowest": _slowest_units(report["stages"]),
        "min_units": MIN_UNITS_TO_COMPARE,
        "min_marked_seconds": MIN_MARKED_SECONDS,
        "shown": SAMPLES_SHOWN,
        "ngram_tokens": NGRAM_TOKENS,
        "long_copy_tokens": LONG_COPY_TOKENS,
        "quoted_share": QUOTED_SHARE,
        "overfitted": overfitted(report),
        "enough_test_documents": enough(test_documents(report)),
        "figures": {n: {s: Markup(svg) for s, svg in sizes.items()} for n, sizes in drawn.items()},
        "colours": Markup(canvas.css()),
    }
    write_page("report", content, folder / "report")


def write_page(template: str, content: dict[str, Any], to: Path) -> None:
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
        "join_names": join_names,
        "nats": nats,
        "signed_number": signed_number,
        "zip": partial(zip, strict=True),
    }
    for suffix in (".html", ".md"):
        text = environment.get_template(template + suffix).render(content)
        text = re.sub(r"\n{3,}", "\n\n", text) if suffix == ".md" else text
        to.with_name(to.name + suffix).write_text(text, encoding="utf-8")


def _slowest_units(stages: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By step, the slowest units among those that can be compared."""
    steps: dict[str, list[dict[str, Any]]] = {}
    for stage in stages.values():
        for row in stage["slowest"]:
            if row["times_median"] is not None:
                steps.setdefault(row["step"], []).append(row)
    return steps
