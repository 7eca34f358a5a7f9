"""Training compared with other trainers: speed, padding, lost text, memory, held-out loss.

    make bench-train [ARGS="--quick --peers=none"]

All systems train the same adapters on the same base model and documents, on one core. They take one
optimizer step each in turn (`bench/lockstep.py`), until each has trained on the same number of real
tokens. The first step of each is not timed. Then the two configurations that the student project
logged are run, scaled down.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import heldout_eval, peers, setup, table, training_tables
from bench.data import DATA, README, RESULTS, log
from bench.job import Job
from bench.lockstep import SystemFailed, Worker

TRL_ENVIRONMENT = "trl"


@dataclass
class System:
    """A training system. `command` gets the job file; `failure` says why it does not run, or ""."""

    name: str
    title: str
    command: list[str]
    job: Job
    failure: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)

    def start(self, folder: Path, core: int) -> Worker | None:
        """Load the system; None, with `failure` set, if that fails."""
        folder = folder / self.name
        folder.mkdir()
        job = replace(self.job, out=str(folder / "adapter"))
        command = [*self.command, str(job.write(folder / "job.json"))]
        log(f"loading {self.title} {self.failure}")
        try:
            return None if self.failure else Worker(command, folder / "log", core)
        except SystemFailed as error:
            self.failure = str(error)
            return None

    @property
    def tokens(self) -> int:
        """Real tokens trained on so far."""
        return sum(step["tokens"] for step in self.steps)

    def record(self) -> dict[str, Any]:
        """The system as it is saved in the results."""
        return {
            "name": self.name,
            "title": self.title,
            "failure": self.failure,
            "steps": self.steps,
        }


def systems(base: Job, selected: str) -> list[System]:
    """Gristmill and the selected peers: `none`, `all`, or a comma-separated list of names."""
    folder = peers.PINS
    python, trl_python = sys.executable, str(peers.interpreter(TRL_ENVIRONMENT))
    known = [
        ("student", "student project's loop, padded", python, "student.py"),
        ("trainer-padded", "HF Trainer, padded", python, "hf_trainer.py"),
        ("trainer-packed", "HF Trainer, packed", python, "hf_trainer.py"),
        ("sft", "TRL SFTTrainer, packed", trl_python, "sft_trainer.py"),
    ]
    names = {name for name, *_ in known}
    wanted = names if selected == "all" else set(selected.split(",")) - {"none"}
    if wanted - names:
        unknown = ", ".join(sorted(wanted - names))
        sys.exit(f"unknown peer {unknown}; the peers are {', '.join(sorted(names))}")
    selected_peers = [
        System(name, title, [interpreter, "-P", str(folder / script)], replace(base, kind=name))
        for name, title, interpreter, script in known
        if name in wanted
    ]
    return [*selected_peers, gristmill("gristmill", "Gristmill", base)]


def gristmill(name: str, title: str, job: Job) -> System:
    """Gristmill's own training, with the settings of a job."""
    command = [sys.executable, "-m", "bench.product_training"]
    return System(name, title, command, replace(job, kind=name))


def configurations(base: Job) -> list[System]:
    """The two configurations that the student project logged, and Gristmill with the second.

    Batches are an eighth of the original: 4 and 16 documents instead of 32 and 128. Both use LoRA,
    as in its recipe.
    """
    command = [sys.executable, "-P", str(peers.PINS / "student.py")]
    first = replace(
        base, kind="student", weights="fp32", autocast=False, optimizer="sgd", checkpointing=False,
        padded_windows=4, accumulate=1,
    )  # fmt: skip
    second = replace(
        base, kind="student", weights="int8", optimizer="adamw8bit", checkpointing=True,
        padded_windows=2, packed_windows=1, accumulate=8,
    )  # fmt: skip
    return [
        System("A", "A: batch 4, fp32, SGD", command, first),
        System(
            "B",
            "B: batch 16 in 8 micro-batches, checkpointing, 8-bit weights and AdamW",
            command,
            second,
        ),
        gristmill("gristmill-B", "Gristmill with the settings of B", second),
    ]


