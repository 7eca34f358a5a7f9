"""The measurements measure: corpora are what they say, and no process of a tree is missed."""

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

from bench import corpora, fault_injection, fault_storm, job, lockstep, table, text, training_tables
from bench.immutability_check import Witness
from bench.measure import Failed, measure

# A child that is waited for, and one that outlives its parent; each takes half a second and 100 MB.
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
    found = text.harvest([Path(json.__file__).parent.parent / "email", Path(text.ROOT / "docs")])
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


def test_text_that_goes_round_and_round_gives_no_document_twice() -> None:
    source = " ".join(map(str, range(9_000)))
    taken = list(itertools.islice(corpora.documents("nih", source), 20_000))
    assert len(set(taken)) == 20_000


def test_frames_are_cut_within_lines(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(b"".join(b"%d\n" % number for number in range(3000)))
    data, frames = fault_storm.pack(plain, 5, 0).read_bytes(), []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frames.append(frame.decompress(data))
        data = frame.unused_data
    assert len(frames) == 5
    assert b"".join(frames) == plain.read_bytes()
    assert not [frame for frame in frames[:-1] if frame.endswith(b"\n")]


@pytest.mark.parametrize(
    "course", [fault_injection.TO_SEAL, fault_injection.TRAINING], ids=["data", "training"]
)
def test_a_seed_decides_what_strikes_and_when(course: fault_injection.Course) -> None:
    drawn = fault_injection.draw(course, 20, 3.0, 0)
    assert (
        drawn
        == fault_injection.draw(course, 20, 3.0, 0)
        != fault_injection.draw(course, 20, 3.0, 1)
    )
    assert all(0 <= strike.after <= 6 for strike in drawn)
    order = [list(course.steps).index(strike.step) for strike in drawn]
    assert order == sorted(order)
    assert Counter(strike.kind for strike in drawn) == course.kinds
    assert len(fault_injection.draw(course, 47, 3.0, 0)) == 47


def test_a_committed_file_that_is_written_again_is_seen(tmp_path: Path) -> None:
    unit, half_done = (tmp_path / "data" / "x" / "chunks-1" / n for n in ("chunk-0", ".tmp-1"))
    for folder in (unit, half_done):
        folder.mkdir(parents=True)
        for name in ("receipt.json", "text"):
            (folder / name).write_text("same")
    witness = Witness(tmp_path, "x")
    witness.look()
    witness.compare()
    assert not witness.rewritten
    assert witness.seen("chunks") == 1
    (unit / "new").write_text("same")
    (unit / "new").rename(unit / "text")
    witness.look()
    witness.compare()
    assert witness.rewritten == {unit / "text"}


def test_half_of_the_lines_are_escaped() -> None:
    assert b"\\u00e9" in corpora.line(0, "é")
    assert "é".encode() in corpora.line(1, "é")


def test_text_is_taken_once(source: str) -> None:
    paragraphs = source.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)


def test_grandchildren_and_orphans_are_counted() -> None:
    usage = measure([sys.executable, "-c", TREE], timeout=60)
    assert 1.0 <= usage.cpu < 5.0
    assert 100e6 < usage.process < 200e6
    assert usage.tree >= usage.process


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(Failed, match=r"ended with code 7.*why"):
        measure([sys.executable, "-c", "print('why'); raise SystemExit(7)"], timeout=60)


def test_a_table_takes_the_place_of_the_last_one() -> None:
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nz"
    assert table.replace(text, "x", "new") == text.replace("old", "new")


LEARNER = """
from bench.lockstep import Turns
turns = Turns()
print("libraries talk")
turns.begin()
steps = 1
while turns.step(100 * steps, 200 * steps, 1.5):
    sum(range(30_000_000))
    steps += 1
print("saved", steps)
"""


def test_a_system_takes_a_step_when_told_and_waiting_costs_nothing(tmp_path: Path) -> None:
    worker = lockstep.Worker([sys.executable, "-c", LEARNER], tmp_path / "log", 0)
    rows = [worker.turn() for _ in range(3)]
    worker.end()
    assert [row["tokens"] for row in rows] == [100, 200, 300]
    assert rows[0]["cpu"] < 0.05 < rows[1]["cpu"] < 5
    assert all(row["peak"] > 1e6 for row in rows)
    assert (tmp_path / "log").read_text().split() == ["libraries", "talk", "saved", "3"]


def test_a_system_that_fails_says_why(tmp_path: Path) -> None:
    worker = lockstep.Worker([sys.executable, "-c", LEARNER + "1 / 0"], tmp_path / "log", 0)
    worker.turn()
    with pytest.raises(lockstep.Failed, match="ZeroDivisionError"):
        worker.end()
    with pytest.raises(lockstep.Failed, match="no way"):
        lockstep.Worker([sys.executable, "-c", "raise SystemExit('no way')"], tmp_path / "log", 0)


def test_what_is_padded_and_cut_is_not_learned_from() -> None:
    ids, mask, labels = job.pad([[1, 2, 3, 9], [4, 9]], 3, 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[1, 2, 3], [4, 9, -100]]


def test_speeds_are_compared_by_rounds_and_losses_by_documents() -> None:
    # every other round the machine is half as fast, for both alike
    ours, theirs = (
        {"turns": [{"round": n, "tokens": 60, "cpu": cpu * (1 + n % 2)} for n in range(9)]}
        for cpu in (1, 2)
    )
    assert training_tables.interval(ours, theirs) == pytest.approx((2, 2, 2))
    tokens = [10, 30, 20]
    scores = [{"nats": [n * rate for n in tokens], "tokens": tokens} for rate in (2.0, 2.5)]
    assert training_tables.difference(*scores) == pytest.approx((-0.5, -0.5, -0.5))


@pytest.mark.parametrize(("seen", "said"), [(400, ("0.0%", "yes")), (396, ("1.0%", "**no**"))])
def test_what_ours_does_not_learn_from_is_a_goal_missed(seen: int, said: tuple[str, str]) -> None:
    turn = {"round": 0, "tokens": 60, "cpu": 1.0, "bare": 1.0, "peak": 1e6, "seen": seen}
    ours = {"name": "ours", "title": "ours", "why": "", "turns": [turn, turn]}
    found = {"systems": [ours], "lengths": [100, 300], "slots": [4, 512, 2, 1024]}
    (goal,) = [row for row in training_tables.goals(found) if "truncation" in row[0]]
    assert goal[2:] == said


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
def test_the_command_says_what_it_takes(module: str, words: tuple[str, ...]) -> None:
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
