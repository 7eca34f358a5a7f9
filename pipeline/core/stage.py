"""Stages, steps and items, and `run_item`, which computes every one of them.

A stage has one or more steps. A step declares what it needs and which settings it uses, and has two
functions, `items` and `run`. The results do not depend on how many tasks share the items. No step
knows how it is scheduled, skipped, committed or retried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

from pipeline.core import commit as commits
from pipeline.core import receipt as receipts
from pipeline.core.adoption import adopt, equivalent_units
from pipeline.core.commit import Draft, setting_aside_damaged_units, sweep
from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.errors import InputError
from pipeline.core.lease import HasEnded, Lease
from pipeline.core.receipt import Receipt, UnitIdentity, hash_json
from pipeline.core.registry import BaseModel, Dataset
from pipeline.core.settings import ConfigView, key_parts
from pipeline.core.stop import Stop


class RunConfig(Protocol):
    """The configuration of a run as stages see it; `pipeline.config.Config` is the real one.

    The sections are typed where they are used: a stage reads its own, and no stage imports the
    module that puts all of them together.
    """

    @property
    def name(self) -> str:
        """The name of the run."""

    @property
    def recipe(self) -> str:
        """The recipe that its settings began with."""

    @property
    def dataset(self) -> Dataset:
        """The corpus."""

    @property
    def model(self) -> BaseModel:
        """The base model."""

    @property
    def download(self) -> Any:
        """`pipeline.download.stage.DownloadConfig`."""

    @property
    def decompress(self) -> Any:
        """`pipeline.decompress.stage.DecompressConfig`."""

    @property
    def tokenize(self) -> Any:
        """`pipeline.tokenize.stage.TokenizeConfig`."""

    @property
    def train(self) -> Any:
        """`pipeline.train.stage.TrainConfig`."""

    @property
    def evaluate(self) -> Any:
        """`pipeline.evaluate.stage.EvaluateConfig`."""


@dataclass(frozen=True)
class Item:
    """A piece of work.

    Args:
        name: The unit whose receipt makes the item done; it is committed last.
        inputs: Digests of everything it reads, by name. None: the source is unavailable; existing
            outputs stay valid.
        data: Further arguments of `run`; not part of the identity.
    """

    name: str
    inputs: dict[str, str] | None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A finished step as later steps see it: its folder and the receipts of its items."""

    folder: Path
    receipts: dict[str, Receipt]

    @property
    def digest(self) -> str:
        """Content digest of the step."""
        return hash_json(sorted(r.digest for r in self.receipts.values()))

    def one(self) -> tuple[Path, Receipt]:
        """The unit folder and receipt of a step with a single item."""
        ((name, receipt),) = self.receipts.items()
        return self.folder / name, receipt


Inputs = Mapping[str, Input]


@dataclass(frozen=True)
class Step:
    """A node of the pipeline.

    Args:
        stage: The stage it belongs to.
        name: Unique name, `stage.what`.
        version: Increased only when the bytes it makes change.
        uses: Settings that decide those bytes, as `section.field`; part of `step_key` and the key.
        resolved: Settings that decide the bytes only through `Item.inputs`; part of the key only.
            So runs with other values use other folders; if the inputs are equal, finished units are
            adopted instead of computed again.
        reads: Settings that do not decide the bytes, or whole sections; part of neither.
        needs: Names of the steps whose output it reads.
        folder: Where its units go below the root, as `…/kind-….`, given the config and the first
            8 digits of all keys so far.
        items: The items, given config and finished inputs.
        run: Computes one item and commits its units.
        tasks_setting: Path of the setting with the number of tasks that share its items, such as
            `tokenize.tasks`; "" if it has one item.
        leased: Its items are long, so a lease keeps a second writer out.
        multi_process: Several processes work on one item; rank 0 commits.
        read_by: The only step that reads its units; once that is finished they may be released.
        estimate: How much it will write; None for next to nothing.
    """

    stage: str
    name: str
    version: int
    uses: tuple[str, ...]
    needs: tuple[str, ...]
    folder: Callable[[RunConfig, Mapping[str, str]], str]
    items: Callable[[RunConfig, Inputs], list[Item]]
    run: Callable[[RunConfig, Item, Inputs, Context], None]
    resolved: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    tasks_setting: str = ""
    leased: bool = False
    multi_process: bool = False
    read_by: str = ""
    estimate: Callable[[RunConfig, RunSizes], DiskNeed] | None = None

    def step_key(self, config: RunConfig) -> str:
        """Hash of the step alone: its name, version and the settings it uses."""
        return hash_json([self.name, self.version, key_parts(config, self.uses)])

    def key(self, config: RunConfig, needs: Mapping[str, str]) -> str:
        """The recipe key.

        Args:
            config: The run.
            needs: The recipe keys of the steps it needs, by name.
        """
        return hash_json([self.step_key(config), key_parts(config, self.resolved), needs])

    def view(self, config: RunConfig) -> RunConfig:
        """The config, restricted to the settings that the step declares.

        A section that is declared as a whole is returned itself; of any other section only the
        declared settings can be read.
        """
        return cast(
            "RunConfig", ConfigView(config, (*self.uses, *self.resolved, *self.reads), self.name)
        )


