"""A unit is whole or absent, whoever is killed, races, or tampers with it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.core import commit as leftovers
from pipeline.core import receipt as receipts
from pipeline.core.adoption import adopt
from pipeline.core.commit import Draft, commit, set_aside, sweep
from pipeline.core.errors import Busy, CorruptInput, Interrupted, UserError
from pipeline.core.receipt import Receipt, UnitIdentity, load_current, load_intact
from tests.helpers.runs import Mount

IDENTITY = UnitIdentity(key="k" * 64, own="o" * 64, inputs={"corpus": "d" * 64}, code="abc")
FORK = multiprocessing.get_context("fork")


def fill(draft: Draft, seed: int, big: int = 2_000_000) -> None:
    """Three files, one in a folder, one big; all tell the seed."""
    draft.path.joinpath("small.txt").write_text(f"seed {seed}")
    draft.path.joinpath("deep").mkdir()
    draft.path.joinpath("deep", "empty").touch()
    draft.path.joinpath("big.bin").write_bytes(random.Random(seed).randbytes(1000) * (big // 1000))
    draft.facts = {"seed": seed}


def make(
    folder: Path, name: str = "unit", seed: int = 0, identity: UnitIdentity = IDENTITY
) -> Path:
    with commit(folder, name, identity) as draft:
        fill(draft, seed, big=20_000)
    return folder / name


def check(unit: Path) -> Receipt:
    """The receipt of a unit that is whole, byte by byte."""
    receipt = load_intact(unit)
    assert receipt is not None, f"{unit} is half a unit"
    for name in receipt.outputs:
        receipts.verify(unit, name, receipt)
    present = {p.relative_to(unit).as_posix() for p in unit.rglob("*") if p.is_file()}
    assert present == {receipts.RECEIPT_FILE, *receipt.outputs}
    return receipt


def visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def hidden(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("."))


def flip(path: Path, place: int = 0) -> None:
    """Change one bit, and neither size nor times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def child(work: Callable[[], None]) -> int:
    """Fork this warm process to do some work; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def test_a_unit_appears_at_the_end_of_the_block_and_tells_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "not yet there"
    with commit(folder, "unit", IDENTITY) as draft:
        fill(draft, 1)
        draft.units = {"other": "0" * 64}
        assert visible(folder) == []
    receipt = receipts.load(folder / "unit")
    assert receipt is not None
    assert (receipt.unit, receipt.key, receipt.own, receipt.code) == (
        "unit", IDENTITY.key, IDENTITY.own, "abc",
    )  # fmt: skip
    assert receipt.inputs == IDENTITY.inputs
    assert receipt.facts == {"seed": 1}
    assert set(receipt.outputs) == {"small.txt", "deep/empty", "big.bin"}
    assert receipt.outputs["big.bin"].size == 2_000_000
    assert receipt.host == socket.gethostname()
    assert receipt.seconds > 0
    assert time.time() - receipt.written < 60
    assert hidden(folder) == []


def test_a_hash_taken_while_writing_is_believed(tmp_path: Path) -> None:
    with commit(tmp_path, "unit", IDENTITY) as draft:
        (draft.path / "file").write_text("x")
        draft.hashes["file"] = "f" * 64
    receipt = load_intact(tmp_path / "unit")
    assert receipt is not None
    assert receipt.outputs["file"].sha256 == "f" * 64


def test_the_digest_is_of_the_content_and_of_nothing_else(tmp_path: Path) -> None:
    one = check(make(tmp_path / "here", "unit", 1))
    renamed = UnitIdentity("another key", "another recipe", {"x": "y"}, "code")
    assert check(make(tmp_path / "there", "other name", 1, renamed)).digest == one.digest
    assert check(make(tmp_path / "there", "other content", 2)).digest != one.digest


def test_a_unit_is_valid_for_its_own_recipe_and_inputs_only(tmp_path: Path) -> None:
    unit = make(tmp_path)
    assert load_current(unit, IDENTITY)
    assert load_current(unit, UnitIdentity(IDENTITY.key, "", None)), (
        "where the source is gone it stays good"
    )
    assert not load_current(unit, UnitIdentity("other", IDENTITY.own, IDENTITY.inputs))
    assert not load_current(unit, UnitIdentity(IDENTITY.key, IDENTITY.own, {"corpus": "e" * 64}))
    assert not load_current(unit, UnitIdentity(IDENTITY.key, IDENTITY.own, {}))
    assert not load_current(tmp_path / "absent", IDENTITY)


@pytest.mark.parametrize(
    "error", [ValueError, OSError, KeyboardInterrupt, Interrupted, SystemExit, CorruptInput]
)
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), commit(tmp_path, "unit", IDENTITY) as draft:  # noqa: PT012
        fill(draft, 1)
        raise error("a test")
    assert list(tmp_path.iterdir()) == []


def test_a_lost_right_to_commit_leaves_nothing(tmp_path: Path) -> None:
    def guard() -> None:
        assert visible(tmp_path) == []
        raise Busy("taken over")

    with pytest.raises(Busy), commit(tmp_path, "unit", IDENTITY, guard) as draft:
        fill(draft, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with commit(tmp_path, "unit", IDENTITY) as draft:
                fill(draft, 1)
        except UserError as error:
            (tmp_path / "told").write_text(error.what.rpartition("reached")[2])

    assert os.waitpid(child(work), 0)[1] == 0
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [
        ("told", " the limit of 100 kB on the size of files (File too large)")
    ]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, mount: Mount) -> None:
    small_disk = mount(tmp_path / "disk", "size=1m")
    before = check(make(small_disk, "unit", 1))
    for name in ("unit", "another"):
        with (
            pytest.raises(UserError, match=r"is full \(No space left on device, "),
            commit(small_disk, name, IDENTITY) as draft,
        ):
            fill(draft, 2)
    assert [path.name for path in small_disk.iterdir()] == ["unit"]
    assert check(small_disk / "unit") == before


def test_a_folder_that_may_not_be_written_is_an_error_and_not_a_unit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), commit(tmp_path / "file" / "below", "unit", IDENTITY):  # noqa: PT011
        pytest.fail("the block must not be entered")


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_units_whole_or_absent(tmp_path: Path) -> None:
    names = [f"unit-{n}" for n in range(4)]
    chance = random.Random(1)
    kills = 90

    def work(seed: int, committed: Connection) -> Callable[[], None]:
        def forever() -> None:
            for n in range(10_000):
                with commit(tmp_path, names[(seed + n) % len(names)], IDENTITY) as draft:
                    fill(draft, 10_000 * seed + n)
                committed.send_bytes(b"")

        return forever

    in_commit, seen = 0, set()
    for seed in range(kills):
        signals, committed = FORK.Pipe(duplex=False)
        with signals, committed:
            pid = child(work(seed, committed))
            times = []
            for _ in range(2):
                assert signals.poll(60)
                signals.recv_bytes()
                times.append(time.monotonic())
            one_commit = times[1] - times[0]  # how long it takes under the present load
            time.sleep(chance.uniform(0.0, 3 * one_commit))
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        in_commit += any(p.name.startswith(".tmp-") for p in hidden(tmp_path))
        for unit in visible(tmp_path):
            seen.add(unit.name)
            seed_written = check(unit).facts["seed"]
            assert (unit / "small.txt").read_text() == f"seed {seed_written}"
        sweep(tmp_path)
        assert not list(tmp_path.glob(".tmp-*")), "its writer is dead"
    assert in_commit > kills / 2, "the storm hits the instants that matter"
    assert seen == set(names)
    for name in names:
        make(tmp_path, name, 7)
        assert check(tmp_path / name).facts == {"seed": 7}


def race(folder: Path, rounds: int, seeds: tuple[int, int]) -> None:
    """Two processes commit the same unit at the same instant, again and again."""
    gate = FORK.Barrier(2)

    def work(seed: int) -> None:
        for n in range(rounds):
            with commit(folder, f"unit-{n}", IDENTITY) as draft:
                fill(draft, seed, big=5_000)
                gate.wait(60)

    racers = [FORK.Process(target=work, args=(seed,)) for seed in seeds]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)], ids=["equal", "unequal"])
@pytest.mark.parametrize("standing", ["nothing", "another", "damaged"])
def test_two_that_race_for_one_unit_end_with_one_good_result(
    tmp_path: Path, seeds: tuple[int, int], standing: str
) -> None:
    rounds = 60
    if standing != "nothing":
        for n in range(rounds):
            unit = make(tmp_path, f"unit-{n}", 9)
            if standing == "damaged":
                (unit / "big.bin").unlink()
    race(tmp_path, rounds, seeds)
    assert len(visible(tmp_path)) == rounds
    for unit in visible(tmp_path):
        seed = check(unit).facts["seed"]
        assert seed in seeds
        assert (unit / "small.txt").read_text() == f"seed {seed}"
    assert hidden(tmp_path) == [], "the loser leaves nothing behind"


def test_an_equal_unit_stays_as_it_is(tmp_path: Path) -> None:
    unit = make(tmp_path, seed=1)
    before = unit.stat().st_ino
    make(tmp_path, seed=1)
    assert unit.stat().st_ino == before
    make(tmp_path, seed=2)
    assert unit.stat().st_ino != before
    assert check(unit).facts == {"seed": 2}


def missing_file(unit: Path) -> None:
    (unit / "small.txt").unlink()


def shorter_file(unit: Path) -> None:
    os.truncate(unit / "big.bin", 100)


def missing_receipt(unit: Path) -> None:
    (unit / receipts.RECEIPT_FILE).unlink()


def truncated_receipt(unit: Path) -> None:
    os.truncate(unit / receipts.RECEIPT_FILE, 100)


def empty_receipt(unit: Path) -> None:
    os.truncate(unit / receipts.RECEIPT_FILE, 0)


def odd_receipt(unit: Path) -> None:
    (unit / receipts.RECEIPT_FILE).write_text('["no receipt"]')


def older_receipt(unit: Path) -> None:
    content = json.loads((unit / receipts.RECEIPT_FILE).read_text())
    (unit / receipts.RECEIPT_FILE).write_text(json.dumps({**content, "unknown": 1}))


def renamed_receipt(unit: Path) -> None:
    content = json.loads((unit / receipts.RECEIPT_FILE).read_text())
    (unit / receipts.RECEIPT_FILE).write_text(json.dumps({**content, "unit": "another"}))


def empty_folder(unit: Path) -> None:
    shutil.rmtree(unit)
    unit.mkdir()


DAMAGE = [
    missing_file, shorter_file, missing_receipt, truncated_receipt, empty_receipt, odd_receipt,
    older_receipt, renamed_receipt, empty_folder,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_unit_is_none_and_is_replaced(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    unit = make(tmp_path)
    damage(unit)
    assert load_intact(unit) is None
    assert load_current(unit, IDENTITY) is None
    make(tmp_path)
    assert check(unit).facts == {"seed": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]


def test_a_changed_byte_in_a_receipt_never_lets_other_content_pass(tmp_path: Path) -> None:
    unit = make(tmp_path)
    good = check(unit)
    path = unit / receipts.RECEIPT_FILE
    for place in range(path.stat().st_size):
        flip(path, place)
        found = load_intact(unit)
        if found is not None:
            assert found.outputs.keys() == good.outputs.keys()
            for name in found.outputs:
                if found.outputs[name] != good.outputs[name]:
                    with pytest.raises(CorruptInput):
                        receipts.verify(unit, name, found)
        flip(path, place)
    assert check(unit) == good


def test_a_flipped_byte_is_noticed_by_who_reads_it(tmp_path: Path) -> None:
    unit = make(tmp_path)
    receipt = check(unit)
    assert receipts.verify(unit, "big.bin", receipt) == unit / "big.bin"
    flip(unit / "big.bin", 19_999)
    assert load_intact(unit) == receipt, "plan and status do not read the files"
    with pytest.raises(CorruptInput, match=r"big\.bin is damaged: its sha256 is") as caught:
        receipts.verify(unit, "big.bin", receipt)
    assert caught.value.unit == unit
    (unit / "big.bin").unlink()
    with pytest.raises(CorruptInput, match=r"cannot read .*No such file") as caught:
        receipts.verify(unit, "big.bin", receipt)
    assert caught.value.unit == unit


def make_list(folder: Path, identity: UnitIdentity = IDENTITY, seed: int = 1) -> Path:
    """A unit that declares three others complete."""
    parts = {f"part-{n}": check(make(folder, f"part-{n}", seed + n, identity)) for n in range(3)}
    with commit(folder, "complete", identity) as draft:
        draft.units = {name: receipt.digest for name, receipt in parts.items()}
        draft.facts = {"parts": 3}
    return folder / "complete"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_list_is_whole_while_what_it_lists_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    complete = make_list(tmp_path)
    before = load_intact(complete)
    assert before
    damage(tmp_path / "part-1")
    assert load_intact(complete) is None
    make(tmp_path, "part-1", 5)
    assert load_intact(complete) is None, "another content is not what it listed"
    make(tmp_path, "part-1", 2)
    assert load_intact(complete) == before


def test_the_digest_of_a_list_is_that_of_what_it_lists(tmp_path: Path) -> None:
    digests = [check(make_list(tmp_path / str(n), seed=n)).digest for n in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


EQUIVALENT = UnitIdentity(key="l" * 64, own=IDENTITY.own, inputs=IDENTITY.inputs, code="def")


def test_equal_work_under_another_key_is_adopted_with_what_it_lists(tmp_path: Path) -> None:
    complete = make_list(tmp_path / "one")
    other = tmp_path / "other"
    assert adopt(complete, other, EQUIVALENT)
    assert {p.name for p in other.iterdir()} == {"complete", "part-0", "part-1", "part-2"}
    for unit in visible(other):
        receipt, source = check(unit), check(tmp_path / "one" / unit.name)
        assert load_current(unit, EQUIVALENT)
        assert (receipt.digest, receipt.facts, receipt.units) == (
            source.digest, source.facts | {"adopted": True}, source.units,
        )  # fmt: skip
        for name in receipt.outputs:
            assert (unit / name).stat().st_ino == (
                tmp_path / "one" / unit.name / name
            ).stat().st_ino, "it takes no space"
    shutil.rmtree(tmp_path / "one")
    check(other / "complete")


@pytest.mark.parametrize(
    "identity",
    [UnitIdentity(EQUIVALENT.key, "other", EQUIVALENT.inputs),
     UnitIdentity(EQUIVALENT.key, EQUIVALENT.own, {}),
     UnitIdentity(EQUIVALENT.key, EQUIVALENT.own, None)],
    ids=["another recipe", "other inputs", "inputs that cannot be known"],
)  # fmt: skip
def test_other_work_is_not_adopted(tmp_path: Path, identity: UnitIdentity) -> None:
    complete = make_list(tmp_path / "one")
    assert not adopt(complete, tmp_path / "other", identity)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_half_a_unit_is_not_adopted(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    complete = make_list(tmp_path / "one")
    damage(tmp_path / "one" / "part-2")
    assert not adopt(complete, tmp_path / "other", EQUIVALENT)


def test_a_flipped_byte_is_not_adopted(tmp_path: Path) -> None:
    complete = make_list(tmp_path / "one")
    flip(tmp_path / "one" / "part-1" / "big.bin", 77)
    assert not adopt(complete, tmp_path / "other", EQUIVALENT)
    for unit in visible(tmp_path / "other"):
        check(unit)
    assert not (tmp_path / "other" / "complete").exists()
    make(tmp_path / "one", "part-1", 1)
    shutil.rmtree(tmp_path / "one" / "part-1")
    make(tmp_path / "one", "part-1", 2)
    assert adopt(complete, tmp_path / "other", EQUIVALENT)


def test_sweeping_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    dead = child(lambda: None)
    os.waitpid(dead, 0)
    host = socket.gethostname()
    here, token = os.getpid(), uuid.uuid4().hex[:8]
    fate = {
        f".tmp-a-{host}-{dead}-{token}": False,
        f".tmp-a-b-{host}-{here}-{token}": True,
        f".tmp-a-elsewhere-{dead}-{token}": True,
        f".tmp-a-elsewhere-{here}-{token[::-1]}": True,
        ".tmp-old": True,  # who says that its writer's clock is ours?
        ".partial-a-12345678": True,
        f".damaged-a-{host}-{dead}-{token}": True,
    }
    for name in fate:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    unit = make(tmp_path)
    day_ago = time.time() - 2 * leftovers.DAY_SECONDS
    os.utime(tmp_path / ".tmp-old", (day_ago, day_ago))
    os.utime(unit, (day_ago, day_ago))
    sweep(tmp_path)
    check(unit)
    assert {name: (tmp_path / name).exists() for name in fate} == fate


def test_a_unit_set_aside_keeps_its_files_and_counts_no_more(tmp_path: Path) -> None:
    unit = make(tmp_path)
    aside = set_aside(unit, "damaged")
    assert aside.parent == tmp_path
    assert aside.name.startswith(".damaged-unit-")
    assert (aside / "big.bin").exists()
    assert load_intact(unit) is None
    assert load_intact(aside) is None
    make(tmp_path)
    assert set_aside(unit, "damaged") != aside
