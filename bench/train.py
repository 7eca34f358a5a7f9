"""Training beside the peers: speed, padding, loss of text, memory, and what was learned.

    make bench-train [ARGS="--quick --peers=none"]

All systems train the same adapters on the same base and documents, on one core; one optimizer step
of each in turn (`bench/lockstep.py`), until each has learned from as many real tokens. The first step
of each is not timed. Then the student project's two logged configurations, scaled down.
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
from bench.data import DATA, README, RESULTS, say
from bench.job import Job
from bench.lockstep import Failed, Worker

ENVIRONMENT = "trl"


@dataclass
class System:
    """A system as it runs. `words`: its command before the job; `rows`: what each turn brought."""

    name: str
    title: str
    words: list[str]
    job: Job
    why: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def start(self, folder: Path, core: int) -> Worker | None:
        """Load it; None, and `why`, if that fails."""
        home = folder / self.name
        home.mkdir()
        job = replace(self.job, out=str(home / "adapter"))
        words = [*self.words, str(job.write(home / "job.json"))]
        say(f"loading {self.title} {self.why}")
        try:
            return None if self.why else Worker(words, home / "log", core)
        except Failed as error:
            self.why = str(error)
            return None

    @property
    def tokens(self) -> int:
        """Real tokens that it has learned from."""
        return sum(row["tokens"] for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """As it is saved."""
        return {"name": self.name, "title": self.title, "why": self.why, "turns": self.rows}


def systems(base: Job, chosen: str) -> list[System]:
    """Ours, and the peers that `none`, `all`, or names with commas between stand for."""
    folder = peers.PINS
    here, beside = sys.executable, str(peers.interpreter(ENVIRONMENT))
    known = [
        ("seed", "the seed's loop, padded", here, "student.py"),
        ("trainer-padded", "HF Trainer, padded", here, "hf_trainer.py"),
        ("trainer-packed", "HF Trainer, packed", here, "hf_trainer.py"),
        ("sft", "TRL SFTTrainer, packed", beside, "sft_trainer.py"),
    ]
    names = {name for name, *_ in known}
    wanted = names if chosen == "all" else set(chosen.split(",")) - {"none"}
    if wanted - names:
        sys.exit(f"there is no peer {', '.join(wanted - names)}: {', '.join(names)}")
    found = [
        System(name, title, [python, "-P", str(folder / script)], replace(base, kind=name))
        for name, title, python, script in known
        if name in wanted
    ]
    return [*found, ours("ours", "ours", base)]


def ours(name: str, title: str, job: Job) -> System:
    """Our own training, under a job."""
    return System(
        name, title, [sys.executable, "-m", "bench.product_training"], replace(job, kind=name)
    )


def configurations(base: Job) -> list[System]:
    """The two that the student project logged, and ours with the settings of the second.

    An eighth of its batches: 32 and 128 documents are 4 and 16. LoRA in both, as in its recipe.
    """
    words = [sys.executable, "-P", str(peers.PINS / "student.py")]
    first = replace(
        base, kind="seed", weights="fp32", autocast=False, optimizer="sgd", checkpointing=False,
        windows=4, accumulate=1,
    )  # fmt: skip
    second = replace(
        base, kind="seed", weights="int8", optimizer="adamw8bit", checkpointing=True,
        windows=2, packed=1, accumulate=8,
    )  # fmt: skip
    return [
        System("A", "A: batch 4, fp32, SGD", words, first),
        System("B", "B: batch 16 in 8 parts, checkpointing, AdamW, 8 bit", words, second),
        ours("ours-B", "ours with the settings of B", second),
    ]


def interleave(running: list[System], folder: Path, core: int, enough: int, least: int) -> None:
    """A turn of each, in an order that goes round, until each has `enough` tokens.

    Args:
        running: The systems.
        folder: For logs and adapters.
        core: The one core.
        enough: Real tokens after which a system ends.
        least: Turns that it takes at least.
    """
    loaded = [(system, system.start(folder, core)) for system in running]
    workers = [(system, worker) for system, worker in loaded if worker]
    number = 0
    while workers:
        for system, worker in list(workers):
            try:
                system.rows.append({**worker.turn(), "round": number})
                row = system.rows[-1]
                say(
                    f"{number + 1} {system.title}: {system.tokens:,} tokens, "
                    f"{row['tokens'] / row['cpu']:.1f} a CPU second, loss {row['loss']:.3f}"
                )
                if system.tokens >= enough and len(system.rows) >= least:
                    worker.end()
                    workers.remove((system, worker))
            except Failed as error:
                system.why = str(error)
                worker.kill()
                workers.remove((system, worker))
        workers = workers[1:] + workers[:1]
        number += 1


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything and return what was found, as it is saved."""
    say("laying the ground")
    laid = setup.lay(DATA, options.mb, options.quick)
    base = Job(
        kind="", model=str(laid.model), documents=str(laid.train), out="", root=str(laid.root),
        dataset=str(laid.dataset), base=laid.base,
    )  # fmt: skip
    all_systems, logged = systems(base, options.peers), configurations(base)
    why = peers.build(ENVIRONMENT, beside=True) if options.peers != "none" else ""
    for system in all_systems:
        system.why = why if system.name == "sft" else ""
    core = sorted(os.sched_getaffinity(0))[0]
    interleave(all_systems, folder, core, options.tokens, 3)
    for system in logged:
        say(f"the logged configurations, {system.name}")
        interleave([system], folder, core, 0, options.turns)
    say("scoring")
    asked = (laid.model, laid.test)
    adapters = {s.name: folder / s.name / "adapter" for s in all_systems if not s.why}
    scores = {
        name: heldout_eval.ask(*asked, adapter, options.held_out, folder / f"{name}.score")
        for name, adapter in {"base": None, **adapters}.items()
    }
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": table.machine(),
        "options": vars(options),
        "model": laid.base if not options.quick else "two layers",
        "slots": [base.windows, base.width, base.packed, base.length],
        "flat": base.flat,
        "checkpointing": base.checkpointing,
        "lengths": laid.lengths,
        "systems": [system.plain() for system in all_systems],
        "logged": [system.plain() for system in logged],
        "scores": scores,
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], prog="make bench-train ARGS="
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try it; not saved")
    parser.add_argument("--peers", default="all", help="none, all, or names with commas between")
    parser.add_argument("--tokens", type=int, help="real tokens that each learns from (12,000)")
    parser.add_argument("--held-out", type=int, help="tokens that are scored (8,000)")
    parser.add_argument("--turns", type=int, default=2, help="of the logged configurations (2)")
    parser.add_argument("--mb", type=float, default=2.0, help="MB of jsonl of the corpus (2)")
    options = parser.parse_args()
    for name, value in {"tokens": 12_000, "held_out": 8_000}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Do what the command line says."""
    options = arguments()
    scratch = DATA / "train-scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    found = measure(options, scratch)
    text = training_tables.tables(found)
    print(text)
    folder = DATA if options.quick else RESULTS
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(found, indent=1) + "\n")
    if not options.quick:
        README.write_text(table.replace(README.read_text(encoding="utf-8"), "train", text), "utf-8")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
