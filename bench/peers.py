"""The peers: each has its own virtual environment, built once from the pins in `peers/*.txt`."""

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
    """A system to compare with.

    `format`: the file format it reads; conversion is not counted. `slow`: its corpus is smaller;
    its cost is known to be linear. `goal`: the ratio of our MB per CPU second to its own that we
    want to reach. `ids`: a glob for its files of ids, relative to its output folder.
    """

    name: str
    title: str
    pins: str
    format: str
    slow: bool
    goal: float | None
    ids: str
    note: str = ""

    @property
    def python(self) -> Path:
        """Its Python interpreter."""
        return interpreter(self.pins)

    def command(self, source: Path, out: Path, tokenizer: Path, workers: int) -> list[str]:
        """The command that tokenizes a corpus with this peer."""
        script = PINS / f"{self.name}.py"
        return [str(self.python), "-P", *map(str, (script, source, out, tokenizer, workers))]


PEERS = (
    Peer("datatrove", "datatrove 0.10.1", "datatrove", "zst", True, 35, "ids/*.ds"),
    Peer("dolma", "dolma 1.2.1", "dolma", "gz", True, 35, "ids/*.npy"),
    Peer(
        "datasets", "datasets 5.2.0 map", "datasets", "zst", True, 35, "",
        "pads and truncates to 512 tokens, so most of law is never written",
    ),
    Peer(
        "megatron", "Megatron (core 0.16.1)", "megatron", "jsonl", True, None, "ids/*.bin",
        "PyPI has no preprocess_data.py; measured with a minimal driver of IndexedDatasetBuilder",
    ),
    Peer(
        "megatron_fast", "Megatron fast path", "megatron", "jsonl", False, 2, "ids/*.bin",
        "PyPI has no preprocess_data_fast.py; measured with gigatoken 0.10.0 and "
        "IndexedDatasetBuilder, used like in that script; corpus and ids in memory",
    ),
)  # fmt: skip


def select(names: str) -> list[Peer]:
    """The peers for `none`, `all`, or a comma-separated list of names."""
    if names in ("none", "all"):
        return list(PEERS) if names == "all" else []
    known = {peer.name: peer for peer in PEERS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        sys.exit(f"unknown peer {', '.join(unknown)}; the peers are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def interpreter(name: str) -> Path:
    """The Python interpreter of an environment."""
    return ENVIRONMENTS / name / "bin" / "python"


def build(name: str, *, share_packages: bool = False) -> str:
    """Build the environment of `peers/NAME.txt`, unless it exists.

    Args:
        name: Name of the list of pins and of the environment.
        share_packages: Let the environment also import this interpreter's packages, after its own.
            For a peer that is a layer over torch and transformers: both sides then use the same
            versions, and torch is not installed twice.

    Returns:
        Why the build failed; "" on success.
    """
    pins, folder = PINS / f"{name}.txt", ENVIRONMENTS / name
    installed, log = folder / "pins.txt", ENVIRONMENTS / f"{name}.log"
    if installed.exists() and installed.read_bytes() == pins.read_bytes():
        return ""
    print(
        f"building bench/.envs/{name} (pip's output: bench/.envs/{name}.log)",
        file=sys.stderr,
        flush=True,
    )
    ENVIRONMENTS.mkdir(exist_ok=True)
    # The lists are complete, so pip need not resolve, which takes many minutes for some of them.
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(interpreter(name)), "-m", "pip", "install", "--no-deps", "-r", str(pins)],
    ]
    with log.open("w") as file:
        for step in steps:
            if subprocess.run(step, stdout=file, stderr=subprocess.STDOUT).returncode:
                errors = [line for line in log.read_text().splitlines() if "ERROR" in line.upper()]
                return (errors or [f"see {log}"])[-1][:200]
    if share_packages:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    installed.write_bytes(pins.read_bytes())
    return ""
