"""The snapshot of the code in a run's folder, and the record of uncommitted changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.planning.snapshot import record_changes, source_folder, take


@pytest.mark.slow
def test_a_snapshot_is_the_code_and_reports_its_version(tmp_path: Path) -> None:
    from pipeline.core import provenance

    folder = take(tmp_path)
    assert take(tmp_path) == folder
    assert [path.name for path in (tmp_path / "code").iterdir()] == [folder.name]
    code = (
        "import jobs.running.task, pipeline\n"
        "from pipeline.core.provenance import code_version\n"
        "print(jobs.running.task.__file__, pipeline.__file__, code_version())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source_folder(),
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    version = provenance.code_version()
    assert told == [f"{folder}/jobs/running/task.py", f"{folder}/pipeline/__init__.py", version]


def test_uncommitted_changes_are_recorded_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.core import provenance

    monkeypatch.setattr(provenance, "SOURCE_ROOT", tmp_path / "tree")
    assert record_changes(tmp_path / "run") == provenance.code_version()
    assert not (tmp_path / "run" / "code").exists()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("one\n")
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    clean = record_changes(tmp_path / "run")
    assert len(clean) == 12
    (tree / "a.py").write_text("two\n")
    version = record_changes(tmp_path / "run")
    assert version.startswith(clean + "+")
    diff = (tmp_path / "run" / "code" / f"{version}.diff").read_text()
    assert "-one\n+two\n" in diff
    (tree / "mine.yaml").write_text("urls: [https://x/a.csv?token=s3cret]\n")
    diff = (tmp_path / "run" / "code" / f"{record_changes(tmp_path / 'run')}.diff").read_text()
    assert "https://x/a.csv?…]" in diff
    assert "s3cret" not in diff
