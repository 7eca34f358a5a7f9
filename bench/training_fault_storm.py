"""Stress-test training with random faults, on one rank and on two.

    python -m bench.training_fault_storm [--model MODEL] [--ranks 1,2] [--steps 600] [--kills 20]
                                         [--every 12] [--seed 0]

Runs on the test cluster (tests/cluster/up.sh), which is started and stopped unless it is already
running. For each number of ranks, with one node per rank, the default recipe (8-bit weights, LoRA
with dropout, gradient checkpointing, gradient accumulation) is trained twice: without faults, and
with random faults (bench/fault_injection.py): SIGKILL to one of its processes, the signal before a
time limit, and preemption. Failed jobs are submitted again. The model has two layers, unless
another one is named.

The exit code is 1 if the final bytes differ, if the loss of any step differs, or if not all faults
were injected.
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

from bench import corpora, setup
from bench.fault_injection import (
    TRAINING_FAULTS,
    Fault,
    FaultInjector,
    add_options,
    sample_faults,
)
from bench.fault_storm import DATA, NAME, PipelineRun, log, running_cluster, table
from pipeline.core.receipt import load
from pipeline.dag import find
from pipeline.train.metrics_log import METRICS_FILE
from tests.cluster.fixture import Cluster

CORPUS_MB = 2.0
TIMEOUT_SECONDS = 7200.0
OVERRIDES = (
    "train.sequence_length=128", "train.batch_size=4", "train.micro_batch_size=1",
    "train.checkpoint_every=50", "train.validate_every=200", "train.validation_documents=4",
    "train.validation_tokens=2000", "train.sample_tokens=8", "train.lr=1e-3",
    "train.lora_dropout=0.1",
)  # fmt: skip

MetricRows = dict[tuple[str, int], set[tuple[float, ...]]]


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a training.

    `adapter`: sha256 of the weights. `rows`: loss, gradient norm and learning rate of each step,
    and the loss of each validation, by kind and step; more than one value if a repeated step
    differed. `repeated`: number of repeated steps.
    """

    adapter: str
    rows: MetricRows
    repeated: int

    def equals(self, other: TrainingOutcome) -> bool:
        """Whether all steps and the final weights are equal, also those of repeated steps."""
        consistent = all(len(values) == 1 for values in self.rows.values())
        return consistent and (self.adapter, self.rows) == (other.adapter, other.rows)


class Training:
    """A training in the queue, of a run whose data is ready."""

    def __init__(self, ready: PipelineRun, run: PipelineRun, ranks: int) -> None:
        self.run, self.folder = run, find(run.config, run.root, "train.train").work.folder
        # Committed units never change, so hard links are enough.
        for name in ("data", "models"):
            shutil.copytree(ready.root / name, run.root / name, copy_function=os.link)
        self.profile = run.root.with_suffix(".yaml")
        train = {"partition": "low", "mem": "6000M", "nodes": ranks}
        jobs = {"train": train, "evaluate": {"sbatch": {"hold": True}}}
        self.profile.write_text(yaml.safe_dump({"extends": "gristmill-test", "jobs": jobs}))

    def is_done(self) -> bool:
        """Whether training has published its best adapter."""
        return load(self.folder / "best") is not None

    def train(
        self, cluster: Cluster, faults: list[Fault], seed: int
    ) -> tuple[FaultInjector, float]:
        """Train to the end; returns the injector and the wall seconds."""
        logs = self.run.root / "runs" / NAME / "logs"
        submit = partial(self.run.submit, self.profile)
        injector = FaultInjector(
            cluster, TRAINING_FAULTS, logs, submit, faults, seed, log, self._metrics_bytes
        )
        try:
            return injector, injector.run(self.is_done, TIMEOUT_SECONDS)
        finally:
            cluster.cancel_all()

    def _metrics_bytes(self) -> int:
        """Size of the metrics file, which grows with every step: faults should hit steps."""
        path = self.folder / METRICS_FILE
        return path.stat().st_size if path.exists() else 0

    def outcome(self) -> TrainingOutcome:
        """The result of the finished training."""
        receipt = load(self.folder / "best")
        assert receipt is not None
        (adapter,) = [o.sha256 for n, o in receipt.outputs.items() if n.endswith(".safetensors")]
        return TrainingOutcome(adapter, *read_metrics(self.folder / METRICS_FILE))


