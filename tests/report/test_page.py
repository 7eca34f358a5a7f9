"""The pages in a browser: quiet, self-contained, nothing missing, for every reader and any width.

Debian's Chromium opens them. axe-core, which finds what keeps people out, is the one that the
package axe-playwright-python ships, so the lock pins it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.evaluate.stage import samples_item
from pipeline.report.build import write_report_files
from pipeline.report.compare.compare import compare
from pipeline.report.history.progress import RunProgress, StepProgress
from pipeline.report.page import TEMPLATES
from tests.report.helpers import FIGURES as REPORTED
from tests.report.helpers import HOSTILE, Made, Run, chunked, with_logs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.figures]
CHROMIUM = shutil.which("chromium")
A4 = 718
"""Pixels of CSS between the margins that Chromium leaves."""
LOOKS = [
    *((width, "screen", scheme) for width in (1280, 390) for scheme in ("light", "dark")),
    (A4, "print", "light"),
]
PAPER = {"light": "rgb(251, 250, 247)", "dark": "rgb(21, 24, 28)"}
FIGURES = {
    "finished": REPORTED | {"time"},
    "in progress": {"curve"},
    "begun": set[str](),
    "side by side": {"scores", "curves"},
}


def finished(folder: Path) -> None:
    """A run of many units that was preempted twice, overfitted, and wrote HTML."""
    run = Run(folder / "run", restarts=2)
    inputs = chunked(run, [256_000_000] * 9 + [10_000_000], {3: 9.0, 9: 0.1})
    write_report_files(run.config, inputs, folder, with_logs(run))


def in_progress(folder: Path) -> None:
    run = Run(folder / "run", restarts=1)
    inputs = run.inputs("train.train", "evaluate.tuned")
    inputs["evaluate.base"].receipts.pop(samples_item(run.config))
    steps = (
        StepProgress("download.corpus", "done", 1, 1),
        StepProgress("decompress.chunks", "running", 7, 40, "part-00007: 41 %, 34,518 documents"),
        StepProgress("tokenize.seal", "queued", 0, 1, "job 4711; Priority"),
        StepProgress("train.train", "failed", 0, 1, "CUDA out of memory: " + "x" * 300),
        StepProgress("evaluate.report", "waiting", 0, None),
    )
    journal = run.root / "train.train" / "best"
    write_report_files(
        run.config, inputs, folder, run_progress=RunProgress(steps, journal, time.time())
    )


def begun(folder: Path) -> None:
    """Nothing is done yet."""
    steps = tuple(StepProgress(f"step.{n}", "waiting", 0, None) for n in range(9))
    write_report_files(
        Run(folder / "run").config, {}, folder, run_progress=RunProgress(steps, None, time.time())
    )


def side_by_side(folder: Path) -> None:
    late = ("train.train", "evaluate.base", "evaluate.tuned")
    names = ["nih", "nih+train.lr=0.001+train.lora_rank=64", HOSTILE * 4, "long" * 40]
    runs = [
        Made(folder / str(n), -0.2 + n / 30, name=name, lr=2e-4 * 2**n).placed(*(late * (n == 3)))
        for n, name in enumerate(names)
    ]
    compare(runs, folder)


PAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "finished": (finished, "report.html"),
    "in progress": (in_progress, "report.html"),
    "begun": (begun, "report.html"),
    "side by side": (side_by_side, "compare.html"),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip("there is no chromium (Debian: apt install chromium)")
    assert CHROMIUM, "chromium is to be installed where CI runs: see .ci/run"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        # root has no sandbox of its own, and needs none for pages that we wrote
        arguments = ["--no-sandbox"] if not os.geteuid() else []
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a page of each kind."""
    folder = tmp_path_factory.mktemp("page") / request.param
    folder.mkdir()
    make, name = PAGES[request.param]
    make(folder)
    return folder / name


@dataclass
class Opened:
    """A page in the browser, and what came of opening it."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(
    browser: Browser, path: Path, width: int, media: str, scheme: str, bypass: bool = False
) -> Iterator[Opened]:
    """A page under its own Content-Security-Policy, or past it."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=bypass
    )
    try:
        here = Opened(context.new_page())
        here.page.on("console", lambda message: here.said.append(message.text))
        here.page.on("pageerror", lambda error: here.said.append(str(error)))
        here.page.on("request", lambda request: here.asked.append(request.url))
        here.page.emulate_media(media=media, color_scheme=scheme)
        here.page.goto(path.as_uri(), wait_until="load")
        yield here
    finally:
        context.close()


