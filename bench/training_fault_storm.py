"""A training in a queue that leaves it no peace, by one rank and by two, beside one left alone.

    python -m bench.training_fault_storm [--model MODEL] [--ranks 1,2] [--steps 600] [--kills 20]
                                   [--every 12] [--seed 0]

On the test cluster (tests/cluster/up.sh, started and stopped here unless it is up already) the
default recipe (8-bit weights, LoRA with dropout, checkpointing, accumulation) is trained twice for
each number of ranks, which are as many nodes: undisturbed, and struck at random (bench/fault_injection.py)
by SIGKILLs to one of its processes, signals that announce a time limit, and preemptions. What has
failed is submitted again. The model is one of two layers, unless another is named.

Exit code 1 if the two do not end in the same bytes, if any step had another loss, or if fewer
strikes fell than were asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from bench import corpora, fault_injection, setup
from bench.fault_injection import Storm, Strike
from bench.fault_storm import DATA, NAME, Way, running_cluster, say, table
from pipeline.core.receipt import load
from pipeline.dag import find
from pipeline.train.metrics_log import METRICS
from tests.cluster.fixture import Cluster

MB = 2.0
TIMEOUT = 7200.0
WORDS = (
    "train.sequence_length=128", "train.batch_size=4", "train.micro_batch_size=1", "train.checkpoint_every=50",
    "train.validate_every=200", "train.validation_documents=4", "train.validation_tokens=2000",
    "train.sample_tokens=8", "train.lr=1e-3", "train.lora_dropout=0.1",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a training ended in, and how often steps were taken again.

    `learned`: sha256 of the weights. `rows`: loss, gradient norm and rate of each step, and the
    loss of each validation, by kind and step; a set of more than one where they differed.
    """

    learned: str
    rows: dict[tuple[str, int], set[tuple[float, ...]]]
    repeated: int

    def same(self, other: Outcome) -> bool:
        """Whether both went the same way to the same end."""
        sure = all(len(values) == 1 for values in self.rows.values())
        return sure and (self.learned, self.rows) == (other.learned, other.rows)


class Training:
    """A way whose data is ready, and its training in the queue."""

    def __init__(self, ready: Way, way: Way, ranks: int) -> None:
        self.way, self.folder = way, find(way.config, way.root, "train.train").work.folder
        # a unit is never changed, so that links do
        for name in ("data", "models"):
            shutil.copytree(ready.root / name, way.root / name, copy_function=os.link)
        self.profile = way.root.with_suffix(".yaml")
        train = {"partition": "low", "mem": "6000M", "nodes": ranks}
        jobs = {"train": train, "evaluate": {"sbatch": {"hold": True}}}
        self.profile.write_text(yaml.safe_dump({"extends": "gristmill-test", "jobs": jobs}))

    def over(self) -> bool:
        """Whether it has ended."""
        return load(self.folder / "best") is not None

    def run(self, cluster: Cluster, drawn: list[Strike], seed: int) -> tuple[Storm, float]:
        """To its end; gives what was done to it, and seconds."""
        logs = self.way.root / "runs" / NAME / "logs"
        submit = partial(self.way.submit, self.profile)
        storm = Storm(
            cluster, fault_injection.TRAINING, logs, submit, drawn, seed, say, self._steps
        )
        try:
            return storm, storm.blow(self.over, TIMEOUT)
        finally:
            cluster.cancel_all()

    def _steps(self) -> int:
        """What grows with every step: strikes are to meet these, and not only its start."""
        path = self.folder / METRICS
        return path.stat().st_size if path.exists() else 0

    def outcome(self) -> Outcome:
        """What it ended in."""
        receipt = load(self.folder / "best")
        assert receipt is not None
        (learned,) = [o.sha256 for n, o in receipt.outputs.items() if n.endswith(".safetensors")]
        return Outcome(learned, *read(self.folder / METRICS))