Progress = Callable[..., None]
"""`progress(done, total, unit="bytes", **facts)`: how far the item is; total may be None."""


@dataclass(frozen=True)
class Context:
    """The environment of a running step; built by `jobs`, or by a test.

    `stop`, `progress`, `log`: how the step is stopped and how it reports. `cpus`, `gpus`: granted
    to this process. `rank`, `local_rank`, `world_size`, `rendezvous`: its place among the processes
    of a training job. `attempt`: how often this task was started before. `label`, `has_ended`: see
    `Lease`. `code`: version of the code. `memo`: what the items of one task share, such as a model.

    `run_item` sets for each item: `folder`, of the step; `partial`, a path that is kept after an
    interruption; `identity`; and `confirm_lease`, which raises if the lease was lost.
    """

    stop: Stop = field(default_factory=Stop)
    progress: Progress = lambda *args, **facts: None
    log: Callable[[str], None] = print
    cpus: int = 1
    gpus: int = 0
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    rendezvous: str = ""
    attempt: int = 0
    label: str = "unnamed"
    has_ended: HasEnded = lambda label: None
    code: str = ""
    memo: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    partial: Path = Path()
    identity: UnitIdentity = field(default_factory=lambda: UnitIdentity("", "", {}))
    confirm_lease: Callable[[], None] = lambda: None

    def commit(self, name: str) -> AbstractContextManager[Draft]:
        """Write the unit `name`; see `pipeline.core.commit.commit`."""
        return commits.commit(self.folder, name, self.identity, self.confirm_lease)

    def has(self, name: str) -> Receipt | None:
        """The receipt of the unit `name` if this recipe has made it from these inputs."""
        return receipts.load_current(self.folder / name, self.identity)


@dataclass(frozen=True)
class Work:
    """A step of one run: its key, its folder, and its inputs once they exist.

    `wanted`: items whose units were released and are needed again.
    """

    step: Step
    config: RunConfig
    key: str
    folder: Path
    inputs: Inputs
    wanted: frozenset[str] = frozenset()

    def identity(self, item: Item, code: str = "") -> UnitIdentity:
        """What the units of this item are made from."""
        return UnitIdentity(self.key, self.step.step_key(self.config), item.inputs, code)

    def receipt_of(self, item: Item) -> Receipt | None:
        """The item's receipt, if it is done."""
        receipt = receipts.load_current(self.folder / item.name, self.identity(item))
        again = receipt is not None and receipt.released and item.name in self.wanted
        return None if again else receipt


def lease_path(work: Work, item: Item) -> Path:
    """Where the lease of an item of a leased step is."""
    return work.folder / f".lease-{item.name}"


def run_item(work: Work, item: Item, ctx: Context) -> str:
    """Compute one item unless it is done; safe to call at any time, from anywhere, twice.

    Returns:
        "skipped", "adopted" (equal work was found under another key) or "done".

    Raises:
        Interrupted: A stop was asked for; progress is safe.
        Busy: Another live process works on it.
        CorruptInput: A damaged unit was met; it was set aside, so the next run rebuilds it.
    """
    identity = work.identity(item, ctx.code)
    if work.receipt_of(item):
        return "skipped"
    ctx.stop.check()
    work.folder.mkdir(parents=True, exist_ok=True)
    if not ctx.rank:
        sweep(work.folder)
    with _lease(work, item, ctx) as confirm_lease:
        if work.receipt_of(item):
            return "skipped"
        for equivalent in () if ctx.rank else equivalent_units(work.folder, item.name):
            if adopt(equivalent, work.folder, identity, confirm_lease):
                return "adopted"
        bound = replace(
            ctx,
            folder=work.folder,
            partial=work.folder / f".partial-{item.name}-{hash_json(item.inputs)[:8]}",
            identity=identity,
            confirm_lease=confirm_lease,
        )
        with setting_aside_damaged_units():
            work.step.run(work.step.view(work.config), item, work.inputs, bound)
    # other ranks may not see the commit yet
    if not ctx.rank and not work.receipt_of(item):
        raise InputError(
            f"{work.step.name}: {item.name} ended without a valid {work.folder / item.name}"
        )
    return "done"


@contextmanager
def _lease(work: Work, item: Item, ctx: Context) -> Iterator[Callable[[], None]]:
    if not work.step.leased or ctx.rank:
        yield lambda: None
        return
    with Lease(lease_path(work, item), ctx.label, ctx.has_ended, check=ctx.stop.check) as lease:
        yield lease.confirm
