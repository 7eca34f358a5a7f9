"""What a run still needs, given its receipts and the queue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cluster import slurm_cli
from jobs.cluster.slurm_cli import DEPENDENCY_NEVER_SATISFIED, Job
from jobs.planning.plan import Plan, job_name, read_plan
from jobs.planning.planner import make_plan
from jobs.planning.queue import Queue, match_plans
from pipeline.config import Config
from pipeline.core.errors import InputError
from pipeline.dag import STEPS, find

Small = Callable[..., Config]
ALL = [step.name for step in STEPS]


def job(
    name: str,
    id: str = "7",
    state: str = "PENDING",
    reason: str = "Dependency",
    dependency: str = "",
) -> Job:
    array, _, index = id.partition("_")
    return Job(
        id=id,
        array=array,
        index=int(index) if index else None,
        number=f"1{array}{index}",
        state=state,
        name=name,
        submitted=1.0,
        started=None,
        node="",
        dependency=dependency,
        reason=reason,
    )


def queue(root: Path, *jobs: Job) -> Queue:
    return Queue(jobs, match_plans(root, jobs))


def written(config: Config, root: Path, **more: object) -> Plan:
    plan = make_plan(config, root, **more)  # type: ignore[arg-type]
    plan.write()
    return plan


def test_every_array_is_known_before_the_data_exists(small: Small, tmp_path: Path) -> None:
    plan = make_plan(small("tokenize.tasks=5"), tmp_path, max_array_size=1001)
    assert [array.step for array in plan.arrays] == ALL
    assert plan.array("tokenize.shards").elements == tuple(range(5))
    needs = {array.step: array.needs for array in plan.arrays}
    assert needs["train.train"] == ("tokenize.seal",), "indirect needs are left out"
    assert needs["tokenize.shards"] == ("decompress.chunks", "download.model")
    assert needs["evaluate.report"] == ("evaluate.tuned", "evaluate.overlap")


def test_an_array_has_no_more_elements_than_the_site_allows(small: Small, tmp_path: Path) -> None:
    plan = make_plan(small("tokenize.tasks=5000"), tmp_path, max_array_size=1001)
    assert plan.array("tokenize.shards").of == 1001


def test_only_elements_with_missing_items_run(small: Small, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small("tokenize.tasks=3")
    folder = find(config, tmp_path, "tokenize.shards").work.folder
    for gone in ("chunk-00000-00001", "chunk-00000-00004"):
        shutil.rmtree(folder / gone)
    array = make_plan(config, tmp_path).array("tokenize.shards")
    assert (array.of, array.elements, array.todo) == (3, (1,), 2)


def test_plans_are_found_by_job_name(small: Small, tmp_path: Path) -> None:
    plan = written(small("tokenize.tasks=3"), tmp_path)
    path = next(tmp_path.glob("runs/*/plans/*.json"))
    assert path.stem == plan.id
    assert read_plan(path) == plan
    assert read_plan(path).settings == small("tokenize.tasks=3")
    shards = [job(job_name("tokenize.shards", plan), f"9_{i}") for i in range(3)]
    others = [job("bash"), job("train.train-000000000000"), job("train.train")]
    found = match_plans(tmp_path, [*shards, *others])
    (lives,) = found.values()
    assert [(live.element, live.of) for live in lives] == [(0, 3), (1, 3), (2, 3)]
    assert match_plans(tmp_path / "elsewhere", shards) == {}


def test_queued_jobs_are_not_submitted_again(small: Small, tmp_path: Path) -> None:
    config = small("tokenize.tasks=3")
    plan = written(config, tmp_path)
    jobs = [
        job(job_name(array.step, plan), f"{n}_{e}" if len(array.elements) > 1 else str(n))
        for n, array in enumerate(plan.arrays)
        for e in array.elements
    ]
    again = make_plan(config, tmp_path, queue(tmp_path, *jobs))
    assert again.arrays == ()
    assert again.live["tokenize.shards"] == ["3_0", "3_1", "3_2"]
    other = small("tokenize.tasks=3", "train.lr=1", name="other")
    shared = make_plan(other, tmp_path, queue(tmp_path, *jobs))
    assert [array.step for array in shared.arrays] == [
        "train.train",
        "evaluate.tuned",
        "evaluate.report",
    ]
    assert shared.array("train.train").after == ("4",), "the seal waits for the shards already"


def test_after_a_failed_element_waiting_jobs_are_replaced_and_wait_for_live_jobs(
    small: Small, tmp_path: Path
) -> None:
    config = small("tokenize.tasks=3")
    plan = written(config, tmp_path)
    name = {array.step: job_name(array.step, plan) for array in plan.arrays}
    jobs = [
        job(name["download.corpus"], "1", "RUNNING"),
        job(name["download.model"], "2", "RUNNING"),
        job(name["decompress.chunks"], "3"),
        job(name["tokenize.shards"], "4_0"),
        job(name["tokenize.shards"], "4_2"),
        job(name["tokenize.seal"], "5", reason=DEPENDENCY_NEVER_SATISFIED),
        job(name["train.train"], "6"),
    ]
    again = make_plan(config, tmp_path, queue(tmp_path, *jobs))
    shards, seal = again.array("tokenize.shards"), again.array("tokenize.seal")
    assert (shards.elements, shards.replaces, shards.after) == ((1,), (), ("3", "2"))
    assert (seal.needs, seal.after) == (("tokenize.shards",), ("4_0", "4_2"))
    assert seal.replaces == ("5",)
    assert again.array("train.train").replaces == ("6",)


def test_running_jobs_are_left_alone_even_if_their_needs_run_again(
    small: Small, tmp_path: Path
) -> None:
    config = small()
    plan = written(config, tmp_path)
    running = job(job_name("train.train", plan), "6", "RUNNING")
    again = make_plan(config, tmp_path, queue(tmp_path, running))
    assert "train.train" not in [array.step for array in again.arrays]
    assert again.array("evaluate.tuned").after == ("6",)


def test_new_elements_keep_the_division_of_live_ones(small: Small, tmp_path: Path) -> None:
    plan = written(small("tokenize.tasks=8"), tmp_path)
    live = job(job_name("tokenize.shards", plan), "4_5", "RUNNING")
    array = make_plan(small("tokenize.tasks=2"), tmp_path, queue(tmp_path, live)).array(
        "tokenize.shards"
    )
    assert (array.of, array.elements) == (8, (0, 1, 2, 3, 4, 6, 7))


def test_remaining_parts_wait_for_jobs_by_hand(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small("decompress.part_bytes=1000")
    node = find(config, tmp_path, "decompress.chunks")
    node.work.folder.mkdir()
    label = "job 107 of x, process 5 of user 0 on elsewhere, born 9"
    content = {"owner": "x", "label": label, "beats": "1"}
    (node.work.folder / ".lease-part-00000").write_text(json.dumps(content))
    by_hand = job("gristmill-decompress", "07", "RUNNING")
    array = make_plan(config, tmp_path, queue(tmp_path, by_hand)).array("decompress.chunks")
    assert (array.elements, array.after) == ((0,), ("07",))


def test_work_by_hand_is_recognized_by_its_lease(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small()
    folder = find(config, tmp_path, "train.train").work.folder
    folder.mkdir(parents=True)
    label = "job 107 of x, process 5 of user 0 on elsewhere, born 9"
    content = {"owner": "x", "label": label, "beats": "1"}
    (folder / ".lease-best").write_text(json.dumps(content))
    by_hand = job("gristmill-train", "07", "RUNNING")
    assert by_hand.number == "107"
    again = make_plan(config, tmp_path, queue(tmp_path, by_hand))
    assert again.live == {"train.train": ["07"]}
    gone = make_plan(config, tmp_path, queue(tmp_path, replace(by_hand, number="108")))
    assert "train.train" in [array.step for array in gone.arrays]


def test_a_damaged_plan_is_reported(small: Small, tmp_path: Path) -> None:
    written(small(), tmp_path)
    path = next(tmp_path.glob("runs/*/plans/*.json"))
    path.write_text("{")
    with pytest.raises(InputError, match="cannot read the plan"):
        read_plan(path)


def test_a_second_run_with_equal_settings_waits_for_the_first(small: Small, tmp_path: Path) -> None:
    plan = written(small(name="first"), tmp_path)
    running = job(job_name("train.train", plan), "6", "RUNNING")
    again = make_plan(small(name="second"), tmp_path, queue(tmp_path, running))
    train = again.array("train.train")
    assert train.after == ("6",)
    assert train.folder != plan.array("train.train").folder
    assert train.key == plan.array("train.train").key


def test_dependents_in_other_runs_are_found(small: Small, tmp_path: Path) -> None:
    plan = written(small(), tmp_path)
    seal = job(job_name("tokenize.seal", plan), "5")
    train = job(job_name("train.train", plan), "6", dependency="afterok:5(unfulfilled)")
    stranger = job("bash", "8", dependency="afterok:5(unfulfilled)")
    looked = queue(tmp_path, seal, train, stranger)
    assert looked.dependents(["5"], exclude=set()) == {"6": ["5"]}
    assert looked.dependents(["5"], exclude={"6"}) == {}


def test_jobs_that_other_runs_wait_for_are_not_cancelled(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.housekeeping.cancel import cancel_run

    cancelled: list[str] = []
    monkeypatch.setattr(slurm_cli, "cancel", cancelled.extend)
    one, two = small("tokenize.tasks=2"), small("train.lr=1", name="two")
    plan = written(one, tmp_path)
    chain = [
        job(job_name("decompress.chunks", plan), "3", "RUNNING"),
        job(job_name("tokenize.shards", plan), "4_0", dependency="afterok:3(unfulfilled)"),
        job(job_name("tokenize.shards", plan), "4_1", dependency="afterok:3(unfulfilled)"),
        job(job_name("tokenize.seal", plan), "5", dependency="afterok:4_*(unfulfilled)"),
        job(job_name("train.train", plan), "6", dependency="afterok:5(unfulfilled)"),
    ]
    other = written(two, tmp_path, queue=queue(tmp_path, *chain))
    train = job(job_name("train.train", other), "7", dependency="afterok:5(unfulfilled)")
    found = cancel_run(one, tmp_path, queue(tmp_path, *chain, train))
    assert found.ended == cancelled == ["6"]
    assert found.kept == ["3", "4_0", "4_1", "5"]
    assert cancel_run(one, tmp_path, queue(tmp_path, *chain)).kept == []


def test_dependencies_name_elements_or_whole_arrays() -> None:
    told = job("x", dependency="afterok:5(unfulfilled),afterok:6_2(unfulfilled),afterok:7_*(x)")
    assert told.needed == ["5", "6_2", "7"]
