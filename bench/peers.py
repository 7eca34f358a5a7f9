"""The peers: each in an environment of its own, built once from the versions in `peers/*.txt`."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PINS = FOLDER / "peers"
ENVIRONMENTS = FOLDER / ".envs"


@dataclass(frozen=True)
class Peer:
    """A system that is measured beside ours.

    `form`: what it reads, made beforehand and not counted. `slow`: its cost is known to be linear,
    and its corpus smaller. `goal`: how many times our MB per CPU second should be its own.
    `ids`: how to find what it wrote, as a glob below its output.
    """

    name: str
    title: str
    pins: str
    form: str
    slow: bool
    goal: float | None
    ids: str
    note: str = ""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return interpreter(self.pins)

    def words(self, source: Path, out: Path, tokenizer: Path, workers: int) -> list[str]:
        """The command that tokenizes a corpus."""
        script = PINS / f"{self.name}.py"
        return [str(self.python), "-P", *map(str, (script, source, out, tokenizer, workers))]


PEERS = (
    Peer("datatrove", "datatrove 0.10.1", "datatrove", "zst", True, 35, "ids/*.ds"),
    Peer("dolma", "dolma 1.2.1", "dolma", "gz", True, 35, "ids/*.npy"),
    Peer(
        "datasets", "datasets 5.2.0 map", "datasets", "zst", True, 35, "",
        "pads and cuts to 512 tokens, so most of law is never written",
    ),
    Peer(
        "megatron", "Megatron (core 0.16.1)", "megatron", "jsonl", True, None, "ids/*.bin",
        "PyPI has no preprocess_data.py: the shortest driver over its IndexedDatasetBuilder",
    ),
    Peer(
        "megatron_fast", "Megatron fast path", "megatron", "jsonl", False, 2, "ids/*.bin",
        "PyPI has no preprocess_data_fast.py: gigatoken 0.10.0 and IndexedDatasetBuilder as that "
        "uses them; corpus and ids in memory",
    ),
)  # fmt: skip


def choose(names: str) -> list[Peer]:
    """The peers that `none`, `all`, or names with commas between stand for."""
    if names in ("none", "all"):
        return list(PEERS) if names == "all" else []
    known = {peer.name: peer for peer in PEERS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        sys.exit(f"there is no peer {', '.join(unknown)}: {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def interpreter(name: str) -> Path:
    """The Python of an environment."""
    return ENVIRONMENTS / name / "bin" / "python"


def build(name: str, *, beside: bool = False) -> str:
    """Make the environment of `peers/NAME.txt` unless it is there.

    Args:
        name: Of the list and of the environment.
        beside: It sees this interpreter's packages, too, behind its own. For a peer that is a layer
            over the very versions that we use: what is compared is the layer, and torch is large.

    Returns:
        Why it cannot be had; "" if it can.
    """
    pins, home = PINS / f"{name}.txt", ENVIRONMENTS / name
    done, log = home / "pins.txt", ENVIRONMENTS / f"{name}.log"
    if done.exists() and done.read_bytes() == pins.read_bytes():
        return ""
    print(
        f"building bench/.envs/{name} (pip's output: bench/.envs/{name}.log)",
        file=sys.stderr,
        flush=True,
    )
    ENVIRONMENTS.mkdir(exist_ok=True)
    # the lists are complete: pip has nothing to resolve, which for some takes it many minutes
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(interpreter(name)), "-m", "pip", "install", "--no-deps", "-r", str(pins)],
    ]
    with log.open("w") as file:
        for step in steps:
            if subprocess.run(step, stdout=file, stderr=subprocess.STDOUT).returncode:
                errors = [line for line in log.read_text().splitlines() if "ERROR" in line.upper()]
                return (errors or ["see its log"])[-1][:200]
    if beside:
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    done.write_bytes(pins.read_bytes())
    return ""
