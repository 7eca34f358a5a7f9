"""Tests of the benchmark tools: corpora, process measurement, tables and fault injection."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
import zstandard

from bench import corpora, fault_storm, job, lockstep, table, text, training_tables
from bench.fault_injection import DATA_FAULTS, TRAINING_FAULTS, FaultProfile, sample_faults
from bench.immutability_check import ImmutabilityCheck
from bench.measure import CommandFailed, measure

# A child that its parent waits for, and one that outlives its parent: 0.5 s and 100 MB each.
WORK = (
    "import time; held = b'x' * 100_000_000; end = time.process_time() + 0.5\n"
    "while time.process_time() < end: pass\n"
)
TREE = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {WORK!r}], check=True)
orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", orphan, {WORK!r}], check=True)
"""


@pytest.fixture(scope="module")
def source() -> str:
    found = text.collect([Path(json.__file__).parent.parent / "email", Path(text.ROOT / "docs")])
    assert len(found) > 50_000
    return found


@pytest.mark.parametrize("kind", corpora.LENGTHS)
def test_a_corpus_is_shaped_like_the_pile_and_the_same_each_time(
    tmp_path: Path, source: str, kind: str
) -> None:
    made = [
        corpora.make(kind, 1, tmp_path / name, lambda: source).packed.read_bytes()
        for name in ("one", "two")
    ]
    assert made[0] == made[1]
    size = zstandard.frame_content_size(made[0])
    data = zstandard.ZstdDecompressor().decompressobj()
    lines = data.decompress(made[0]).splitlines()
    assert data.eof
    assert not data.unused_data, "one frame"
    assert size in (-1, sum(map(len, lines)) + len(lines))
    records = [json.loads(line) for line in lines]
    assert [record["meta"]["id"] for record in records] == [f"{n}" for n in range(len(lines))]
    assert len({record["text"] for record in records}) == len(records)
    wanted, _ = corpora.LENGTHS[kind]
    assert 0.7 < mean(len(record["text"].encode()) for record in records) / wanted < 1.4


def test_documents_do_not_repeat_when_the_text_is_reused() -> None:
    source = " ".join(map(str, range(9_000)))
    taken = list(itertools.islice(corpora.documents("nih", source), 20_000))
    assert len(set(taken)) == 20_000


def test_frames_are_cut_within_lines(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(b"".join(b"%d\n" % number for number in range(3000)))
    data, frames = fault_storm.compress_in_frames(plain, 5, 0).read_bytes(), []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frames.append(frame.decompress(data))
        data = frame.unused_data
    assert len(frames) == 5
    assert b"".join(frames) == plain.read_bytes()
    assert not [frame for frame in frames[:-1] if frame.endswith(b"\n")]


@pytest.mark.parametrize("profile", [DATA_FAULTS, TRAINING_FAULTS], ids=["data", "training"])
def test_a_seed_decides_the_faults(profile: FaultProfile) -> None:
    faults = sample_faults(profile, 20, 3.0, 0)
    assert faults == sample_faults(profile, 20, 3.0, 0) != sample_faults(profile, 20, 3.0, 1)
    assert all(0 <= fault.after_seconds <= 6 for fault in faults)
    order = [list(profile.steps).index(fault.step) for fault in faults]
    assert order == sorted(order)
    assert Counter(fault.kind for fault in faults) == profile.kinds
    assert len(sample_faults(profile, 47, 3.0, 0)) == 47


def test_a_rewritten_committed_file_is_found(tmp_path: Path) -> None:
    unit, temporary = (tmp_path / "data" / "x" / "chunks-1" / n for n in ("chunk-0", ".tmp-1"))
    for folder in (unit, temporary):
        folder.mkdir(parents=True)
        for name in ("receipt.json", "text"):
            (folder / name).write_text("same")
    check = ImmutabilityCheck(tmp_path, "x")
    check.record()
    check.compare()
    assert not check.rewritten
    assert check.count_units("chunks") == 1
    (unit / "new").write_text("same")
    (unit / "new").rename(unit / "text")
    check.record()
    check.compare()
    assert check.rewritten == {unit / "text"}


def test_every_other_line_is_escaped() -> None:
    assert b"\\u00e9" in corpora.line(0, "é")
    assert "é".encode() in corpora.line(1, "é")


def test_each_paragraph_is_collected_once(source: str) -> None:
    paragraphs = source.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)