LOOK = """() => {
    const seen = query => [...document.querySelectorAll(query)].filter(e => e.checkVisibility());
    const box = e => e.getBoundingClientRect();
    return {
        overflow: document.documentElement.scrollWidth - innerWidth,
        beyond: seen("main *, header *").filter(e => !e.closest(".scroll, svg") &&
            box(e).right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120)),
        left: Math.min(...seen("h1, h2, p, td").map(e => box(e).left)),
        figures: document.querySelectorAll("figure").length,
        svgs: seen("figure svg").map(
            s => [box(s).width, box(s).height, s.querySelectorAll("path, use").length]),
        paper: getComputedStyle(document.body).backgroundColor,
    };
}"""


def test_a_page_is_quiet_and_whole(browser: Browser, page: Path) -> None:
    for width, media, scheme in LOOKS:
        with opened(browser, page, width, media, scheme) as here:
            look = here.page.evaluate(LOOK)
        where = f"{width} px, {media}, {scheme}"
        assert here.said == [], where
        assert here.asked == [page.as_uri()], "the page itself, and nothing else"
        assert look["overflow"] <= 0, where
        assert look["beyond"] == [], where
        assert look["left"] > 10, f"nothing sticks to the edge: {where}"
        wanted = FIGURES[page.parent.name]
        assert {path.stem for path in page.parent.glob("*.svg")} >= wanted
        assert look["figures"] >= len(wanted), where
        assert len(look["svgs"]) == look["figures"], f"each in the width that suits: {where}"
        for across, height, marks in look["svgs"]:
            assert 200 < across <= width, where
            assert height > 100, where
            assert marks > 5, where
        for name in wanted:
            assert (page.parent / f"{name}.svg").stat().st_size > 1000
        if media == "screen":
            assert look["paper"] == PAPER[scheme], where


def test_what_its_own_policy_forbids_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    policy = re.findall(r"<meta http-equiv=.*", (TEMPLATES / "report.html").read_text())
    path = tmp_path / "bad.html"
    path.write_text(f"<html><head>{''.join(policy)}</head><body><script>1</script></body></html>")
    with opened(browser, path, 1280, "screen", "light") as here:
        assert "Content Security Policy" in "".join(here.said)


LAID = """() => {
    const seen = query => [...document.querySelectorAll(query)].filter(
        e => e.checkVisibility() && e.getBoundingClientRect().height).length;
    return {
        wide: seen("figure .wide svg"),
        narrow: seen("figure .narrow svg"),
        folded: seen("details :is(p, td, dd)"),
    };
}"""


def sheets(page: Page) -> int:
    """Of A4 paper that it takes."""
    margin = dict.fromkeys(("top", "right", "bottom", "left"), "1cm")
    return len(re.findall(rb"/Type /Page\b", page.pdf(format="A4", margin=margin)))


def test_on_paper_it_is_as_on_a_desk_and_nothing_is_folded(browser: Browser, page: Path) -> None:
    with opened(browser, page, A4, "screen", "light") as here:
        figures, folded = (
            here.page.locator(query).count() for query in ("figure", "details :is(p, td, dd)")
        )
        laid = here.page.evaluate(LAID)
        assert laid == {"wide": 0, "narrow": figures, "folded": 0}, "a small screen"
        here.page.emulate_media(media="print")
        laid = here.page.evaluate(LAID)
        assert laid == {"wide": figures, "narrow": 0, "folded": folded}
        printed = sheets(here.page)
        here.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert sheets(here.page) == printed
        here.page.add_style_tag(content="details{display:none}")
        assert sheets(here.page) < printed or folded < 100


def test_axe_finds_nothing_that_keeps_people_out(browser: Browser, page: Path) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        assert serious(browser, page, width, scheme) == []


def serious(browser: Browser, page: Path, width: int, scheme: str) -> list[str]:
    """What axe-core calls serious or critical, everything being unfolded."""
    found = importlib.util.find_spec("axe_playwright_python")
    assert found
    assert found.origin
    script = Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    with opened(browser, page, width, "screen", scheme, bypass=True) as here:
        here.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        here.page.add_script_tag(content=script)
        result: dict[str, Any] = here.page.evaluate("axe.run({resultTypes: ['violations']})")
    assert result["passes"], "it has looked"
    return [
        f"{width} px, {scheme}: {v['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def test_axe_would_find_something(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<html><body><p style='color:#eee;background:#fff'>pale</p></body></html>")
    assert "color-contrast" in "".join(serious(browser, path, 1280, "light"))
