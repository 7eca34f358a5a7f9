"""A lease has one holder; a dead one is followed at once or after patience, a live one never."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import Busy
from pipeline.core.lease import Lease

FORK = multiprocessing.get_context("fork")
WAIT = 60.0


def unknown(label: str) -> bool | None:
    return None


def lives(label: str) -> bool | None:
    return False


def is_gone(label: str) -> bool | None:
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "train-1234"
    folder.mkdir()
    return folder / ".lease-best"


def lease(
    path: Path, label: str = "me", has_ended: Callable[[str], bool | None] = unknown, **times: float
) -> Lease:
    return Lease(path, label, has_ended, **{"patience": 0.4, "beat": 0.05, **times})


def hold(path: Path, label: str = "holder", beat: float = 0.05) -> Any:
    """Another process that holds the lease until it is killed."""
    ready = FORK.Event()

    def work() -> None:
        with lease(path, label, beat=beat):
            ready.set()
            time.sleep(WAIT)

    holder = FORK.Process(target=work, daemon=True)
    holder.start()
    assert ready.wait(WAIT)
    return holder


def kill(process: Any, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(process.pid, number)
    if number == signal.SIGKILL:
        process.join(WAIT)


def test_a_lease_is_free_again_after_its_block_and_leaves_no_file(path: Path) -> None:
    for label in ("one", "two"):
        with lease(path, label) as held:
            held.confirm()
            assert json.loads(path.read_text())["label"] == label
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_gives_the_lease_back(path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), lease(path):
        raise error
    assert list(path.parent.iterdir()) == []


def test_two_that_race_for_one_lease_one_gets_it_and_the_other_is_told(path: Path) -> None:
    rounds = 40
    gate, over = FORK.Barrier(2), FORK.Barrier(2)
    results = FORK.Queue()

    def work(label: str) -> None:
        for _ in range(rounds):
            gate.wait(WAIT)
            try:
                with lease(path, label, lives) as held:
                    held.confirm()
                    over.wait(WAIT)
                    results.put((label, "held"))
            except Busy as error:
                over.wait(WAIT)
                results.put((label, str(error)))

    racers = [FORK.Process(target=work, args=(label,)) for label in ("a", "b")]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=WAIT) for _ in range(2 * rounds)]
    for racer in racers:
        racer.join(WAIT)
        assert racer.exitcode == 0
    assert sum(said == "held" for _, said in found) == rounds
    for label, said in found:
        if said != "held":
            other = "b" if label == "a" else "a"
            assert said.startswith(f"train-1234 is being worked on by {other}. ")
    assert list(path.parent.iterdir()) == []


def test_a_holder_known_to_be_gone_is_followed_at_once(path: Path) -> None:
    kill(hold(path))
    assert path.exists()
    started = time.monotonic()
    with lease(path, has_ended=is_gone, patience=300.0, beat=20.0) as held:
        held.confirm()
        assert time.monotonic() - started < 5
    assert list(path.parent.iterdir()) == [], "nor does the dead holder leave anything"


def test_the_label_is_what_is_asked_about(path: Path) -> None:
    kill(hold(path, "host:12:34"))
    asked = []

    def has_ended(label: str) -> bool:
        asked.append(label)
        return True

    with lease(path, has_ended=has_ended, patience=300.0):
        pass
    assert asked == ["host:12:34"]


def test_an_unknown_holder_without_a_heartbeat_is_followed_after_patience(path: Path) -> None:
    kill(hold(path))
    started = time.monotonic()
    with lease(path) as held:
        assert time.monotonic() - started >= 0.4
        held.confirm()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("has_ended", [unknown, lives])
def test_a_live_heartbeat_is_respected(path: Path, has_ended: Callable[[str], bool | None]) -> None:
    holder = hold(path)
    with (
        pytest.raises(Busy, match="train-1234 is being worked on by holder"),
        lease(path, has_ended=has_ended),
    ):
        pytest.fail("it was taken")
    assert holder.is_alive()
    assert len(list(path.parent.iterdir())) == 2, "the lease and the private file of its holder"
    kill(holder)


def test_a_live_heartbeat_outlasts_any_patience(path: Path) -> None:
    """The beat is slower than the look, the patience longer than the beat."""
    holder = hold(path, beat=0.3)
    for _ in range(3):
        with pytest.raises(Busy), lease(path, patience=1.0, beat=0.05):
            pytest.fail("it was taken")
    kill(holder)


def test_a_holder_that_was_followed_and_wakes_up_is_told(path: Path) -> None:
    with lease(path, "sleeper", beat=1000.0) as sleeper:
        sleeper.confirm()
        with lease(path, "follower", is_gone) as follower:
            follower.confirm()
            with pytest.raises(Busy, match="train-1234 was taken over by follower"):
                sleeper.confirm()
        with pytest.raises(Busy, match="was taken over by nobody"):
            sleeper.confirm()
    assert list(path.parent.iterdir()) == []


def test_a_stopped_holder_that_goes_on_neither_confirms_nor_disturbs(path: Path) -> None:
    ready, go = FORK.Event(), FORK.Event()
    results = FORK.Queue()

    def work() -> None:
        with lease(path, "stopped") as held:
            ready.set()
            go.wait(WAIT)
            time.sleep(0.2)  # a few of its beats
            try:
                held.confirm()
                results.put(("confirmed", 0))
            except Busy as error:
                results.put((str(error), len(list(path.parent.iterdir()))))

    holder = FORK.Process(target=work)
    holder.start()
    assert ready.wait(WAIT)
    kill(holder, signal.SIGSTOP)
    with lease(path, "follower", beat=1000.0) as held:
        content = path.read_text()
        kill(holder, signal.SIGCONT)
        go.set()
        said, files = results.get(timeout=WAIT)
        assert said == "train-1234 was taken over by follower"
        assert files == 2, "its heartbeat wrote nothing"
        holder.join(WAIT)
        assert path.read_text() == content
        held.confirm()
    assert list(path.parent.iterdir()) == []


def test_a_torn_lease_is_followed_after_patience(path: Path) -> None:
    for torn in ("", '{"owner": "abc", "la', "[]", '{"owner": 1}'):
        path.write_text(torn)
        with lease(path, patience=0.1) as held:
            held.confirm()
    assert list(path.parent.iterdir()) == []


def test_the_heart_outlives_the_loss_of_its_other_name(path: Path) -> None:
    with lease(path) as held:
        for other in path.parent.glob(f"{path.name}.*"):
            other.unlink()
        beats = json.loads(path.read_text())["beats"]
        end = time.monotonic() + WAIT
        while json.loads(path.read_text())["beats"] <= beats:
            assert time.monotonic() < end, "it beats on"
            time.sleep(0.01)
        held.confirm()
    assert not list(path.parent.iterdir()), "and leaves nothing"


def test_the_heartbeat_goes_on_while_the_holder_works(path: Path) -> None:
    with lease(path):
        seen = set()
        end = time.monotonic() + WAIT
        while len(seen) < 4 and time.monotonic() < end:
            seen.add(path.read_text())
            time.sleep(0.01)
    assert len(seen) == 4
    assert len({len(text) for text in seen}) == 1, "rewritten in place, it is never torn"


def storm(
    path: Path, processes: int, rounds: int, has_ended: Callable[[str], bool | None]
) -> list[Any]:
    """All contend for a lease whose holder was killed; returns what each round saw, by process."""
    gates = [FORK.Barrier(processes + 1) for _ in range(2)]
    results = FORK.Queue()

    def work(number: int) -> None:
        chance = random.Random(number)
        for turn in range(rounds):
            gates[0].wait(WAIT)
            spans: list[tuple[float, float]] = []
            try:
                with lease(path, f"{number}:{turn}", has_ended, patience=0.05, beat=0.01) as held:
                    first = last = None
                    for _ in range(10):
                        before = time.monotonic()
                        held.confirm()
                        last = time.monotonic()
                        first = before if first is None else first
                        spans = [(first, last)]
                        time.sleep(chance.uniform(0, 0.002))
            except Busy:
                pass
            results.put((turn, number, spans))
            gates[1].wait(WAIT)

    contenders = [FORK.Process(target=work, args=(n,)) for n in range(processes)]
    for contender in contenders:
        contender.start()
    found: list[Any] = []
    for turn in range(rounds):
        dead = {"owner": f"{turn:032x}", "label": f"dead:{turn}", "beats": "1"}
        path.write_text(json.dumps(dead))
        gates[0].wait(WAIT)
        found += [results.get(timeout=WAIT) for _ in range(processes)]
        gates[1].wait(WAIT)
    for contender in contenders:
        contender.join(WAIT)
        assert contender.exitcode == 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["known to have ended", "found out"])
def test_however_many_follow_a_dead_holder_never_two_hold_at_once(path: Path, known: bool) -> None:
    def has_ended(label: str) -> bool | None:
        return True if known and label.startswith("dead") else None

    rounds = 25
    found = storm(path, 8, rounds, has_ended)
    for turn in range(rounds):
        spans = sorted(span for t, _, spans in found if t == turn for span in spans)
        assert spans, "somebody gets it"
        for (_, end), (start, _) in pairwise(spans):
            assert end < start, f"two held it in round {turn}: {spans}"
    left = [p.name for p in path.parent.iterdir()]
    assert left == []


def test_who_comes_late_to_a_dead_holder_does_not_rob_the_one_who_was_quicker(path: Path) -> None:
    kill(hold(path, "dead"))
    quick = lease(path, "quick", is_gone)

    def has_ended(label: str) -> bool:
        if label == "quick":
            return False
        quick.__enter__()  # between the look at the dead one and the taking of its lease
        return True

    with pytest.raises(Busy, match="is being worked on by quick"), lease(path, "late", has_ended):
        pytest.fail("it was taken")
    quick.confirm()
    quick.__exit__()
    assert list(path.parent.iterdir()) == []


def test_waiting_for_a_lease_ends_when_it_is_given_back(path: Path) -> None:
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        with lease(path, "first", beat=1000.0):
            started.set()
            done.wait(WAIT)

    first = threading.Thread(target=work)
    first.start()
    assert started.wait(WAIT)
    threading.Timer(0.1, done.set).start()
    with lease(path, "second", patience=WAIT, beat=0.05) as held:
        held.confirm()
    first.join(WAIT)
