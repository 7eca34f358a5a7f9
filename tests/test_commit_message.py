"""The commit-msg hook accepts imperative subjects and refuses the usual mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from env.commit_message import find_problems

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "message",
    [
        "Resume a download from its part file",
        "Add a test\n\nIt was missing.\n",
        "# a comment\n\nSpeed up the seal\n# Please enter the commit message",
        "Bring back the token cache",
        "Embed figures in the page",
        "Compress chunks with zstd level 1",
        "Merge equal shards",
        'Revert "Add a test"',
        "fixup! Add a test",
        "Keep" + "x" * 68,
        "Add a test\n# ------------------------ >8 ------------------------\ndiff --git a b.\n",
        "",
    ],
)
def test_a_good_message_passes(message: str) -> None:
    assert find_problems(message) == []


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Keep" + "x" * 69, "73 characters"),
        ("Add a test.", "period"),
        ("add a test", "not capitalized"),
        ("Added a test", "imperative"),
        ("Adding a test", "imperative"),
        ("Adds a test", "imperative"),
        ("Made it faster", "imperative"),
        ("The report says more", "imperative"),
        ("WIP: packages", "verb"),
        ("Docs: add a page", "verb"),
        ("3 tests", "verb"),
        ("Add a test\nIt was missing.", "blank line"),
        ("Merge branch 'topic'", "rebased"),
        ("Merge remote-tracking branch 'origin/main'", "rebased"),
    ],
)
def test_a_bad_message_is_refused(message: str, problem: str) -> None:
    (found,) = find_problems(message)
    assert problem in found


def hook(folder: Path, message: str) -> subprocess.CompletedProcess[str]:
    path = folder / "message"
    path.write_text(message)
    command = [sys.executable, str(ROOT / "env" / "commit_message.py"), str(path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_hook_says_what_is_wrong(tmp_path: Path) -> None:
    assert hook(tmp_path, "Add a test").returncode == 0
    done = hook(tmp_path, "Added a test.")
    assert done.returncode == 1
    assert done.stderr.count("commit message: ") == 2


def test_the_hook_refuses_a_merge_whatever_its_message(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=60)
    assert hook(tmp_path, "Add a test").returncode == 0
    (tmp_path / ".git" / "MERGE_HEAD").write_text("0" * 40)
    assert "rebased" in hook(tmp_path, "Add a test").stderr


def test_pre_commit_installs_the_hook() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert config["default_install_hook_types"] == ["pre-commit", "commit-msg"]
    (entry,) = [h for r in config["repos"] for h in r["hooks"] if h["id"] == "commit-message"]
    assert entry["stages"] == ["commit-msg"]
    assert entry["entry"].split()[-1] == "env/commit_message.py"
