"""The test cluster is a real SLURM, isolated from the host, and recognizable as ours."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.fixture import HERE, NOWHERE, Cluster, up
from tests.workers import needs_cluster

PLACES = ("/etc", "/run", "/tmp", "/var/cache", "/var/lib", "/var/log", "/var/spool")


def test_tests_without_the_fixture_reach_no_cluster() -> None:
    assert os.environ["SLURM_CONF"] == NOWHERE
    assert not [name for name in os.environ if name.startswith(("SLURM_J", "SBATCH_"))]


def test_tests_that_need_the_cluster_are_found_by_name(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        marked = item.get_closest_marker("slurm") is not None
        assert needs_cluster(item.nodeid) == marked, item.nodeid


@pytest.mark.slurm
def test_two_nodes_are_idle_and_run_a_step_together(cluster: Cluster) -> None:
    cluster.cancel_all()
    nodes = cluster.run("sinfo", "-hN", "-p", "main", "-o", "%N %t").splitlines()
    assert nodes == ["node1 idle", "node2 idle"]
    told = cluster.run("srun", "-N2", "sh", "-c", "echo $SLURMD_NODENAME; getent ahostsv4 node1")
    assert {"node1", "node2"} <= set(told.splitlines())
    assert "127.0.0.1" in told


@pytest.mark.slurm
def test_a_job_sees_its_gpu_and_is_in_the_accounting(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("echo gpus=$CUDA_VISIBLE_DEVICES", "--gres=gpu:1", cwd=tmp_path)
    assert cluster.wait(job, "COMPLETED") == {job: "COMPLETED"}
    assert (tmp_path / f"{job}.out").read_text() in {"gpus=0\n", "gpus=1\n"}
    end = time.monotonic() + 60
    accounted = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=state")
    while cluster.run(*accounted, f"--jobs={job}") != "COMPLETED":
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slurm
def test_waiting_for_an_array_waits_for_each_element(cluster: Cluster, tmp_path: Path) -> None:
    script = "exit $((SLURM_ARRAY_TASK_ID == 2))"
    array = cluster.submit(script, "--array=0-3%2", cwd=tmp_path)
    states = cluster.wait(array, {"COMPLETED", "FAILED"})
    failed = {f"{array}_{index}": index == 2 for index in range(4)}
    assert {job: state == "FAILED" for job, state in states.items()} == failed


@pytest.mark.slurm
def test_up_leaves_a_healthy_cluster_alone(cluster: Cluster) -> None:
    before = cluster.conf.stat()
    start = time.monotonic()
    done = up()
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 5
    assert cluster.conf.stat() == before


def changed(since: float, root: Path, also: Path) -> set[str]:
    """Files written since then whose paths belong to a cluster; other processes write here, too."""
    found = set()
    for place in PLACES:
        for folder, folders, files in os.walk(place):
            here = Path(folder)
            folders[:] = [name for name in folders if here / name not in (root, also)]
            for name in files:
                path = here / name
                words = ("slurm", "munge", "mysql", "maria", "gristmill", "hosts")
                if any(word in str(path).lower() for word in words):
                    try:
                        if path.lstat().st_mtime >= since:
                            found.add(str(path))
                    except FileNotFoundError:
                        continue
    return found


@pytest.mark.slurm
def test_a_second_cluster_leaves_the_first_and_the_host_alone(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(f"/var/tmp/gristmill-test-{os.getpid()}")
    hosts = Path("/etc/hosts").read_text()
    monkeypatch.setenv("GRISTMILL_CLUSTER", str(root))
    start = time.time()
    down = [str(HERE / "down.sh"), "--wipe"]
    try:
        done = up()
        assert (done.returncode, done.stderr) == (0, "")
        written = changed(start, root, tmp_path_factory.getbasetemp().parent)
        added = Path("/etc/hosts").read_text().removeprefix(hosts)
        told = Cluster(root).run("srun", "-N2", "echo", "here")
    finally:
        stopped = subprocess.run(down, check=True, timeout=60, capture_output=True)
    assert written == {"/etc/hosts"}
    assert added == f"127.0.0.1 node1 node2 # gristmill-test {root}\n"
    assert told == "here\nhere"
    assert not stopped.stdout + stopped.stderr
    assert not root.exists()
    assert Path("/etc/hosts").read_text() == hosts
    assert cluster.run("srun", "-N2", "echo", "here") == "here\nhere"
