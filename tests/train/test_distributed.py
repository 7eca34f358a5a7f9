"""Two ranks train like one, agree on every event, and only rank 0 writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.core.errors import Failure, Interrupted
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.dag import Node, find
from pipeline.train.distributed import Ranks
from tests.train.helpers import inject, metrics, no_memory, result, train

pytestmark = pytest.mark.slow

Small = Callable[..., Config]
Work = Callable[[Context], Any]
TIMEOUT_SECONDS = 120.0


def run_ranks(folder: Path, work: Work, world: int = 2) -> list[dict[str, Any]]:
    """The outcome of `work` in each of `world` processes: its `value`, or `error` and `reason`.

    They are forks, so they inherit what a test injects; torch computes on the CPU in one thread.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = {}
    for rank in range(world):
        path = folder / f"rank-{rank}.json"
        path.unlink(missing_ok=True)
        children[rank] = os.fork()
        if children[rank]:
            continue
        try:
            rendezvous = f"127.0.0.1:{port}"
            ctx = Context(
                log=print, rank=rank, local_rank=rank, world_size=world, rendezvous=rendezvous
            )
            outcome: dict[str, Any] = {"value": work(ctx)}
        except (Failure, Interrupted) as error:
            outcome = {"error": type(error).__name__, "reason": str(error)}
        except BaseException:
            outcome = {"error": "defect", "reason": traceback.format_exc()}
        path.write_text(json.dumps(outcome))
        os._exit(0)
    end = time.monotonic() + TIMEOUT_SECONDS
    for pid in children.values():
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                for other in children.values():
                    os.kill(other, signal.SIGKILL)
                raise AssertionError("the ranks did not end in time")
            time.sleep(0.05)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in children]


