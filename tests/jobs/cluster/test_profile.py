"""Profiles: the facts of a site in YAML, validated before anything is queued."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster import profile as profiles
from jobs.cluster.profile import PROFILES, Profile, find_profile, find_root
from jobs.core.environment import TASK_ENVIRONMENT
from pipeline.core.errors import UserError

Write = Callable[..., str]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a profile's file; returns its path."""

    def make(name: str = "site", **values: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return make


@pytest.mark.parametrize("name", [path.stem for path in PROFILES.glob("*.yaml")])
def test_every_profile_is_valid(name: str) -> None:
    profile = find_profile(name)
    assert profile.about
    for step in ("download.corpus", "tokenize.shards", "train.train", "evaluate.report"):
        assert profile.resources(step).time > 10


def test_the_more_specific_entry_wins_field_by_field(write: Write) -> None:
    jobs = {
        "default": {"partition": "cpu", "mem": "1G"},
        "evaluate": {"mem": "9G", "gpus": 1},
        "evaluate.report": {"gpus": 0},
    }
    profile = find_profile(write(jobs=jobs))
    report, tuned = profile.resources("evaluate.report"), profile.resources("evaluate.tuned")
    assert (report.partition, report.mem, report.gpus) == ("cpu", "9G", 0)
    assert (tuned.mem, tuned.gpus) == ("9G", 1)
    assert profile.resources("download.model").mem == "1G"


def test_the_example_site_asks_for_its_resources() -> None:
    profile = find_profile("greene")
    train = profile.resources("train.train")
    assert (train.partition, train.gres, train.gpus) == ("rtx8000", "gpu:rtx8000:1", 0)
    assert (train.mem, train.mem_per_cpu, train.time) == (None, "16G", 47 * 60 + 55)
    assert (train.account, train.setup) == ("pr_000_general", ("module purge",))
    assert train.granted_gpus == profile.granted_gpus() == 1
    assert profile.resources("download.corpus").where == "login"
    assert profile.resources("evaluate.report").granted_gpus == 0


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu", 1), ("gpu:2", 2), ("gpu:a100", 1), ("gpu:a100:4", 4), ("lustre:1,gpu:v100:2", 2)],
)
def test_gpus_are_counted_in_gres(gres: str, count: int) -> None:
    assert profiles.Resources(gres=gres).granted_gpus == count


def test_only_training_may_have_several_tasks_one_for_each_gpu(write: Write) -> None:
    wide = {"nodes": 2, "tasks_per_node": 4, "gres": "gpu:a100:4", "cpus": 8}
    train = find_profile(write(jobs={"train": wide})).resources("train.train")
    assert (train.nodes, train.tasks_per_node, train.granted_gpus) == (2, 4, 4)
    assert train.summary() == "2 nodes, 4 tasks a node, 8 cpu, gpu:a100:4, 240 min"
    for jobs, told in (
        ({"train": {**wide, "gres": "gpu:2"}}, "4 tasks of a node cannot share 2 GPU"),
        ({"evaluate": {"nodes": 2}}, "evaluate cannot have several tasks a job, only train can"),
        ({"default": {"tasks_per_node": 2}}, "default cannot have several tasks a job"),
    ):
        with pytest.raises(UserError, match=told):
            find_profile(write(jobs=jobs))


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(90, 90), ("90", 90), ("30:00", 30), ("47:55:00", 2875), ("2-00", 2880), ("1-00:00:30", 1441)],
)
def test_slurms_time_formats_are_parsed(time: Any, minutes: int) -> None:
    assert profiles.Resources(time=time).time == minutes


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"jobs": {"trian": {}}}, "'trian' is not a stage; did you mean train?"),
        ({"jobs": {"train": {"time": 10}}}, "jobs.train.time = 10"),
        ({"jobs": {"train": {"time": "soon"}}}, "D-HH:MM:SS"),
        (
            {"jobs": {"train": {"mem": "1G", "mem_per_cpu": "1G"}}},
            "at most one of mem, mem_per_cpu",
        ),
        ({"jobs": {"train": {"gpus": 1, "gres": "gpu:1"}}}, "at most one of gpus, gres"),
        ({"jobs": {"train": {"where": "login"}}}, "only download can"),
        ({"jobs": {"train": {"partitions": "x"}}}, "did you mean jobs.train.partition?"),
        ({"clutser": "x"}, "did you mean cluster?"),
        ({"extends": "defualt"}, "did you mean default?"),
    ],
)
def test_a_mistake_is_reported_with_its_field(
    write: Write, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        find_profile(write(**values))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_defaults_override_inherited_stages(write: Write) -> None:
    own = {"default": {"cpus": 7, "mem_per_cpu": "2G"}, "evaluate": {"gres": "gpu:a100:1"}}
    profile = find_profile(write(extends="default", jobs=own))
    train, tuned = profile.resources("train.train"), profile.resources("evaluate.tuned")
    assert (train.cpus, train.mem, train.mem_per_cpu, train.gpus) == (7, None, "2G", 1)
    assert (tuned.gres, tuned.gpus) == ("gpu:a100:1", 0)


def test_a_time_works_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("jobs: {train: {time: 1:30:00}}\n")
    assert find_profile(str(path)).resources("train.train").time == 90


def test_extending_inherits_all_but_the_cluster(write: Write) -> None:
    base = write("base", cluster="alpha", root="/a", jobs={"default": {"account": "x", "cpus": 3}})
    profile = find_profile(write(extends=base, jobs={"default": {"cpus": 5}}))
    resources = profile.resources("train.train")
    assert (profile.cluster, profile.root) == (None, "/a")
    assert (resources.account, resources.cpus) == ("x", 5)


def test_circular_extends_are_reported(write: Write, tmp_path: Path) -> None:
    write("one", extends=str(tmp_path / "two.yaml"))
    with pytest.raises(UserError, match="extend each other"):
        find_profile(write("two", extends=str(tmp_path / "one.yaml")))


@pytest.fixture
def no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with `sbatch` and no chosen profile; returns the path of its slurm.conf."""
    (tmp_path / "sbatch").write_text("")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.delenv("GRISTMILL_PROFILE")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    return tmp_path / "slurm.conf"


@pytest.mark.parametrize(
    ("conf", "cluster"),
    [("ClusterName=greene\n", "greene"), ("# x\nclustername = else\n", None)],
)
def test_the_cluster_name_selects_the_profile(
    no_name: Path, conf: str, cluster: str | None
) -> None:
    no_name.write_text(conf)
    profile = find_profile(None)
    assert (profile.scheduler, profile.cluster) == ("slurm", cluster)


def test_without_sbatch_the_profile_is_local(
    no_name: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_profile(None).scheduler == "local"


def test_the_environment_may_name_the_profile(
    no_name: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRISTMILL_PROFILE", "greene")
    assert find_profile(None).cluster == "greene"
    assert find_profile("local").scheduler == "local"


def test_the_root_may_contain_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "me")
    assert find_root(Profile(root="/scratch/$USER/x"), None) == Path("/scratch/me/x")
    assert find_root(Profile(root="/scratch"), "/tmp/../tmp/y") == Path("/tmp/y")


def test_env_sh_sets_the_same_environment_as_a_task() -> None:
    lines = (ROOT / "slurm" / "env.sh").read_text().splitlines()
    start = lines.index("# see jobs/core/environment.py") + 1
    exports = "\n".join(lines[start : start + 4])
    said = subprocess.run(
        ["bash", "-c", f"{exports}\nenv"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {f"{name}={value}" for name, value in TASK_ENVIRONMENT.items()} <= set(said)