def interleave(
    running: list[System], folder: Path, core: int, min_tokens: int, min_steps: int
) -> None:
    """Let systems take one step each in turn, the first one rotating, until each has enough.

    Args:
        running: The systems.
        folder: For logs and adapters.
        core: The core to which all are bound.
        min_tokens: Real tokens after which a system ends.
        min_steps: Steps that a system takes at least.
    """
    loaded = [(system, system.start(folder, core)) for system in running]
    workers = [(system, worker) for system, worker in loaded if worker]
    round_number = 0
    while workers:
        for system, worker in list(workers):
            try:
                system.steps.append({**worker.step(), "round": round_number})
                step = system.steps[-1]
                log(
                    f"{round_number + 1} {system.title}: {system.tokens:,} tokens, "
                    f"{step['tokens'] / step['cpu']:.1f} per CPU second, loss {step['loss']:.3f}"
                )
                if system.tokens >= min_tokens and len(system.steps) >= min_steps:
                    worker.end()
                    workers.remove((system, worker))
            except SystemFailed as error:
                system.failure = str(error)
                worker.kill()
                workers.remove((system, worker))
        workers = workers[1:] + workers[:1]
        round_number += 1


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all systems and return the results as they are saved."""
    log("preparing model and corpus")
    prepared = setup.prepare(DATA, options.mb, options.quick)
    base = Job(
        kind="", model=str(prepared.model), documents=str(prepared.train), out="",
        root=str(prepared.root), dataset=str(prepared.dataset), base=prepared.base,
    )  # fmt: skip
    all_systems, logged = systems(base, options.peers), configurations(base)
    error = peers.build(TRL_ENVIRONMENT, share_packages=True) if options.peers != "none" else ""
    for system in all_systems:
        system.failure = error if system.name == "sft" else ""
    core = sorted(os.sched_getaffinity(0))[0]
    interleave(all_systems, folder, core, options.tokens, 3)
    for system in logged:
        log(f"logged configuration {system.name}")
        interleave([system], folder, core, 0, options.turns)
    log("scoring held-out documents")
    inputs = (prepared.model, prepared.test)
    adapters = {s.name: folder / s.name / "adapter" for s in all_systems if not s.failure}
    scores = {
        name: heldout_eval.evaluate(*inputs, adapter, options.held_out, folder / f"{name}.score")
        for name, adapter in {"base": None, **adapters}.items()
    }
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": table.machine(),
        "options": vars(options),
        "model": prepared.base if not options.quick else "two layers",
        "slots": [
            base.padded_windows,
            base.padded_length,
            base.packed_windows,
            base.sequence_length,
        ],
        "flat": base.flat_documents,
        "checkpointing": base.checkpointing,
        "lengths": prepared.lengths,
        "systems": [system.record() for system in all_systems],
        "logged": [system.record() for system in logged],
        "scores": scores,
    }


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], prog="make bench-train ARGS="
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short trial with a tiny model; not saved"
    )
    parser.add_argument("--peers", default="all", help="none, all, or a comma-separated list")
    parser.add_argument("--tokens", type=int, help="real tokens to train on (default 12,000)")
    parser.add_argument("--held-out", type=int, help="held-out tokens to score (default 8,000)")
    parser.add_argument(
        "--turns", type=int, default=2, help="steps of each logged configuration (default 2)"
    )
    parser.add_argument(
        "--mb", type=float, default=2.0, help="MB of jsonl of the corpus (default 2)"
    )
    options = parser.parse_args()
    for name, value in {"tokens": 12_000, "held_out": 8_000}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Run the benchmark, print its tables and save them unless --quick is given."""
    options = arguments()
    scratch = DATA / "train-scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    results = measure(options, scratch)
    text = training_tables.tables(results)
    print(text)
    folder = DATA if options.quick else RESULTS
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(results, indent=1) + "\n")
    if not options.quick:
        README.write_text(table.replace(README.read_text(encoding="utf-8"), "train", text), "utf-8")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
