"""`make` passes on its variables exactly as typed, and reports mistakes."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jobs.cli.run_selection import Selection

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "-a b'c\"é $HOME $(id) `id` \\"
# Stands in for Python: claims that every package is installed, and records its arguments.
RECORDER = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf '%s\\0' "$@" >"$0.argv"
env >"$0.env"
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a $place"
    folder.mkdir()
    script = folder / "python"
    script.write_text(RECORDER)
    script.chmod(0o755)
    return script


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {"MAKEFLAGS", "MAKELEVEL", "PROFILE", "PYTHON", "RUNS", "TORCH"}
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        ["make", *words],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def argv(recorder: Path, *words: str, **environment: str) -> list[str]:
    done = make(*words, PYTHON=str(recorder), **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
    return Path(f"{recorder}.argv").read_text().split("\0")[:-1]


def targets() -> list[str]:
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    return phony.split()


def test_help_describes_every_target() -> None:
    told = re.findall(r"^make (\S+) +\S", make().stdout, re.MULTILINE)
    assert told == targets()


def test_values_arrive_exactly_as_typed(recorder: Path) -> None:
    values = {"dataset": "nih", "model": HOSTILE, "name": HOSTILE, "file": f"/a/{HOSTILE}.zst"}
    typed = [f"{flag.upper()}={value}" for flag, value in values.items()]
    expected = [f"--{flag}={value}" for flag, value in values.items()]
    assert argv(recorder, "pipeline", *typed) == ["-m", "jobs", "submit", *expected]


def test_args_are_only_split_at_spaces(recorder: Path) -> None:
    words = argv(recorder, "plan", "DATASET=law", "RUNS=/tmp/my runs", "ARGS=a=[1,2]  * --json;x")
    expected = ["--dataset=law", "--root=/tmp/my runs", "a=[1,2]", "*", "--json;x"]
    assert words == ["-m", "jobs", "plan", *expected]


@pytest.mark.parametrize("target", ["status", "logs", "cancel", "report", "export", "clean"])
def test_commands_about_a_run_pass_its_name(recorder: Path, target: str) -> None:
    words = argv(recorder, target, "DATASET=nih", "NAME=try2")
    assert words == ["-m", "jobs", target, "--dataset=nih", "--name=try2"]


def test_the_resume_command_selects_the_same_run(recorder: Path) -> None:
    flags = {"dataset": f"{HOSTILE}.yaml", "model": HOSTILE, "recipe": "lora", "profile": HOSTILE}
    flags |= {"name": HOSTILE, "file": f"/a/{HOSTILE}.zst", "root": "/tmp/my runs"}
    words = ["train.lora_targets=[q_proj,v_proj]", "dataset.about=it's$#1"]
    line = shlex.split(Selection(**flags, words=words).make_command())
    assert line[:2] == ["make", "pipeline"]
    expected = [f"--{flag}={value}" for flag, value in flags.items()]
    assert sorted(argv(recorder, *line[1:])) == sorted(["-m", "jobs", "submit", *expected, *words])


def test_cancel_needs_a_run(recorder: Path) -> None:
    assert argv(recorder, "cancel", "NAME=try2") == ["-m", "jobs", "cancel", "--name=try2"]
    assert "name a run, e.g. make cancel DATASET=nih" in make("cancel").stderr


def test_export_takes_a_folder(recorder: Path) -> None:
    words = argv(recorder, "export", "DATASET=nih", "ARGS=--to=/models/nih")
    assert words == ["-m", "jobs", "export", "--dataset=nih", "--to=/models/nih"]


def test_compare_takes_names_as_typed(recorder: Path) -> None:
    words = argv(recorder, "compare", "NAMES=-a nih+train.lr=3e-4 $(id) it's", "RUNS=/my runs")
    names = ["-a", "nih+train.lr=3e-4", "$(id)", "it's"]
    assert words == ["-m", "jobs", "compare", "--root=/my runs", "--", *names]
    assert 'make compare NAMES="nih try2"' in make("compare").stderr


def test_demo_is_a_local_run(recorder: Path) -> None:
    flags = ["--dataset=demo", "--model=smollm2-135m", "--recipe=demo", "--profile=local"]
    words = argv(recorder, "demo", "ARGS=train.tokens=10k")
    assert words == ["-m", "jobs", "submit", *flags, "train.tokens=10k"]


def test_only_the_profile_comes_from_the_environment(recorder: Path) -> None:
    words = argv(recorder, "plan", "DATASET=nih", NAME="host", FILE="/x", PROFILE="greene")
    assert words == ["-m", "jobs", "plan", "--dataset=nih", "--profile=greene"]


def test_variables_are_not_exported_to_the_command(recorder: Path) -> None:
    argv(recorder, "plan", "DATASET=nih", "NAME=try2", "ARGS=a=1")
    names = {line.partition("=")[0] for line in Path(f"{recorder}.env").read_text().splitlines()}
    assert not names & {"DATASET", "NAME", "ARGS", "MAKEFLAGS"}


@pytest.mark.parametrize("target", ["status", "logs", "report"])
def test_the_newest_run_needs_no_name(recorder: Path, target: str) -> None:
    assert argv(recorder, target) == ["-m", "jobs", target]


def test_a_misspelt_variable_is_reported() -> None:
    done = make("plan", "DATASET=nih", "RECIP=demo")
    assert done.returncode == 2
    assert "unknown variable RECIP=;" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("target", ["pipeline", "plan", "cancel", "clean"])
def test_a_missing_dataset_is_reported_in_one_line(target: str) -> None:
    done = make(target)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"make {target} DATASET=nih" in done.stderr


def test_missing_packages_are_reported_in_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\ncase "$*" in *find_spec*) exit 1 ;; esac\n')
    bare.chmod(0o755)
    done = make("status", "DATASET=nih", PYTHON=str(bare))
    assert done.returncode == 2
    said = done.stderr.splitlines()[0]
    assert said == (
        f"gristmill: {bare} lacks packages: {bare} -m pip install -r env/requirements.txt"
    )


def test_an_old_interpreter_is_reported_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("status", "DATASET=nih", PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.startswith(f"gristmill: {old} is not Python 3.11 or newer")
