"""The report: its numbers, its verdict, and a page that needs nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.config import resolve
from pipeline.core.errors import CorruptInput
from pipeline.evaluate.stage import EvaluateConfig
from pipeline.report.build import write_report_files
from pipeline.report.figures import canvas
from pipeline.report.findings import findings, verdict
from pipeline.report.formatting import duration, join_names, number
from pipeline.report.history.stragglers import slowest
from pipeline.report.history.training_curve import read_curve
from pipeline.report.suggestions import suggestions
from tests.report.helpers import FIGURES, Run, chunked, with_logs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run"), restarts=2)
    run.build()
    return run


def test_the_numbers_are_where_the_contract_has_them(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    assert report["corpus"]["documents"] == 3000
    assert report["corpus"]["duplicates"] == 8
    assert set(report["corpus"]) >= {"documents", "bytes", "tokens", "duplicates", "splits"}
    for split in ("train", "validation", "test"):
        for who in ("base", "tuned"):
            found = report["evaluation"][split][who]
            assert set(found) >= {"perplexity", "bits_per_byte", "ci95", "precision"}
            assert (found["weights"], found["compute"], found["loss"]) == ("int8", "bf16", "fp32")
            assert found["ci95"][0] < found["perplexity"] < found["ci95"][1]
            low, high = found["bits_ci95"]
            assert low < found["bits_per_byte"] < high < 1.2 * low
    trained = report["training"]
    assert (trained["weights"], trained["compute"], trained["loss"]) == ("int8", "bf16", "fp32")
    formats = "weights int8, compute bf16, loss fp32"
    assert run.html.count(formats) == 2, "of scores and of training"
    markdown = (run.root / "out/report.md").read_text()
    assert f"Scored with {formats}." in markdown
    assert f"; {formats}.\n" in markdown
    assert report["training"]["interruptions"] == 2
    names = {"steps", "tokens", "tokens_per_second", "best_step", "interruptions"}
    assert set(report["training"]) >= names
    evaluate = report["stages"]["evaluate"]
    assert (evaluate["seconds"], evaluate["units"]) == (6 * 31.5 + 2 * 8 + 3, 9)
    assert report["cost"]["cpu_hours"] == pytest.approx((120 + 2 * 205 + 3) / 3600, abs=1e-3)
    assert report["cost"]["gpu_hours"] is None, "the training did not say"
    assert report["cost"]["lost_hours"] == pytest.approx(2 * 5 * 2 / 3600, abs=1e-4)
    assert "prefix token" in report["definitions"]["perplexity"]
    assert report["provenance"]["code"] == ["abc123"]
    assert report["provenance"]["packages"]["torch"]


def test_the_paired_change_is_the_planted_one(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    paired = report["evaluation"]["test"]["paired"]
    assert paired["ci95"][0] < -0.2 < paired["ci95"][1]
    assert paired["ci95"][1] - paired["ci95"][0] < 0.05
    percent = 100 * (np.exp(paired["difference"]) - 1)
    assert paired["perplexity_change_percent"] == pytest.approx(percent)
    assert report["verdict"]["outcome"] == "better"


def found(low: float, middle: float, high: float, documents: int = 400) -> dict[str, Any]:
    base, tuned = {"perplexity": 24.1}, {"perplexity": 24.1 * (1 + middle / 100)}
    paired = {"perplexity_change_percent": middle, "ci95_percent": [low, high]}
    return {"base": base, "tuned": tuned, "paired": paired, "documents": documents}


def test_the_verdict_says_what_the_interval_allows() -> None:
    better = verdict(found(-35.7, -33.5, -31.2))
    assert better == {
        "outcome": "better",
        "figures": "24.10 → 16.03",
        "words": "adaptation lowered the perplexity of 400 test documents by 33.5 % "
        "(95 % interval 31.2 to 35.7 %).",
    }
    worse = verdict(found(5.1, 7.4, 9.8))
    assert worse["outcome"] == "worse"
    assert "is worse" in worse["words"]
    assert "rose by 7.4 % (95 % interval 5.1 to 9.8 %)" in worse["words"]
    for low, middle, high in [(-2.9, -1.3, 0.4), (-0.1, 1.0, 2.1), (0, 0, 0)]:
        undecided = verdict(found(low, middle, high))
        assert undecided["outcome"] == "undecided"
        assert undecided["words"].startswith("no significant difference")
        assert "lowered" not in undecided["words"]
    assert "−1.3 %" in verdict(found(-2.9, -1.3, 0.4))["words"]
    few = verdict(found(-50, -50, -50, documents=1))
    assert few["outcome"] == "undecided"
    assert "1 test document changed" in few["words"]
    assert verdict(None)["outcome"] == "open"


def test_numbers_keep_four_digits() -> None:
    given = [3.14159, 31.4159, 1234.56, 123456.7, 0.98765, -0.2, None, float("inf"), float("nan")]
    wanted = ["3.142", "31.42", "1,235", "123,457", "0.988", "-0.200", "–", "–", "–"]
    assert [number(value) for value in given] == wanted


def test_the_page_needs_nothing_but_itself(run: Run) -> None:
    html = run.html
    assert not re.search(r"https?:", html), "no address at all, so no request"
    assert not re.search(r"<script|@import|<link(?! rel=\"icon\" href=\"data:,\")", html)
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert "&lt;script&gt;alert" in html, "what a model writes is text"
    names = {path.stem for path in (run.root / "out").glob("*.svg")}
    assert names >= FIGURES
    assert html.count("<svg ") == 2 * len(names), "each in two widths"
    for colour in re.findall(r"(?:fill|stroke): ?([^;\"]+)", html):
        assert colour in ("none",) or colour.startswith("var(--"), "figures follow the theme"


def test_figures_lie_beside_the_page_for_programs_that_know_no_variables(run: Run) -> None:
    from matplotlib.image import imread

    names = {path.stem for path in (run.root / "out").glob("*.png")}
    assert names == {path.stem for path in (run.root / "out").glob("*.svg")}
    for name in names:
        path = run.root / f"out/{name}.svg"
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        svg = path.read_text()
        assert "var(" not in svg
        used = set(re.findall(r"(?:fill|stroke): (#\w+)", svg))
        assert used <= {light for light, _ in canvas.COLOURS.values()}
        assert {canvas.light("card"), canvas.light("muted")} <= used
        picture = imread(path.with_suffix(".png"))
        assert picture.shape[1] == canvas.DPI * canvas.WIDTHS_INCHES["wide"]
        assert picture[0, 0].tolist() == [1, 1, 1, 1], "white, and not what shines through"
        assert picture.min() < 0.5


def test_no_two_figures_share_an_id(run: Run) -> None:
    ids = re.findall(r'\bid="([^"]+)"', run.html)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', run.html)) <= set(ids)


def test_the_page_tells_of_restarts_best_checkpoint_and_overfitting(run: Run) -> None:
    assert "2 restarts (dashed); 20\u00a0s of steps" in run.html
    assert "Kept: the checkpoint of step 40" in run.html
    assert ">best</text>" in run.html
    assert ">restart</text>" in run.html
    assert "validation loss rose to 2.847: the model began to overfit" in run.html
    markdown = (run.root / "out/report.md").read_text()
    assert "interruptions: 2; skipped steps: 0" in markdown
    assert "\n| test | adapted | " in markdown


def test_the_last_of_repeated_steps_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"kind": "start", "step": 0},
        *({"kind": "step", "step": i, "loss": 9.0, "seconds": 1.0} for i in (1, 2, 3)),
        {"kind": "validation", "step": 3, "loss": 8.0},
        {"kind": "start", "step": 1},
        *({"kind": "step", "step": i, "loss": float(i), "seconds": 1.0} for i in (2, 3)),
        {"kind": "validation", "step": 3, "loss": 7.0},
        {"kind": "step", "step": 4, "loss": float("nan"), "seconds": 1.0, "skipped": True},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\ntorn{")
    curve = read_curve(path)
    assert curve
    assert curve.train == [(1, 9.0), (2, 2.0), (3, 3.0)]
    assert curve.validation == [(3, 7.0)]
    assert curve.best == (3, 7.0)
    assert (curve.restarts, curve.lost_seconds) == ([1], 2.0)
    assert (curve.step, curve.seconds) == (4, 4.0)
    assert read_curve(tmp_path / "nothing") is None
    path.write_text("\n".join(json.dumps(row) for row in rows[:6]))
    taken_up = read_curve(path)
    assert taken_up
    assert (taken_up.train, taken_up.validation) == ([(1, 9.0)], []), "it is to do them again"
    assert (taken_up.step, taken_up.lost_seconds) == (1, 2.0)


@pytest.mark.parametrize(
    "without",
    [
        ("evaluate.base", "evaluate.tuned", "train.train"),
        ("evaluate.tuned",),
        ("evaluate.base", "evaluate.tuned"),
    ],
)
def test_a_run_in_progress_has_a_report(tmp_path: Path, without: tuple[str, ...]) -> None:
    run = Run(tmp_path)
    report = run.build(*without)
    assert report["verdict"]["outcome"] == "open"
    assert "Not evaluated yet." in run.html
    assert (report["training"] is None) == ("train.train" in without)


def test_what_was_rolled_back_is_not_in_the_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"kind": "start", "step": 0},
        *({"kind": "step", "step": i, "loss": float(i), "seconds": 1.0} for i in (1, 2, 3)),
        {"kind": "validation", "step": 2, "loss": 8.0},
        {"kind": "validation", "step": 3, "loss": 1.0},
        {"kind": "step", "step": 4, "loss": 5.0, "seconds": 1.0, "skipped": True},
        {"kind": "rollback", "step": 2, "of": 4, "slowdown": 0.5},
        {"kind": "step", "step": 3, "loss": 2.5, "seconds": 1.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_curve(path)
    assert curve
    assert curve.train == [(1, 1.0), (2, 2.0), (3, 2.5)]
    assert curve.validation == [(2, 8.0)]
    assert (curve.skipped, curve.lost_seconds) == ([4], 2.0)
    path.write_text(
        json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"loss": float("nan")}) + "\n"
    )
    nothing = read_curve(path)
    assert nothing
    assert nothing.empty


def test_a_damaged_score_is_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    inputs = run.inputs()
    path = inputs["evaluate.tuned"].folder / "test/scores.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptInput, match="is damaged"):
        write_report_files(run.config, inputs, tmp_path)


def test_scores_of_different_documents_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    inputs = run.inputs()
    run.documents = 299
    other = run.scores("tuned", "test")
    inputs["evaluate.tuned"].receipts["test"] = other.receipts["test"]
    with pytest.raises(CorruptInput, match="different test documents"):
        write_report_files(run.config, inputs, tmp_path)


@pytest.mark.figures
def test_the_same_inputs_make_the_same_bytes(tmp_path: Path) -> None:
    run = Run(tmp_path)
    inputs = run.inputs()
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report_files(run.config, inputs, tmp_path / name)
        pages.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert pages[0] == pages[1]
    assert len(pages[0]) >= 3 + len(FIGURES)


def test_the_slowest_units_are_named_with_host_and_rate(tmp_path: Path) -> None:
    run = Run(tmp_path)
    inputs = chunked(run, [256_000_000] * 9 + [10_000_000], {3: 9.0, 9: 0.1, 5: 2.5})
    report = write_report_files(run.config, inputs, tmp_path)
    first, second, third = report["stages"]["decompress"]["slowest"]
    assert first == {
        "step": "decompress.chunks",
        "name": "chunk-00003",
        "seconds": 9.0,
        "bytes": 256_000_000,
        "mb_per_second": 28.444,
        "host": inputs["tokenize.shards"].receipts["chunk-00000"].host,
        "times_median": 4.5,
        "of_units": 10,
    }
    assert (second["name"], second["times_median"]) == ("chunk-00005", 1.25)
    assert third["name"] == "chunk-00000", "of equals the first"
    shard = report["stages"]["tokenize"]["slowest"][0]
    assert (shard["step"], shard["name"]) == ("tokenize.shards", "chunk-00003")
    assert (shard["seconds"], shard["bytes"]) == (90.0, 192_000_000), "of text, all splits"
    assert report["stages"]["train"]["slowest"][0]["times_median"] is None, "it is the only one"
    evaluated = report["stages"]["evaluate"]["slowest"]
    assert {row["of_units"] for row in evaluated} == {3, 1}, "scores are no samples"
    html = (tmp_path / "report.html").read_text()
    table = html[html.index("The slowest units") : html.index("<h2>Settings")]
    assert re.findall(r"rowgroup\">(\S+), 10 units<", table) == [
        "decompress.chunks",
        "tokenize.shards",
    ]
    assert table.count("chunk-") == 6
    odd = re.findall(r'<tr class="odd">.*?class="n">(.*?)<', table)
    assert odd == ["90\u00a0s"], "twice the median or more, and not 9 seconds"
    markdown = (tmp_path / "report.md").read_text()
    line = "\n| decompress.chunks | chunk-00003 | 9.0\u00a0s | 4.5 | 256\u00a0MB | 28.4 | "
    assert line in markdown


def test_few_units_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    report = write_report_files(run.config, chunked(run, [1000, 1000], {1: 50.0}), tmp_path)
    (first, _) = report["stages"]["decompress"]["slowest"]
    assert (first["name"], first["times_median"]) == ("chunk-00001", None)
    assert "The slowest units" not in (tmp_path / "report.html").read_text()
    assert "The slowest units" not in (tmp_path / "report.md").read_text()


def test_units_that_are_no_longer_there_are_not_missed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    inputs = chunked(run, [1000] * 5, {2: 50.0})
    for unit in inputs["decompress.chunks"].folder.glob("chunk-*"):
        shutil.rmtree(unit)
    report = write_report_files(run.config, inputs, tmp_path)
    assert report["stages"]["decompress"]["slowest"] == []
    assert report["stages"]["tokenize"]["slowest"][0]["name"] == "chunk-00002"


def test_what_took_no_time_has_no_rate(tmp_path: Path) -> None:
    inputs = chunked(Run(tmp_path), [0] * 4, dict.fromkeys(range(4), 0.0))
    for row in slowest(inputs)["decompress"]:
        assert (row["seconds"], row["times_median"], row["mb_per_second"]) == (0.0, None, None)


def test_what_a_reader_has_to_know_comes_first(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    told = {found["what"]: found["text"] for found in report["findings"]}
    assert set(told) == {
        *("overfitting", "near-duplicates", "memorization", "little of the corpus was read")
    }
    assert "30 of 300 test documents (10.0 %)" in told["near-duplicates"]
    clean = report["evaluation"]["test"]["without_near_duplicates"]
    assert (clean["documents"], clean["left_out"]) == (270, 30)
    assert number(clean["base"]) in told["near-duplicates"]
    assert "in 1 of 4 cases (the base model in 0)" in told["memorization"]
    for page in (run.html, (run.root / "out/report.md").read_text()):
        assert "near-duplicates of a training document" in page.replace("\u00a0", " ")
    assert "without_near_duplicates" not in report["evaluation"]["train"]


def test_near_copies_are_told_from_others_by_their_hash(tmp_path: Path) -> None:
    run = Run(tmp_path)
    inputs = run.inputs()
    run.documents = 299
    inputs["evaluate.overlap"] = run.overlap()
    with pytest.raises(CorruptInput, match="scores and overlap are of different validation doc"):
        write_report_files(run.config, inputs, tmp_path)


def test_the_change_is_told_by_length_and_by_position(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    test = report["evaluation"]["test"]
    parts = [(row["from"], row["below"]) for row in test["by_length"]]
    assert parts == [(64, 128), (128, 256), (256, 512), (512, 1024)], "few are not told apart"
    assert sum(row["documents"] for row in test["by_length"]) > 290
    for row in test["by_length"]:
        low, high = row["paired"]["ci95_percent"]
        assert low < 100 * np.expm1(-0.2) < high
        assert row["tuned"] < row["base"]
    first, *_, last = test["by_position"]
    assert (first["from"], first["below"], first["tokens"]) == (0, 1, 2000)
    assert first["base"] == pytest.approx(np.exp(5000 * 7 / 2000))
    assert (last["from"], last["below"]) == (63, 127)


def evaluated(run: Run, **settings: Any) -> tuple[dict[str, Any], str]:
    """Report and page of a run whose evaluation was set so."""
    out = run.root / "out"
    out.mkdir(parents=True, exist_ok=True)
    run.evaluate = EvaluateConfig(**settings)
    return write_report_files(run.config, run.inputs(), out), run.html


def test_texts_too_short_and_lengths_of_some_documents_are_said_to_be_so(
    run: Run, tmp_path: Path
) -> None:
    scored = "Lengths of 300 of 1,200 training documents: those that were scored"
    given = {"max_tokens": 99_000, "max_documents": 300}
    report, html = evaluated(Run(tmp_path / "1"), new_tokens=12, **given)
    figures = report["written"]["tuned"]["greedy"]
    assert (figures["texts"], figures["copied_longest"], figures["copied_long"]) == (4, None, None)
    assert "Texts of 12 tokens are too short to search: the shortest span has 13 tokens." in html
    assert html.count(">too short</td>") == 2 * 7
    markdown = (tmp_path / "1/out/report.md").read_text()
    assert markdown.count("its texts are too short to search for copied spans") == 2
    assert f"{scored}, with the lowest hashes." in html, "all that were wanted did fit"

    report, html = evaluated(Run(tmp_path / "2"), new_tokens=49, max_tokens=99_000)
    figures = report["written"]["tuned"]["greedy"]
    assert (figures["copied_longest"], figures["copied_long"]) == (60, None)
    assert "Texts of 49 tokens are too short for spans of 50." in html
    assert html.count(">too short</td>") == 7
    assert not told("copying", report)
    assert f"{scored}. Only documents that fit into 99,000 tokens" in html

    assert "too short" not in run.html
    assert f"{scored}, with the lowest hashes." in run.html


def told(what: str, report: dict[str, Any]) -> dict[str, str]:
    rules = findings(report) + suggestions(report)
    return next((rule for rule in rules if rule["what"] == what), {})


def test_advice_follows_from_the_numbers(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    assert not told("train longer", report), "it overfitted"
    assert told("train for fewer steps", report)["try"] == "train.steps=40"
    assert told("keep near-duplicates together", report)
    assert told("save more often", report), "20 of 120 seconds were lost"
    assert told("little of the corpus was read", report)["text"].startswith(
        "The kept checkpoint had read 20.0 %"
    )
    at_once = report | {"training": report["training"] | {"best_step": 0}}
    assert not told("train for fewer steps", at_once)
    assert told("a lower learning rate", at_once)["try"] == "train.lr=5e-05"
    open_yet = report | {"verdict": {"outcome": "undecided"}}
    assert told("more test documents", open_yet)["try"] == "evaluate.max_documents=8000"
    training = report["training"] | {"last_loss": 2.8, "best_step": 60, "skipped": 3}
    going_on = report | {"training": training}
    assert told("train longer", going_on)["try"] == "train.steps=120"
    assert not told("train for fewer steps", going_on)
    assert told("a lower learning rate", going_on)["try"] == "train.lr=0.0001"
    values = report["settings"]["values"]
    epochs = {**report["settings"], "values": {**values, "train": {**values["train"], "epochs": 2}}}
    assert told("train longer", going_on | {"settings": epochs})["try"] == "train.epochs=4"
    gap = {"difference": 0.31, "ci95": [0.2, 0.4], "seen": 1.0}
    assert not told("gap", report)
    assert "0.31 nats" in told("gap", report | {"gap": gap})["text"]


def test_findings_need_ten_test_documents(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    report["gap"] = {"difference": 0.31, "ci95": [0.2, 0.4], "seen": 0.2}
    rest_on_test = ("gap", "near-duplicates", "copying", "keep near-duplicates together")
    copied = {"texts": 12, "copied_long": 0.5, "copied_longest": 60}
    report["written"]["tuned"]["greedy"] |= copied
    assert not [what for what in rest_on_test if not told(what, report)]

    def with_documents(count: int) -> dict[str, Any]:
        few = json.loads(json.dumps(report))
        few["evaluation"]["test"]["documents"] = count
        few["overlap"]["test"] |= {"documents": count, "near_duplicates": 3}
        few["written"]["tuned"]["greedy"]["texts"] = count
        return few

    assert not [what for what in rest_on_test if not told(what, with_documents(10))]
    assert not [what for what in rest_on_test if told(what, with_documents(9))]
    steady = {"training": report["training"] | {"last_loss": 2.8}}
    assert told("more trainable weights", with_documents(10) | steady)
    assert not told("more trainable weights", with_documents(9) | steady)
    assert told("overfitting", with_documents(1)), "it rests on validation documents"
    assert told("memorization", with_documents(1)), "it rests on training documents"


def test_settings_are_compared_with_the_recipe(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config = resolve("nih", recipe="lora", overrides=["train.lr=3e-4", "train.seed=7"])
    (tmp_path / "out").mkdir()
    report = write_report_files(config, run.inputs(), tmp_path / "out")
    assert report["settings"]["recipe"] == "lora"
    assert report["settings"]["changed"] == {
        "train.lr": {"value": 3e-4, "recipe": 2e-4},
        "train.seed": {"value": 7, "recipe": 0},
    }
    assert "Differences from recipe lora" in run.html
    markdown = (tmp_path / "out/report.md").read_text()
    assert "Settings that differ from recipe lora:\n\n" in markdown
    assert "\n| train.lr | 0.0003 | 0.0002 |\n" in markdown
    gone = config.model_copy(update={"recipe": str(tmp_path / "gone.yaml")})
    changed = write_report_files(gone, run.inputs(), tmp_path / "out")["settings"]["changed"]
    assert changed["train.weights"] == {"value": "bf16", "recipe": "int8"}, "the defaults"


def test_what_computed_is_told_from_what_reported(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    host = socket.gethostname()
    assert report["provenance"]["hosts"] == [host]
    versions = report["provenance"]["packages"]
    assert f'Computed on</dt><dd class="code">{host}<' in run.html
    assert "Machine that wrote this report</dt>" in run.html
    assert f'Its packages</dt><dd class="code">python {versions["python"]}, ' in run.html
    markdown = (run.root / "out/report.md").read_text()
    assert f"code abc123; computed on {host}. The machine that wrote this report has" in markdown
    assert "\nSettings: no differences from the defaults.\n" in markdown
    hours = report["cost"]["cpu_hours"]
    assert f"\nCost: {duration(3600 * hours)} of CPU time granted, GPU time not reco" in markdown
    assert ". Work shared with other runs counts in full." in markdown
    assert join_names([f"n{i}" for i in range(23)]).endswith(", n19 and 3 more")


@pytest.mark.figures
def test_the_page_tells_where_the_time_went(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", restarts=1)
    inputs = run.inputs()
    metrics = inputs["train.train"].folder / "best" / "metrics.jsonl"
    first, rest = metrics.read_text().split("\n", 1)
    metrics.write_text(json.dumps({**json.loads(first), "time": 1065}) + "\n" + rest)
    logs, pages = with_logs(run), []
    for name in ("one", "two"):
        out = tmp_path / name
        out.mkdir()
        report = write_report_files(run.config, inputs, out, logs)
        pages.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert pages[0] == pages[1]
    found = json.loads((out / "report.json").read_text())["timeline"]
    assert found == report["timeline"]
    train = found["steps"]["train.train"]
    assert (train["waited_seconds"], train["running_seconds"], train["attempts"]) == (360, 3240, 2)
    assert train["lost_seconds"] == 10
    assert report["cost"]["lost_hours"] == round(10 / 3600, 4)
    assert train["spans"]["lost"] == [[1990, 2000]]
    assert found["steps"]["tokenize.seal"] == {"shared": True}
    assert (found["wall_seconds"], found["running_seconds"]) == (3800, 3370)
    assert "while at least one task ran" in report["definitions"]["running_seconds"]
    html, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "63\u00a0min of wall-clock time. At least one task ran for 56\u00a0min" in html
    assert "another run computed them: download.corpus, tokenize.seal, evaluate.overlap." in html
    assert {path.stem for path in out.glob("*.png")} == {path.stem for path in out.glob("*.svg")}
    assert html.count("<svg ") == 2 * len(list(out.glob("*.svg"))), "each in two widths"
    (drawn,) = re.findall(
        r'class="narrow" role="img" aria-label="When each step.*?</svg>', html, re.S
    )
    words = re.findall(r">([^<>]+)</text>", drawn)
    assert {"train.train", "6\u00a0min", "54\u00a0min", "10\u00a0s", "waited", "lost"} <= set(words)
    assert "tokenize.seal" not in words
    for colour in re.findall(r"(?:fill|stroke): ?([^;\"]+)", html):
        assert colour == "none" or colour.startswith("var(--"), "figures follow the theme"
    assert "\n| train.train | 6\u00a0min | 54\u00a0min | 10\u00a0s | 1 | 2 |\n" in markdown
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0


def test_what_was_not_written_down_is_not_told(run: Run) -> None:
    report = json.loads((run.root / "out/report.json").read_text())
    assert report["timeline"] is None
    assert not (run.root / "out/time.svg").exists()
    assert "Times by step" not in run.html
    assert "Time and cost" in run.html