@pytest.mark.slow
def test_grandchildren_and_orphans_are_counted() -> None:
    usage = measure([sys.executable, "-c", TREE], timeout=60)
    assert 1.0 <= usage.cpu < 5.0
    assert 100e6 < usage.process < 200e6
    assert usage.tree >= usage.process


def test_a_failed_command_raises_with_its_output() -> None:
    with pytest.raises(CommandFailed, match=r"ended with code 7.*why"):
        measure([sys.executable, "-c", "print('why'); raise SystemExit(7)"], timeout=60)


def test_a_new_table_replaces_the_old_one() -> None:
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nz"
    assert table.replace(text, "x", "new") == text.replace("old", "new")


SYSTEM = """
from bench.lockstep import Lockstep
lockstep = Lockstep()
print("library output")
lockstep.begin()
steps = 1
while lockstep.step(100 * steps, 200 * steps, 1.5):
    sum(range(30_000_000))
    steps += 1
print("saved", steps)
"""


@pytest.mark.slow
def test_a_system_steps_when_told_and_waiting_costs_nothing(tmp_path: Path) -> None:
    worker = lockstep.Worker([sys.executable, "-c", SYSTEM], tmp_path / "log", 0)
    rows = [worker.step() for _ in range(3)]
    worker.end()
    assert [row["tokens"] for row in rows] == [100, 200, 300]
    assert rows[0]["cpu"] < 0.05 < rows[1]["cpu"] < 5
    assert all(row["peak"] > 1e6 for row in rows)
    assert (tmp_path / "log").read_text().split() == ["library", "output", "saved", "3"]


def test_a_failed_system_raises_with_its_last_line(tmp_path: Path) -> None:
    worker = lockstep.Worker([sys.executable, "-c", SYSTEM + "1 / 0"], tmp_path / "log", 0)
    worker.step()
    with pytest.raises(lockstep.SystemFailed, match="ZeroDivisionError"):
        worker.end()
    with pytest.raises(lockstep.SystemFailed, match="cannot load"):
        lockstep.Worker(
            [sys.executable, "-c", "raise SystemExit('cannot load')"], tmp_path / "log", 0
        )


def test_padded_and_truncated_positions_have_no_label() -> None:
    ids, mask, labels = job.pad([[1, 2, 3, 9], [4, 9]], 3, 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[1, 2, 3], [4, 9, -100]]


def test_speeds_are_compared_by_rounds_and_losses_by_documents() -> None:
    # Every other round the machine is half as fast for both systems.
    gristmill, peer = (
        {"steps": [{"round": n, "tokens": 60, "cpu": cpu * (1 + n % 2)} for n in range(9)]}
        for cpu in (1, 2)
    )
    assert training_tables.speed_ratio(gristmill, peer) == pytest.approx((2, 2, 2))
    tokens = [10, 30, 20]
    scores = [{"nats": [n * rate for n in tokens], "tokens": tokens} for rate in (2.0, 2.5)]
    assert training_tables.loss_difference(*scores) == pytest.approx((-0.5, -0.5, -0.5))


@pytest.mark.parametrize(("seen", "cells"), [(400, ("0.0%", "yes")), (396, ("1.0%", "**no**"))])
def test_lost_tokens_miss_a_goal(seen: int, cells: tuple[str, str]) -> None:
    step = {"round": 0, "tokens": 60, "cpu": 1.0, "bare": 1.0, "peak": 1e6, "seen": seen}
    gristmill = {"name": "gristmill", "title": "Gristmill", "failure": "", "steps": [step, step]}
    results = {"systems": [gristmill], "lengths": [100, 300], "slots": [4, 512, 2, 1024]}
    (goal,) = [row for row in training_tables.goals(results) if "truncation" in row[0]]
    assert goal[2:] == cells


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("bench.data", ("--quick", "--peers", "--grow")),
        ("bench.train", ("--quick", "--peers", "--tokens")),
        ("bench.scoring", ("--quick", "--documents")),
        ("bench.sealing", ("--documents",)),
        ("bench.overlap", ("--tokens", "--held", "--footer")),
        ("bench.training_fault_storm", ("--model", "--ranks", "--kills", "--seed")),
    ],
)
def test_help_lists_the_options(module: str, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=text.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