def read(path: Path) -> tuple[dict[tuple[str, int], set[tuple[float, ...]]], int]:
    """Rows of a training's metrics as `Outcome` has them, and how many steps came again."""
    rows: dict[tuple[str, int], set[tuple[float, ...]]] = {}
    taken: Counter[int] = Counter()
    for line in path.read_text().splitlines():
        if not line.endswith("}"):
            continue  # torn by a kill
        row: dict[str, Any] = json.loads(line)
        values = tuple(row[name] for name in ("loss", "grad_norm", "lr") if name in row)
        if row["kind"] in ("step", "validation"):
            rows.setdefault((row["kind"], row["step"]), set()).add(values)
            taken[row["step"]] += row["kind"] == "step"
    return rows, sum(count - 1 for count in taken.values() if count)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help="an id or a folder; else one of two layers")
    parser.add_argument("--ranks", default="1,2", help="one after another")
    parser.add_argument("--steps", type=int, default=600)
    fault_injection.add_options(parser, 12.0)
    return parser.parse_args()


def main() -> None:
    """Run them and print what they came to."""
    chosen = arguments()
    folder = DATA / "training-storm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corpus = corpora.make("nih", MB, DATA, cache(lambda: corpora.cached(DATA)))
    dataset = folder / "stormy.yaml"
    url = corpus.packed.resolve().as_uri()
    dataset.write_text(yaml.safe_dump({"urls": [url], "id_field": "meta.id"}))
    words = [*WORDS, f"train.steps={chosen.steps}"]
    base = chosen.model or setup.tiny(DATA)

    def way(name: str) -> Way:
        return Way(folder / name, dataset, base, words)

    say("making the data ready")
    way("ready").calm()
    rows = [("ranks", "", *fault_injection.TRAINING.kinds, "restarts", "submits", "steps again", "wall",
             "last validation", "adapter")]  # fmt: skip
    differ = missing = 0
    with running_cluster() as cluster:
        for ranks in map(int, chosen.ranks.split(",")):
            found = compare(chosen, cluster, way, ranks)
            rows += found[0]
            differ += not found[1]
            missing += found[2]
    print(table(rows))
    print(f"\n{chosen.model or 'two layers'}, {chosen.steps} steps, seed {chosen.seed}: ", end="")
    print(f"{differ} DIFFER" if differ else "losses of all steps and all bytes equal")
    if missing:
        print(f"{missing} STRIKES LEFT OVER: use more --steps, or a smaller --every")
    if differ or missing:
        sys.exit(1)
    shutil.rmtree(folder)


def compare(
    chosen: argparse.Namespace, cluster: Cluster, way: Callable[[str], Way], ranks: int
) -> tuple[list[tuple[str, ...]], bool, int]:
    """Train undisturbed and struck.

    Returns:
        A row of each, whether they came to the same, and how many strikes were left over.
    """
    rows, outcomes, missing = [], [], 0
    for name in ("undisturbed", "struck"):
        say(f"{ranks} ranks, {name}")
        kills = chosen.kills if name == "struck" else 0
        drawn = fault_injection.draw(fault_injection.TRAINING, kills, chosen.every, chosen.seed)
        training = Training(way("ready"), way(f"{ranks}-{name}"), ranks)
        storm, seconds = training.run(cluster, drawn, chosen.seed)
        outcome = training.outcome()
        outcomes.append(outcome)
        counts = [*storm.kinds().values(), storm.restarts(), storm.submits, outcome.repeated]
        last = max(step for kind, step in outcome.rows if kind == "validation")
        ((loss,),) = outcome.rows["validation", last]
        rows.append((
            str(ranks), name, *map(str, counts), f"{seconds:.0f} s", f"{loss:.6f}",
            outcome.learned[:12],
        ))  # fmt: skip
        missing += len(storm.left)
    return rows, outcomes[1].same(outcomes[0]), missing


if __name__ == "__main__":
    main()
