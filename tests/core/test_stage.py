"""One mechanism for skip and resume: small steps of our own, run by the real `run_item`."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import dag
from pipeline.config import Config, resolve
from pipeline.core import commit as commits
from pipeline.core import receipt
from pipeline.core.errors import Busy, CorruptInput, InputError, Interrupted
from pipeline.core.lease import Lease
from pipeline.core.receipt import load_intact, verify
from pipeline.core.stage import Context, Inputs, Item, Step, run_item
from pipeline.core.stop import Stop

PARTS = 6


class Kitchen:
    """Two steps, as small as they can be: `cut.parts` makes text, `count.words` reads it.

    What ran is told by `ran`; `text` is what the first step finds outside.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.text = "the text of the corpus"
        self.slowness = 0.0
        self.before_commit: Callable[[Context], None] = lambda ctx: None
        self.steps = (
            Step(
                stage="cut",
                name="cut.parts",
                version=1,
                uses=("decompress.chunk_bytes", "train.lr"),
                reads=("tokenize.tasks",),
                needs=(),
                folder=lambda config, keys: f"data/parts-{keys['cut.parts']}",
                items=lambda config, inputs: [Item("complete", {})],
                run=self.cut,
                leased=True,
            ),
            Step(
                stage="count",
                name="count.words",
                version=1,
                uses=("evaluate.context",),
                needs=("cut.parts",),
                folder=lambda config, keys: f"data/counts-{keys['count.words']}",
                items=self.parts,
                run=self.count,
                tasks_setting="tokenize.tasks",
            ),
        )

    def cut(self, config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
        """Commit some parts, one after the other, and the list of them."""
        ctx.partial.mkdir(parents=True, exist_ok=True)
        assert config.tokenize.tasks
        made = {}
        for n in range(PARTS):
            name = f"part-{n}"
            ctx.stop.check()
            if ctx.has(name) is None:
                self.ran.append(name)
                with (ctx.partial / "log").open("a") as log:
                    log.write(f"{name}\n")
                with ctx.commit(name) as draft:
                    for line in range(20):
                        with (draft.path / "text").open("a") as file:
                            file.write(f"{self.text}, part {n}, line {line}\n" * 50)
                        time.sleep(self.slowness)
                    self.before_commit(ctx)
            made[name] = receipt.load(ctx.folder / name).digest
        with ctx.commit(item.name) as draft:
            draft.units = made

    def parts(self, config: Config, inputs: Inputs) -> list[Item]:
        """An item a part."""
        _, complete = inputs["cut.parts"].one()
        return [Item(name, {"part": digest}) for name, digest in complete.units.items()]

    def count(self, config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
        """Count the words of a part, verifying it."""
        self.ran.append(f"count {item.name}")
        unit = inputs["cut.parts"].folder / item.name
        path = verify(unit, "text", receipt.load(unit))
        with ctx.commit(item.name) as draft:
            (draft.path / "words").write_text(str(len(path.read_text().split())))


@pytest.fixture
def kitchen(monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    kitchen = Kitchen()
    monkeypatch.setattr(dag, "STEPS", kitchen.steps)
    return kitchen


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    corpus = tmp_path / "any.yaml"
    corpus.write_text("urls: ['https://localhost/any']")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return lambda *words: resolve(str(corpus), str(model), "lora", list(words), "any")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def context(**more: Any) -> Context:
    return Context(**{"label": "me", "has_ended": lambda label: True, **more})


def go(config: Config, root: Path, **more: Any) -> list[str]:
    """Run what is to do, as a scheduler would; returns the outcome of every item."""
    outcomes = []
    for step in dag.STEPS:
        node = dag.find(config, root, step.name)
        if node.items is None:
            raise InputError(f"{step.name} cannot start")
        outcomes += [run_item(node.work, item, context(**more)) for item in node.items]
    return outcomes


def content(root: Path) -> dict[str, str]:
    """Every committed file below a root: its sha256."""
    return {
        path.relative_to(root).as_posix(): receipt.hash_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != receipt.RECEIPT_FILE and "/." not in path.as_posix()
    }


def test_what_is_done_is_skipped(kitchen: Kitchen, config: Any, root: Path) -> None:
    assert go(config(), root) == ["done"] * (1 + PARTS)
    assert all(node.complete for node in dag.survey(config(), root))
    kitchen.ran.clear()
    before = content(root)
    assert go(config(), root) == ["skipped"] * (1 + PARTS)
    stopped = Stop()
    stopped.set("a test")
    assert go(config(), root, stop=stopped) == ["skipped"] * (1 + PARTS)
    assert kitchen.ran == []
    assert content(root) == before


@pytest.mark.parametrize(
    ("word", "cut", "count"),
    [
        ("decompress.chunk_bytes=5000", "done", "adopted"),
        ("train.lr=1e-3", "done", "adopted"),
        ("decompress.level=3", "skipped", "skipped"),
        ("train.seed=7", "skipped", "skipped"),
        ("tokenize.tasks=3", "skipped", "skipped"),
        ("train.checkpoint_every=7", "skipped", "skipped"),
    ],
)
def test_a_changed_field_runs_what_declares_it_and_equal_content_runs_nothing(
    kitchen: Kitchen, config: Any, root: Path, word: str, cut: str, count: str
) -> None:
    go(config(), root)
    before = content(root)
    kitchen.ran.clear()
    assert go(config(word), root) == [cut, *[count] * PARTS]
    assert not any(name.startswith("count") for name in kitchen.ran)
    assert bool(kitchen.ran) == (cut == "done")
    assert {k: v for k, v in content(root).items() if k in before} == before
    assert go(config(), root) == ["skipped"] * (1 + PARTS), "and the first is still good"


def test_other_content_upstream_runs_what_reads_it(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    go(config(), root)
    kitchen.text = "another text"
    assert go(config("train.lr=1"), root) == ["done"] * (1 + PARTS)


def test_a_raised_version_runs_the_step_again(
    kitchen: Kitchen, config: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(config(), root)
    cut, count = kitchen.steps
    monkeypatch.setattr(dag, "STEPS", (cut, replace(count, version=2)))
    assert go(config(), root) == ["skipped", *["done"] * PARTS]


def put_in_front(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step that makes the same whatever its setting: other keys below it, equal inputs."""
    cut, count = kitchen.steps
    front = replace(
        count,
        name="front.text",
        uses=("decompress.level",),
        needs=(),
        folder=lambda config, keys: f"data/front-{keys['front.text']}",
        items=lambda config, inputs: [Item("text", {})],
        run=reading(lambda config: None),
    )
    cut = replace(
        cut,
        needs=("front.text",),
        items=lambda config, inputs: [Item("complete", {"text": inputs["front.text"].digest})],
    )
    monkeypatch.setattr(dag, "STEPS", (front, cut, count))


def test_a_list_is_adopted_with_its_units(
    kitchen: Kitchen, config: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_front(kitchen, monkeypatch)
    assert go(config(), root) == ["done"] * (2 + PARTS)
    kitchen.ran.clear()
    assert go(config("decompress.level=5"), root) == ["done", *["adopted"] * (1 + PARTS)]
    assert kitchen.ran == []
    for step in ("cut.parts", "count.words"):
        one, other = (
            dag.find(config(*words), root, step).work.folder
            for words in ([], ["decompress.level=5"])
        )
        assert one != other
        assert content(one) == content(other) != {}


def reading(read: Callable[[Any], Any]) -> Callable[..., None]:
    def run(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
        read(config)
        with ctx.commit(item.name):
            pass

    return run


def probe(config: Config, root: Path, read: Callable[[Any], Any]) -> str:
    """Run a step that declares little and reads `read`."""
    step = Step(
        stage="probe",
        name="probe.it",
        version=1,
        uses=("train.lr", "dataset.content"),
        reads=("decompress", "tokenize.tasks"),
        needs=(),
        folder=lambda config, keys: f"data/probe-{keys['probe.it']}",
        items=lambda config, inputs: [Item("x", {})],
        run=reading(read),
    )
    work = dag.Work(step, config, "k" * 64, root / "data" / "probe-x", {})
    return run_item(work, Item("x", {}), context())


@pytest.mark.parametrize(
    "read",
    [
        lambda c: c.train.lr,
        lambda c: c.decompress.level,
        lambda c: c.decompress,
        lambda c: c.dataset.content["urls"],
        lambda c: c.tokenize.tasks,
    ],
)
def test_a_declared_setting_may_be_read(config: Any, root: Path, read: Any) -> None:
    assert probe(config(), root, read) == "done"


@pytest.mark.parametrize(
    ("read", "path"),
    [
        (lambda c: c.train.seed, "train.seed"),
        (lambda c: c.tokenize.validation, "tokenize.validation"),
        (lambda c: c.dataset.urls, "dataset.urls"),
        (lambda c: c.evaluate, "evaluate"),
        (lambda c: c.name, "name"),
        (lambda c: c.train.model_dump(), "train.model_dump"),
    ],
)
def test_an_undeclared_setting_cannot_be_read(
    config: Any, root: Path, read: Any, path: str
) -> None:
    with pytest.raises(LookupError, match=rf"step probe\.it reads the setting {path}, which it"):
        probe(config(), root, read)
    assert not list(root.glob("data/*/x"))


def flip(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unit_of(config: Config, root: Path, step: str, name: str) -> Path:
    return dag.find(config, root, step).work.folder / name


def test_a_flipped_byte_is_noticed_by_who_reads_it_and_the_next_run_mends_it(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    go(config(), root)
    good = content(root)
    part, count = (unit_of(config(), root, s, "part-3") for s in ("cut.parts", "count.words"))
    flip(part / "text")
    assert go(config(), root) == ["skipped"] * (1 + PARTS), "nobody reads it, nobody minds"
    commits.set_aside(count, "gone")
    kitchen.ran.clear()
    with pytest.raises(CorruptInput, match=r"text is damaged: its sha256 is") as caught:
        go(config(), root)
    assert "run the same command again to rebuild it" in str(caught.value)
    assert caught.value.exit_code == 3
    (aside,) = part.parent.glob(".damaged-part-3-*")
    assert aside.name in str(caught.value)
    assert not part.exists()
    nodes = list(dag.survey(config(), root))
    assert not nodes[0].complete
    assert nodes[1].items is None
    kitchen.ran.clear()
    assert go(config(), root) == ["done", *["skipped"] * 3, "done", *["skipped"] * 2]
    assert kitchen.ran == ["part-3", "count part-3"], "and nothing else"
    assert content(root) == good


def test_damage_that_was_adopted_does_not_come_back(
    kitchen: Kitchen, config: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two keys share the bytes on disk: who finds the damage cannot take the other's for good."""
    put_in_front(kitchen, monkeypatch)
    one, other = config(), config("decompress.level=5")
    go(one, root)
    good = content(root)
    assert "adopted" in go(other, root)
    part = unit_of(other, root, "cut.parts", "part-2")
    flip(part / "text")
    for each, mended in ((other, "done"), (one, "adopted")):
        for config_ in (one, other):
            shutil.rmtree(unit_of(config_, root, "count.words", "part-2"), ignore_errors=True)
        with pytest.raises(CorruptInput):
            go(each, root)
        assert go(each, root)[1] == mended
    go(other, root)
    for each in (other, one):
        assert set(go(each, root)) == {"skipped"}
    assert {k: v for k, v in content(root).items() if k in good} == good


def test_many_that_meet_the_same_damage_are_told_the_same(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    """As when every task of an array finds the tokenizer damaged."""
    rounds, tasks = 20, 4
    for turn in range(rounds):
        broken = root / f"unit-{turn}"
        broken.mkdir(parents=True)
        gate = threading.Barrier(tasks)
        told: list[type] = []

        def run(
            config: Config, item: Item, inputs: Inputs, ctx: Context,
            broken: Path = broken, gate: threading.Barrier = gate,
        ) -> None:  # fmt: skip
            gate.wait(60)
            raise CorruptInput(f"{broken} is damaged", unit=broken)

        step = replace(kitchen.steps[1], run=run)
        work = dag.Work(step, config(), "k" * 64, root / "data" / "probe-x", {})

        def task(n: int, work: dag.Work = work, told: list[type] = told) -> None:
            try:
                run_item(work, Item(f"x-{n}", {}), context())
            except Exception as caught:
                told.append(type(caught))

        threads = [threading.Thread(target=task, args=(n,)) for n in range(tasks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert told == [CorruptInput] * tasks
        assert len(list(root.glob(f".damaged-unit-{turn}-*"))) == 1
        assert not broken.exists()


def test_a_stop_leaves_progress_and_the_next_run_goes_on_from_there(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    stop = Stop()
    kitchen.before_commit = lambda ctx: stop.set("a test") if len(kitchen.ran) == 3 else None
    with pytest.raises(Interrupted, match="a test"):
        go(config(), root, stop=stop)
    folder = dag.find(config(), root, "cut.parts").work.folder
    assert sorted(p.name for p in folder.glob("part-*")) == ["part-0", "part-1", "part-2"]
    (partial,) = folder.glob(".partial-complete-*")
    assert (partial / "log").read_text().split() == ["part-0", "part-1", "part-2"]
    assert not list(folder.glob(".lease*")), "the lease is given back"
    assert go(config(), root)[0] == "done"
    assert kitchen.ran[:6] == [f"part-{n}" for n in range(6)], "none is made twice"
    assert (partial / "log").read_text().split() == [f"part-{n}" for n in range(6)]


def test_a_stop_before_anything_began_begins_nothing(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    stop = Stop()
    stop.set("a test")
    with pytest.raises(Interrupted):
        go(config(), root, stop=stop)
    assert not root.exists()


@pytest.mark.slow
def test_a_kill_at_any_instant_costs_one_unit_and_changes_no_byte(
    kitchen: Kitchen, config: Any, tmp_path: Path
) -> None:
    settings = config()
    go(settings, tmp_path / "undisturbed")
    wanted = content(tmp_path / "undisturbed")
    chance = random.Random(3)
    kitchen.slowness = 0.0005
    kills = 0
    for turn in range(11):
        root = tmp_path / f"killed-{turn}"
        for _ in itertools.count():
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    go(settings, root)
                    code = 0
                finally:
                    os._exit(code)
            time.sleep(chance.uniform(0.002, 0.06))
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            for unit in root.glob("data/*/[!.]*"):
                assert load_intact(unit), f"{unit} is half a unit"
            if status == 0:
                break
            assert status == signal.SIGKILL, "a run after a kill does not fail"
            kills += 1
        assert content(root) == wanted
        assert not list(root.glob("data/*/.tmp-*")), "what the dead left is swept away"
    assert kills >= 30, "the storm is worth its name"


def test_an_item_that_commits_nothing_is_not_done(
    kitchen: Kitchen, config: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = replace(kitchen.steps[0], run=lambda config, item, inputs, ctx: None)
    monkeypatch.setattr(dag, "STEPS", (step,))
    with pytest.raises(InputError, match=r"cut\.parts: complete ended without a valid .*complete"):
        go(config(), root)


def test_an_exclusive_item_has_one_worker_at_a_time(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    node = dag.find(config(), root, "cut.parts")
    assert node.items
    node.work.folder.mkdir(parents=True)
    with Lease(node.work.folder / ".lease-complete", "somebody", lambda label: True):
        with pytest.raises(Busy, match="is being worked on by somebody"):
            run_item(node.work, node.items[0], context(has_ended=lambda label: False))
        assert kitchen.ran == []
        assert run_item(node.work, node.items[0], context(rank=1)) == "done", "ranks share one"


def test_two_runs_of_one_exclusive_item_compute_it_once(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    kitchen.slowness = 0.002
    node = dag.find(config(), root, "cut.parts")
    assert node.items
    outcomes: list[str] = []

    def task() -> None:
        try:
            outcomes.append(
                run_item(node.work, node.items[0], context(has_ended=lambda label: False))
            )
        except Busy:
            outcomes.append("busy")

    threads = [threading.Thread(target=task) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) in (["busy", "done"], ["done", "skipped"])
    assert kitchen.ran == [f"part-{n}" for n in range(PARTS)]


def test_a_worker_that_lost_its_lease_commits_no_more(
    kitchen: Kitchen, config: Any, root: Path
) -> None:
    def usurp(ctx: Context) -> None:
        if len(kitchen.ran) == 3:
            Lease(ctx.folder / ".lease-complete", "usurper", lambda label: True).__enter__()

    kitchen.before_commit = usurp
    with pytest.raises(Busy, match="was taken over by usurper"):
        go(config(), root)
    folder = dag.find(config(), root, "cut.parts").work.folder
    assert sorted(p.name for p in folder.glob("part-*")) == ["part-0", "part-1"]
    assert not list(folder.glob(".tmp-*"))


def test_what_was_made_from_a_source_that_is_gone_stays_good(
    kitchen: Kitchen, config: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str] | None] = [{"file": "size and time"}, None, {"file": "another"}]
    step = replace(
        kitchen.steps[0], items=lambda config, inputs: [Item("complete", found[0])]
    )  # fmt: skip
    monkeypatch.setattr(dag, "STEPS", (step,))
    assert go(config(), root) == ["done"]
    found.pop(0)
    assert go(config(), root) == ["skipped"]
    found.pop(0)
    assert go(config(), root) == ["done"]
