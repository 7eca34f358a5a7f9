"""Runs side by side: paired where that is honest, said where it is not."""

from __future__ import annotations

import json
import math
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Config
from pipeline.report.compare import ranking
from pipeline.report.compare.compare import ComparedRun, compare, compare_scores
from pipeline.report.figures import overlay
from pipeline.report.history.training_curve import read_curve
from pipeline.saved_config import save_config
from tests.helpers.runs import advance, refused
from tests.report.helpers import HOSTILE, Made

HERE = Path(__file__).parents[2]


def side_by_side(folder: Path, *runs: ComparedRun) -> tuple[dict[str, Any], str, str]:
    folder.mkdir()
    compare(runs, folder)
    content = json.loads((folder / "compare.json").read_text())
    return content, *((folder / f"compare.{kind}").read_text() for kind in ("html", "md"))


@pytest.mark.slow
@pytest.mark.figures
def test_runs_are_paired_on_the_same_documents(tmp_path: Path) -> None:
    runs = [
        Made(tmp_path / "1", -0.2).placed(),
        Made(tmp_path / "2", -0.25, name="nih+train.lr=0.001", lr=1e-3).placed(),
        Made(tmp_path / "3", -0.1, name="worse").placed(),
    ]
    content, html, text = side_by_side(tmp_path / "out", *runs)
    first, second, third = content["evaluation"]["test"]["runs"]
    assert first["against"] is None
    low, high = second["against"]["ci95"]
    assert low < 100 * math.expm1(-0.05) < high < 0, "the planted difference"
    assert high - low < 1, "which is known better than either score"
    assert third["against"]["ci95"][0] > 0
    for one in (first, second, third):
        low, high = one["tuned"]["bits_ci95"]
        assert low < one["tuned"]["bits_per_byte"] < high
    assert content["differences"] == {"train.lr": [2e-4, 1e-3, 2e-4]}
    assert content["verdict"]["outcome"] == "better"
    assert content["verdict"]["best"] == "B"
    assert re.fullmatch(
        r"B is best: on 300 test documents its perplexity is 4\.\d % lower than that of A "
        r"\(95 % interval 4\.\d to 5\.\d %\); it is also better than C\.",
        content["verdict"]["words"],
    )
    assert content["verdict"]["words"] in text
    assert "| train.lr | 0.0002 | 0.001 | 0.0002 |" in text
    for page in (html, text):
        left_out = (
            r"Without near-duplicates of training documents:\s+A [\d.]+, −[\d.]+ % by training"
        )
        assert len(re.findall(left_out + r", 270 documents;\s+B ", page)) == 2, "of both splits"
    assert html.count("<svg ") == 4
    assert ">nih+<wbr>train.lr=0.001<" in html, "a long name breaks where it may"
    assert sorted(p.name for p in (tmp_path / "out").glob("*.svg")) == ["curves.svg", "scores.svg"]
    for name in ("curves", "scores"):
        svg = (tmp_path / f"out/{name}.svg").read_text()
        assert "var(" not in svg, "a file of its own has its colours with it"
        for colour, _ in overlay.RUN_COLOURS[:3]:
            assert colour in svg
        assert (tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
    scores = (tmp_path / "out/scores.svg").read_text()
    assert ">A · nih<" in scores, "figures name the runs"
    assert ">B · nih+train.lr=0.001<" in scores
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0
    assert not re.search(r"https?:|<script", html)


@pytest.mark.slow
@pytest.mark.figures
def test_other_tokenizers_are_compared_in_bytes(tmp_path: Path) -> None:
    runs = [
        Made(tmp_path / "1", -0.2).placed(),
        Made(tmp_path / "2", -0.3, name="finer", model="other", finer=1.5).placed(),
    ]
    content, html, text = side_by_side(tmp_path / "out", *runs)
    told = content["evaluation"]["test"]
    assert (told["documents"], told["tokens"]) == (True, False)
    pair = told["runs"][1]["against"]
    assert pair["unit"] == "byte"
    assert pair["bits"] == pytest.approx(-0.1 / 4 / math.log(2), rel=0.1), "4 bytes a token"
    assert pair["ci95"][0] < pair["bits"] < pair["ci95"][1] < 0
    assert told["runs"][1]["tuned"]["perplexity"] < told["runs"][0]["tuned"]["perplexity"] / 2
    assert "perplexities cannot be compared" in html
    assert "bits per byte on test" in html, "the figure follows"
    assert "bits per byte differ from those of A by" in content["verdict"]["words"]
    assert "compare bits per byte" in text
    assert set(content["differences"]) == {"model.id", "model.repo"} | {
        name for name in content["differences"] if name.startswith("model.")
    }


@pytest.mark.slow
def test_other_documents_are_not_compared(tmp_path: Path) -> None:
    runs = [
        Made(tmp_path / "1", -0.2).placed(),
        Made(tmp_path / "2", -0.3, name="other", first=7).placed(),
    ]
    content, html, _ = side_by_side(tmp_path / "out", *runs)
    told = content["evaluation"]["test"]
    assert not told["documents"]
    assert told["runs"][1]["against"] is None
    assert content["verdict"]["outcome"] == "open"
    assert "not scored on the same documents" in content["verdict"]["words"]
    assert "other documents" in html


@pytest.mark.slow
def test_a_run_in_progress_has_a_curve_and_empty_cells(tmp_path: Path) -> None:
    late = ("train.train", "evaluate.base", "evaluate.tuned")
    runs = [
        Made(tmp_path / "1").placed(),
        Made(tmp_path / "2", name="late").placed(*late),
        Made(tmp_path / "3", name="begun").placed("tokenize.seal", *late),
    ]
    (tmp_path / "3/train.train/best/metrics.jsonl").unlink()
    content, html, text = side_by_side(tmp_path / "out", *runs)
    assert [run["state"] for run in content["runs"]] == [
        "evaluated",
        "training, step 60 of 60",
        "not trained yet",
    ]
    assert content["evaluation"]["test"]["runs"][1:] == [None, None]
    assert content["verdict"]["words"] == "Nothing to compare yet: only A is evaluated."
    assert html.count("not evaluated yet") == 4
    assert text.count("not evaluated yet") == 4
    assert "Runs that are still training are shown up to now" in html
    nothing, html, _ = side_by_side(tmp_path / "none", runs[2], runs[2])
    assert nothing["evaluation"] == {}
    assert "<svg" not in html
    assert nothing["verdict"]["words"].endswith("none of them is evaluated.")


@pytest.mark.slow
def test_names_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    runs = [Made(tmp_path / str(n), name=f"{HOSTILE}{n}").placed() for n in range(8)]
    content, html, _ = side_by_side(tmp_path / "out", *runs)
    assert [run["name"] for run in content["runs"]] == [f"{HOSTILE}{n}" for n in range(8)]
    assert "<b>a" not in html
    assert "$x$" in html
    assert len({run["letter"] for run in content["runs"]}) == 8
    assert "the same run under different names" in html


def scored(bits: float, documents: int = 300) -> dict[str, Any]:
    return {"tuned": {"bits_per_byte": bits}, "documents": documents}


def said(bits: list[float], pairs: dict[str, Any], documents: int = 300) -> dict[str, Any]:
    rows = [{"letter": letter} for letter in "ABCDEFGH"[: len(bits)]]
    split = {"runs": [scored(b, documents) for b in bits], "documents": True, "tokens": True}
    return ranking.verdict(rows, {"validation": split, "test": split}, pairs)


def token(percent: float, low: float, high: float) -> dict[str, Any]:
    return {"unit": "token", "percent": percent, "ci95": [low, high]}


def test_the_best_is_named_only_if_the_intervals_allow() -> None:
    better = said([1.2, 1.1], {"A": token(-3.1, -4, -2.2)})
    assert better == {
        "outcome": "better",
        "best": "B",
        "words": "B is better: on 300 test documents its perplexity is 3.1 % lower than that of A "
        "(95 % interval 2.2 to 4.0 %).",
    }
    three = {"A": token(-9, -10, -8), "C": token(-3.1, -4, -2.2), "D": token(-5, -6, -4)}
    words = said([1.2, 1.1, 1.3, 1.3], three)["words"]
    assert words.endswith("of C (95 % interval 2.2 to 4.0 %); it is also better than A and D.")
    level = said([1.2, 1.1, 1.3], {"A": token(-0.1, -1, 0.8), "C": token(-9, -10, -8)})
    assert (level["outcome"], level["best"]) == ("undecided", None)
    assert level["words"].startswith(
        "No run is significantly better: B is best on validation, but "
    )
    assert (
        "its perplexity differs from that of A by −0.1 % (95 % interval −1.0 to" in level["words"]
    )
    behind = said([1.2, 1.1], {"A": token(2, 1, 3)})
    assert behind["outcome"] == "undecided"
    assert "its perplexity is 2.0 % higher than that of A" in behind["words"]
    byte = said([1.2, 1.1], {"A": {"unit": "byte", "bits": -0.1, "ci95": [-0.12, -0.08]}})
    assert "bits per byte differ from those of A by −0.100 (95 % interval −0.120" in byte["words"]
    few = said([1.2, 1.1], {"A": token(-3.1, -4, -2.2)}, documents=9)
    assert few["words"] == "No ranking: 9 test documents are too few."


def test_the_pair_is_that_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(3)
    tokens = generator.integers(10, 500, 200)
    one = generator.normal(3, 0.5, 200) * tokens
    other = one + generator.normal(-0.02, 0.1, 200) * tokens
    hashes = [f"{i:032x}" for i in range(200)]

    def table(nll: Any) -> pa.Table:
        return pa.table({"hash": hashes, "nll": nll, "tokens": tokens, "bytes": tokens * 4})

    pair = compare_scores(table(one), table(other), 2000)
    assert pair
    assert pair["percent"] == pytest.approx(100 * math.expm1((other - one).sum() / tokens.sum()))
    draws = generator.integers(0, 200, (4000, 200))
    ratios = (other - one)[draws].sum(1) / tokens[draws].sum(1)
    wanted = 100 * np.expm1(np.quantile(ratios, [0.025, 0.975]))
    assert pair["ci95"] == pytest.approx(wanted, abs=0.15)
    assert compare_scores(table(one), table(other).slice(1), 200) is None


def test_curves_of_unlike_batches_are_drawn_over_what_they_read(tmp_path: Path) -> None:
    lines = [{"kind": "start", "step": 0}]
    lines += [{"kind": "step", "step": n, "tokens": 100 * n, "loss": 1.0} for n in (1, 2, 3, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    curve = read_curve(tmp_path / "metrics.jsonl")
    assert curve
    at = overlay._tokens_at(curve)
    assert at(np.array([0, 1, 2, 2.5, 3])).tolist() == [0, 100, 300, 450, 600]
    assert [overlay._short(v) for v in (0, 950, 1500, 2.5e6)] == ["0", "950", "1.5k", "2.5M"]


@pytest.fixture(scope="module")
def two(
    finished: Path, small: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A root with two finished runs."""
    root = Path(shutil.copytree(finished, tmp_path_factory.mktemp("two") / "root"))
    other = small("train.lr=1e-4", "train.micro_batch_size=1", name="an 'other' one")
    save_config(other, root)
    advance(other, root, "evaluate.report")
    return root


def jobs(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", "compare", f"--root={root}", *words]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)


@pytest.mark.figures
@pytest.mark.interpreter
@pytest.mark.slow
def test_the_command_puts_real_runs_side_by_side(two: Path) -> None:
    (two / "runs/small").chmod(0o755)
    (two / "runs/an 'other' one").chmod(0o700)
    done = jobs(two, "--", "small", "an 'other' one")
    assert done.returncode == 0, done.stderr
    folder = two / "compare/small_vs_an 'other' one"
    assert done.stdout == (folder / "compare.md").read_text() + (
        f"\ncompare: {folder}/compare.html\n"
    )
    content = json.loads((folder / "compare.json").read_text())
    assert content["differences"] == {"train.lr": [0.005, 0.0001]}
    assert content["circumstances"] == {"train.micro_batch_size": [2, 1]}
    told = content["evaluation"]["test"]
    assert told["documents"]
    assert told["tokens"]
    assert told["runs"][0]["base"] == told["runs"][1]["base"], "it is shared"
    assert "tokens trained on" in (folder / "compare.html").read_text()
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, "as closed as the most closed of them"
    again = jobs(two, "small", "an 'other' one")
    assert again.stdout == done.stdout
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["small"], "compare takes 2 to 8 runs, not 1. Name them, as in: make compare NAMES="),
        (["small"] * 9, "compare takes 2 to 8 runs, not 9"),
        (["small", "small"], "named twice: 'small'"),
        (["small", "smal", "x"], "there is no run 'smal', 'x' in"),
        ([], "Missing argument"),
    ],
)
def test_a_mistake_is_told_in_one_line(two: Path, words: list[str], told: str) -> None:
    line = refused(jobs(two, *words), 2)
    assert told in line
    assert "smal" not in words or "It holds: an 'other' one, small" in line