def training(config: Config, root: Path, stops: dict[int, Stop] | None = None) -> Work:
    """The train step, with a separate stop for some ranks."""

    def work(ctx: Context) -> str:
        node = find(config, root, "train.train")
        assert node.items is not None
        stop = (stops or {}).get(ctx.rank, ctx.stop)
        return run_item(node.work, node.items[0], replace(ctx, stop=stop))

    return work


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A root in which training is the next step."""
    return Path(shutil.copytree(prepared, tmp_path / "root"))


def trained(config: Config, root: Path) -> Node:
    """Train with two ranks."""
    assert run_ranks(root.parent, training(config, root)) == [{"value": "done"}] * 2
    return find(config, root, "train.train")


def steps(node: Node) -> list[dict[str, Any]]:
    return [row for row in metrics(node) if row["kind"] == "step"]


def learned(node: Node) -> dict[str, Any]:
    from safetensors.torch import load_file

    (path,) = (node.work.folder / "best").glob("*.safetensors")
    return load_file(path)


RECIPES = {
    "lora-8bit": (),
    "lora": ("train.weights=bf16",),
    "full": ("train.method=full", "train.weights=fp32"),
    "8-bit optimizer": ("train.optimizer=adamw8bit",),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_ranks_give_the_losses_of_one(
    small: Small, root: Path, prepared: Path, tmp_path: Path, recipe: str
) -> None:
    """In fp32, with an odd number of windows: losses and weights agree to rounding."""
    shutil.copytree(prepared, tmp_path / "alone")
    config = small("train.precision=fp32", "train.batch_size=5", *RECIPES[recipe])
    alone, two = train(config, tmp_path / "alone"), trained(config, root)
    for one, other in zip(steps(alone), steps(two), strict=True):
        assert one["tokens"] == other["tokens"]
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-2)
    judged = [[row for row in metrics(of) if row["kind"] == "validation"] for of in (alone, two)]
    for one, other in zip(*judged, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-3)
    assert judged[1][0]["loss"] == judged[0][0]["loss"], "before the first step nothing differs"
    (receipt,) = two.done.values()
    assert receipt.facts["ranks"] == 2
    assert {row["attempt"] for row in metrics(two)} == {1}, "only one rank writes"
    if recipe == "full":
        import torch

        for name, value in learned(alone).items():
            torch.testing.assert_close(learned(two)[name], value, rtol=1e-2, atol=5e-4)


class StopAtStep(Stop):
    """Requests a stop by a signal once the metrics contain a step."""

    def __init__(self, folder: Path, step: int, by: signal.Signals) -> None:
        super().__init__()
        self.path, self.text, self.by = folder / "metrics.jsonl", f'"step": {step},', by

    @property
    def reason(self) -> str | None:
        """The reason, once the step is there."""
        if self.path.exists() and self.text in self.path.read_text():
            self.set("a test", self.by)
        return super().reason


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_signal_to_one_rank_stops_both_and_resuming_is_exact(
    small: Small, root: Path, prepared: Path, tmp_path: Path, rank: int
) -> None:
    shutil.copytree(prepared, tmp_path / "whole")
    config = small("train.lora_dropout=0.1")
    whole = trained(config, Path(tmp_path / "whole"))
    folder = find(config, root, "train.train").work.folder
    stops = {rank: StopAtStep(folder, 4, signal.SIGTERM)}
    both = run_ranks(tmp_path, training(config, root, stops))
    reasons = ["a test" if r == rank else "another rank was asked to stop" for r in range(2)]
    assert both == [{"error": "Interrupted", "reason": reason} for reason in reasons]
    again = trained(config, root)
    assert result(again) == result(whole), (
        "each rank has its own random numbers, and the same after a restart"
    )
    assert [row["step"] for row in steps(again)] == [1, 2, 3, 4, 5, 6], "no step was repeated"


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_another_number_of_ranks_continues_the_same_data_order(
    small: Small, root: Path, prepared: Path, tmp_path: Path, first: int
) -> None:
    whole = train(small(), Path(shutil.copytree(prepared, tmp_path / "whole")))
    folder = find(small(), root, "train.train").work.folder
    stop = StopAtStep(folder, 3, signal.SIGUSR2)
    ended = run_ranks(tmp_path, training(small(), root, {0: stop}), first)
    assert {outcome["error"] for outcome in ended} == {"Interrupted"}
    then = 3 - first
    assert {o["value"] for o in run_ranks(tmp_path, training(small(), root), then)} == {"done"}
    rows, wanted = steps(find(small(), root, "train.train")), steps(whole)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_out_of_memory_on_one_rank_halves_on_both(
    small: Small, root: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared, tmp_path / "other")
    narrow = trained(small("train.micro_batch_size=1"), tmp_path / "other")
    current = {"rank": 0}
    inject(monkeypatch, lambda step, rate, n: no_memory() if current["rank"] and n > 1 else 1.0)
    work = training(small(), root)

    def with_rank(ctx: Context) -> Any:
        current["rank"] = ctx.rank
        return work(ctx)

    assert run_ranks(tmp_path, with_rank) == [{"value": "done"}] * 2
    node = find(small(), root, "train.train")
    assert [row["micro_batch"] for row in metrics(node) if row["kind"] == "memory"] == [1]
    assert result(node) == result(narrow)


def test_non_finite_loss_on_one_rank_is_skipped_by_both(
    small: Small, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = {"rank": 0}
    bad = float("nan")
    inject(monkeypatch, lambda step, rate, n: bad if current["rank"] and step == 2 else 1.0)
    work = training(small(), root)

    def with_rank(ctx: Context) -> Any:
        current["rank"] = ctx.rank
        return work(ctx)

    assert run_ranks(tmp_path, with_rank) == [{"value": "done"}] * 2
    node = find(small(), root, "train.train")
    assert [row["step"] for row in steps(node) if row["skipped"]] == [3]
    assert result(node)[1] < steps(node)[0]["loss"]


@pytest.mark.parametrize(
    "writes",
    ["checkpoint.save", "metrics_log.MetricsLog.add_sample", "run.commit_best"],
    ids=["checkpoint", "sample", "product"],
)
def test_write_error_on_rank_0_fails_all_ranks(
    small: Small, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    def full(*args: Any) -> None:
        raise Failure("the disk is full")

    monkeypatch.setattr(f"pipeline.train.{writes}", full)
    both = run_ranks(tmp_path, training(small(), root))
    assert both == [{"error": "Failure", "reason": "the disk is full"}] * 2


def test_more_ranks_than_windows_are_refused(small: Small, root: Path, tmp_path: Path) -> None:
    words = "train.batch_size=1", "train.micro_batch_size=1"
    both = run_ranks(tmp_path, training(small(*words), root))
    assert [outcome["error"] for outcome in both] == ["UserError"] * 2
    message = "2 ranks cannot share the 1 windows of a step"
    assert all(outcome["reason"].startswith(message) for outcome in both)


def test_no_rank_leaves_before_all_are_connected(
    small: Small, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0, which holds the store, fails at once, while rank 1 connects slowly."""
    import torch.distributed as dist

    met = dist.init_process_group

    class Slow(dist.Store):
        def __init__(self, store: dist.Store) -> None:
            super().__init__()
            self.store = store

        def get(self, key: str) -> bytes:
            time.sleep(0.3)
            return self.store.get(key)

        def set(self, key: str, value: str) -> None:
            self.store.set(key, value)

        def wait(self, *args: Any) -> None:
            self.store.wait(*args)

        def add(self, key: str, value: int) -> int:
            return self.store.add(key, value)

    def slowly(backend: str, store: dist.Store, rank: int, **more: Any) -> None:
        met(backend, store=Slow(store) if rank else store, rank=rank, **more)

    monkeypatch.setattr(dist, "init_process_group", slowly)
    words = "train.batch_size=1", "train.micro_batch_size=1"
    for number in range(4):  # their ports decide which of two connects to the other
        (tmp_path / str(number)).mkdir()
        both = run_ranks(tmp_path / str(number), training(small(*words), root))
        assert [outcome["error"] for outcome in both] == ["UserError"] * 2


def test_a_waiting_rank_sees_that_the_training_is_finished(
    small: Small, root: Path, tmp_path: Path
) -> None:
    """Rank 0 finds the work done under another key, or finishes before rank 1 starts."""
    work = training(small(), root)

    def alone(ctx: Context) -> Any:
        if ctx.rank:
            return work(ctx)
        return work(replace(ctx, world_size=1))

    assert run_ranks(tmp_path, alone) == [{"value": "done"}] * 2


def test_a_single_rank_needs_no_process_group() -> None:
    ranks = Ranks()
    assert ranks.part_of_rank([1, 2, 3]) == [1, 2, 3]
    assert (ranks.all_sum(1.0, 2.0), ranks.all_max(3.0)) == ([1.0, 2.0], [3.0])
    assert ranks.run_on_rank0(lambda: 5) == ranks.rank0_first(lambda: 5) == 5
    shares = [list(Ranks(rank, 3).part_of_rank(range(7))) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
