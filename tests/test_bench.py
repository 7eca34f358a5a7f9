"""The measurements measure: corpora are what they say, and no process of a tree is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import zstandard

from bench import corpora, table, text
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


def test_the_command_says_what_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.data", "--help"],
        cwd=text.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for word in ("--quick", "--peers", "--grow"):
        assert word in done.stdout