def read_metrics(path: Path) -> tuple[MetricRows, int]:
    """The rows of a metrics file as in `TrainingOutcome`, and the number of repeated steps."""
    rows: MetricRows = {}
    count_by_step: Counter[int] = Counter()
    for line in path.read_text().splitlines():
        if not line.endswith("}"):
            continue  # torn by a kill
        row: dict[str, Any] = json.loads(line)
        values = tuple(row[name] for name in ("loss", "grad_norm", "lr") if name in row)
        if row["kind"] in ("step", "validation"):
            rows.setdefault((row["kind"], row["step"]), set()).add(values)
            count_by_step[row["step"]] += row["kind"] == "step"
    return rows, sum(count - 1 for count in count_by_step.values() if count)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help="model id or folder (default: two layers)")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, comma-separated")
    parser.add_argument("--steps", type=int, default=600)
    add_options(parser, 12.0)
    return parser.parse_args()


def main() -> None:
    """Train with and without faults, and print the comparison."""
    options = parse_arguments()
    folder = DATA / "training-fault-storm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corpus = corpora.make("nih", CORPUS_MB, DATA, cache(lambda: corpora.cached(DATA)))
    dataset = folder / "stormy.yaml"
    url = corpus.packed.resolve().as_uri()
    dataset.write_text(yaml.safe_dump({"urls": [url], "id_field": "meta.id"}))
    overrides = [*OVERRIDES, f"train.steps={options.steps}"]
    base = options.model or setup.tiny_llama(DATA)

    def make_run(name: str) -> PipelineRun:
        return PipelineRun(folder / name, dataset, base, overrides)

    log("preparing the data")
    make_run("ready").run_local()
    rows = [("ranks", "", *TRAINING_FAULTS.kinds, "restarts", "submits", "repeated steps", "wall",
             "last validation", "adapter")]  # fmt: skip
    different = missing = 0
    with running_cluster() as cluster:
        for ranks in map(int, options.ranks.split(",")):
            new_rows, equal, pending = compare(options, cluster, make_run, ranks)
            rows += new_rows
            different += not equal
            missing += pending
    print(table(rows))
    print(
        f"\n{options.model or 'two layers'}, {options.steps} steps, seed {options.seed}: ", end=""
    )
    print(f"{different} DIFFERENT" if different else "losses of all steps and all bytes are equal")
    if missing:
        print(f"{missing} FAULTS NOT INJECTED: use more --steps or a smaller --every")
    if different or missing:
        sys.exit(1)
    shutil.rmtree(folder)


def compare(
    options: argparse.Namespace,
    cluster: Cluster,
    make_run: Callable[[str], PipelineRun],
    ranks: int,
) -> tuple[list[tuple[str, ...]], bool, int]:
    """Train without and with faults.

    Returns:
        A table row of each, whether the results are equal, and the number of faults not injected.
    """
    rows, outcomes, missing = [], [], 0
    for name, kills in (("no faults", 0), ("with faults", options.kills)):
        log(f"{ranks} ranks, {name}")
        faults = sample_faults(TRAINING_FAULTS, kills, options.every, options.seed)
        run = make_run(f"{ranks}-{name.replace(' ', '-')}")
        training = Training(make_run("ready"), run, ranks)
        injector, seconds = training.train(cluster, faults, options.seed)
        outcome = training.outcome()
        outcomes.append(outcome)
        counts = [*injector.count_by_kind().values(), injector.restarts(), injector.submits]
        last = max(step for kind, step in outcome.rows if kind == "validation")
        ((loss,),) = outcome.rows["validation", last]
        rows.append((
            str(ranks), name, *map(str, counts), str(outcome.repeated), f"{seconds:.0f} s",
            f"{loss:.6f}", outcome.adapter[:12],
        ))  # fmt: skip
        missing += len(injector.pending)
    return rows, outcomes[1].equals(outcomes[0]), missing


if __name__ == "__main__":
    main()
