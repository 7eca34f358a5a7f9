"""The locks pin everything, once, and agree with pyproject.toml and the conda environment."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "product": "requirements.txt",
    "dev": "requirements-dev.txt",
    "demo": "requirements-demo.txt",
}


def pins(lock: str) -> list[Requirement]:
    lines = (ROOT / "env" / LOCKS[lock]).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def wanted() -> list[tuple[str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sets = {"product": project["project"]["dependencies"], **project["dependency-groups"]}
    return [(lock, text) for lock, texts in sets.items() for text in texts]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_an_exact_pin(lock: str) -> None:
    for pin in pins(lock):
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert "*" not in specifier.version, pin
        assert "+" not in specifier.version, f"{pin} is one machine's build"


def test_every_package_is_pinned_once() -> None:
    names = [canonicalize_name(pin.name) for lock in LOCKS for pin in pins(lock)]
    assert sorted(names) == sorted(set(names))
    assert "torch" in names


@pytest.mark.parametrize(("lock", "text"), wanted())
def test_every_direct_dependency_is_locked_within_its_range(lock: str, text: str) -> None:
    requirement = Requirement(text)
    locked = {canonicalize_name(pin.name): pin for pin in pins("product") + pins(lock)}
    (specifier,) = locked[canonicalize_name(requirement.name)].specifier
    assert specifier.version in requirement.specifier


def test_the_conda_environment_holds_the_product_lock() -> None:
    environment = yaml.safe_load((ROOT / "env" / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": [str(pin) for pin in pins("product")]}
