"""What tests of runs share: a small corpus, small settings, stages run in this process."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import zstandard

from pipeline.config import Config
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.dag import STEPS, Node, find
from tests.helpers import tiny

Mount = Callable[[Path, str], Path]


def write_corpus(path: Path, documents: int = 120, seed: int = 0, frames: int = 1) -> Path:
    """A Pile-shaped `.jsonl.zst` of shuffled sentences; the same arguments give the same bytes."""
    chance = random.Random(seed)
    sentences = tiny.PARAGRAPH.replace("\n", " ").split(". ")
    lines = []
    for number in range(documents):
        text = ". ".join(chance.choices(sentences, k=chance.randint(1, 12)))
        lines.append(json.dumps({"text": f"{number}: {text}", "meta": {"id": number}}))
    size = -(-len(lines) // frames)
    with path.open("wb") as file:
        for start in range(0, len(lines), size):
            block = "\n".join(lines[start : start + size]) + "\n"
            file.write(zstandard.compress(block.encode(), 3))
    return path


SMALL = [
    "decompress.chunk_bytes=20000",
    "decompress.tasks=1",
    "tokenize.validation=0.1",
    "tokenize.test=0.1",
    "train.steps=6",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.sequence_length=64",
    "train.validate_every=3",
    "train.checkpoint_every=2",
    "train.validation_documents=4",
    "train.sample_tokens=8",
    "train.lr=5e-3",
    "evaluate.max_documents=40",
    "evaluate.prompts=1",
    "evaluate.new_tokens=4",
    "evaluate.prompt_tokens=8",
    "evaluate.context=128",
    "evaluate.resamples=200",
]


def advance(
    config: Config, root: Path, until: str, stop: Stop | None = None, but: Collection[str] = ()
) -> Node:
    """Run every step up to and with `until`, without `but`, in this process."""
    for step in STEPS:
        if step.name in but:
            continue
        node = find(config, root, step.name)
        assert node.items is not None
        for item in node.items:
            run_item(node.work, item, Context(stop=stop or Stop(), log=lambda text: None))
        if step.name == until:
            break
    return find(config, root, until)


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of a refusal."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


class StopAfterChecks(Stop):
    """Requests a stop after `left` checks."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.set("a test")
        super().check()
