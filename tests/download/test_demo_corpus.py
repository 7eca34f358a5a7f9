"""The demo corpus, from small test packages and from the standard library."""

from __future__ import annotations

import gc
import io
import json
import sys
import time
from pathlib import Path

import pytest
import zstandard

from pipeline.core.errors import Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.download.demo_corpus import MIN_DOCUMENT_BYTES, module_text, write_demo_corpus

PROSE = " ".join(["It is written here at length, for a module that is small is not taken."] * 4)
MODULE = f'''"""A module about things.

    It has an indented paragraph. {PROSE}
    """

def plain(x):
    """Do the plain thing."""
    def inner():
        """Not taken: inside a function."""

class Thing:
    """A thing."""

    async def turn(self):
        r"""Turn it by \\alpha."""

    def silent(self): pass

    class Part:
        """A part of the thing."""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    root = tmp_path / "path" / "grist_sample"
    (root / "inner").mkdir(parents=True)
    (root / "__init__.py").write_text(f'"""The package itself. {PROSE}"""\nraise SystemExit\n')
    (root / "things.py").write_text(MODULE)
    (root / "inner" / "zz.py").write_bytes(
        f'# coding: latin-1\n"""Née: {PROSE}"""'.encode("latin-1")
    )
    (root / "small.py").write_text('"""Too small."""\n')
    (root / "broken.py").write_text(f'"""{PROSE}"""\ndef (:\n')
    (root / "sparse.py").write_text(f'"""{PROSE}"""\n' + "x = 1\n" * 2000)
    (root / "surrogate.py").write_text(f'"""\\ud800 {PROSE}"""\n')
    (root / "not-a-module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(root.parent))
    return "grist_sample"


def read(part: Path) -> list[dict]:
    with zstandard.ZstdDecompressor().stream_reader(part.read_bytes()) as reader:
        return [json.loads(line) for line in io.TextIOWrapper(reader, encoding="utf-8")]


def take(packages: list[str], part: Path, limit: int | None = None):
    return write_demo_corpus(packages, part, Stop(), lambda done, total: None, limit)


def test_documents(package: str, tmp_path: Path) -> None:
    part = tmp_path / "part"
    fetched = take([package], part)
    documents = {d["meta"]["module"]: d for d in read(part)}
    names = [
        "grist_sample",
        "grist_sample.inner.zz",
        "grist_sample.surrogate",
        "grist_sample.things",
    ]
    assert list(documents) == names
    assert documents[names[1]]["text"].startswith("grist_sample.inner.zz\nNée: It is")
    assert documents[names[2]]["text"].startswith("grist_sample.surrogate\n? It is")
    assert documents[names[3]] == {
        "text": "\n\n".join(
            [
                "grist_sample.things\nA module about things.",
                f"It has an indented paragraph. {PROSE}",
                "plain\nDo the plain thing.",
                "Thing\nA thing.",
                "Thing.turn\nTurn it by \\alpha.",
                "Thing.Part\nA part of the thing.",
            ]
        ),
        "meta": {"module": "grist_sample.things", "package": "grist_sample"},
    }
    assert fetched.url == "docstrings://grist_sample"
    assert fetched.size == part.stat().st_size
    assert package not in sys.modules


def test_same_bytes_each_time(package: str, tmp_path: Path) -> None:
    one, two = take([package], tmp_path / "1"), take([package], tmp_path / "2")
    assert one.sha256 == two.sha256
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert gc.isenabled()


def test_a_limit_selects_some_of_the_modules(package: str, tmp_path: Path) -> None:
    everything = {d["meta"]["module"]: d for d in take_all(package, tmp_path / "1", None)}
    some = take_all(package, tmp_path / "2", 700)
    assert 0 < len(some) < len(everything)
    assert sum(len(d["text"].encode()) for d in some) <= 700
    assert all(everything[d["meta"]["module"]] == d for d in some)
    with pytest.raises(UserError, match="no docstrings in grist_sample within 10 bytes"):
        take([package], tmp_path / "3", 10)


def take_all(package: str, part: Path, limit: int | None) -> list[dict]:
    take([package], part, limit)
    return read(part)


def test_unknown_package(tmp_path: Path) -> None:
    for name in ("no_such_package", "os.path", "../x"):
        with pytest.raises(UserError, match=r"not installed\. Install it with: pip install"):
            take([name], tmp_path / "part")


def test_stop(package: str, tmp_path: Path) -> None:
    stop = Stop()
    stop.set("received SIGUSR2")
    with pytest.raises(Interrupted):
        write_demo_corpus([package], tmp_path / "part", stop, lambda done, total: None)
    assert gc.isenabled()


@pytest.mark.slow
def test_standard_library(tmp_path: Path) -> None:
    began = time.process_time()
    take(["stdlib"], tmp_path / "part", 200_000)
    documents = read(tmp_path / "part")
    assert time.process_time() - began < 10
    modules = [d["meta"]["module"] for d in documents]
    assert modules == sorted(set(modules))
    assert not [m for m in modules if m.startswith(("test.", "idlelib", "site"))]
    assert sum(len(d["text"].encode()) for d in documents) > 100_000
    assert min(len(d["text"].encode()) for d in documents) >= MIN_DOCUMENT_BYTES


def test_files_without_docstrings_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast.parse", lambda source: pytest.fail("parsed"))
    assert module_text("a", b"x = 1\n" * 1000) == ""
