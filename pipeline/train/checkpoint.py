"""Checkpoints: the state of training, each in a unit `step-…`.

Its files are `trainable.safetensors` (the trainable weights: adapters, or the whole model),
`optimizer.pt` (optimizer and gradient scaler; loads with `weights_only`) and `state.json`
(numbers). The data order, the learning rate and all random numbers are pure functions of the seed
and the step, so they are not saved.
"""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import open_as_umask
from pipeline.core.commit import set_aside
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import RECEIPT_FILE, load
from pipeline.core.stage import Context
from pipeline.train.stability import StepHistory

VISIBILITY_TIMEOUT_SECONDS = 90.0


@dataclass
class TrainState:
    """The numbers of a checkpoint, at a step boundary; the field names are those in `state.json`.

    `step`: optimizer steps taken. `tokens`: targets seen. `seconds`: spent in steps, all attempts.
    `skipped`: skipped steps. `validated`: step of the last validation; `stale`: validations in a
    row without a better loss. `best_step`, `best_loss`: of the lowest validation loss. `attempts`:
    starts so far. `precision`: as resolved by the first attempt. `total`: steps of the schedule.
    `micro_batch`: windows of a micro-batch after memory was too small, 0 if it never was.
    `good_step`: the newest checkpoint to which a rollback may return; `rollbacks`: number of
    rollbacks; `slowdown`: factor that they left on the learning rate, 1 without rollbacks. `guard`:
    history of the steps, for spike detection.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    validated: int = -1
    best_step: int = -1
    best_loss: float = float("inf")
    attempts: int = 0
    precision: str = ""
    total: int = 0
    stale: int = 0
    micro_batch: int = 0
    good_step: int = -1
    rollbacks: int = 0
    slowdown: float = 1.0
    guard: StepHistory = field(default_factory=StepHistory)


def trainable_weights(model: Any) -> dict[str, Any]:
    """The weights that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model: Any, optimizer: Any, scaler: Any, state: TrainState) -> None:
    """Write the files of a checkpoint into a folder."""
    import torch
    from safetensors.torch import save_file

    weights = {name: p.detach().contiguous() for name, p in trainable_weights(model).items()}
    save_file(weights, folder / "trainable.safetensors")
    rest = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    # given a file name, torch would not report that the disk is full
    with (folder / "optimizer.pt").open("wb") as file:
        torch.save(rest, file)
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=1))
    open_as_umask(folder)


def read_state(folder: Path) -> TrainState:
    """The numbers of a checkpoint."""
    content = json.loads((folder / "state.json").read_text())
    return TrainState(**content | {"guard": StepHistory(**content["guard"])})


def restore(folder: Path, model: Any, optimizer: Any, scaler: Any) -> None:
    """Load a checkpoint into model, optimizer and scaler.

    Raises:
        CorruptInput: It contains more than tensors and numbers.
    """
    import torch

    restore_weights(folder, model)
    device = next(iter(trainable_weights(model).values())).device
    path = folder / "optimizer.pt"
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        what = f"{path} is a pickle that contains more than tensors and numbers; it is not loaded"
        raise CorruptInput(what, unit=folder) from None
    optimizer.load_state_dict(saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])


def restore_weights(folder: Path, model: Any) -> None:
    """Load only the trained weights of a checkpoint."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / "trainable.safetensors")
    with torch.no_grad():
        for name, parameter in trainable_weights(model).items():
            parameter.copy_(weights[name])


def unit_name(step: int) -> str:
    """The unit of the checkpoint of a step."""
    return f"step-{step:08d}"


def wait_until_visible(unit: Path) -> Path:
    """Wait until this host sees a checkpoint that another host wrote; network file systems lag."""
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_SECONDS
    while not (unit / RECEIPT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(1.0)
    return unit


def find_newest(ctx: Context) -> Path | None:
    """The newest checkpoint that is intact, if the best checkpoint it refers to is intact, too.

    Damaged ones are set aside, with a line in the log.

    Raises:
        UserError: They were made from another corpus or base model.
    """
    for unit in sorted(ctx.folder.glob("step-*"), reverse=True):
        _check_inputs(ctx, unit)
        if unit.exists() and _is_intact(ctx, unit):
            best_step = read_state(unit).best_step
            best = ctx.folder / unit_name(best_step)
            if best == unit or best_step < 0 or _is_intact(ctx, best):
                return unit
            aside = set_aside(unit, "damaged")
            ctx.log(f"IGNORED {unit.name}: its best checkpoint is gone; renamed to {aside.name}")
    return None


def _check_inputs(ctx: Context, unit: Path) -> None:
    """Raise `UserError` if a checkpoint with the same settings was made from other inputs."""
    receipt, inputs = load(unit), ctx.identity.inputs or {}
    if receipt is None or receipt.key != ctx.identity.key or receipt.inputs == inputs:
        return
    names = {*receipt.inputs, *inputs}
    changed = sorted(name for name in names if receipt.inputs.get(name) != inputs.get(name))
    raise UserError(
        f"{unit.parent} contains checkpoints that were trained on other data: "
        f"{', '.join(changed)} changed since",
        f"To start again with the present data, remove it: rm -r {shlex.quote(str(unit.parent))}",
    )


def _is_intact(ctx: Context, unit: Path) -> bool:
    """Whether the files of a checkpoint match its receipt; if not, set it aside."""
    try:
        receipt = ctx.has(unit.name)
        if receipt is None:
            raise CorruptInput(f"{unit} is missing, incomplete, or from another recipe")
        receipt.verify(unit)
        return True
    except CorruptInput as error:
        outcome = f"renamed to {set_aside(unit, 'damaged').name}" if unit.exists() else "it is gone"
        ctx.log(f"IGNORED a checkpoint: {error}; {outcome}")
        return False


def remove_old(ctx: Context, state: TrainState, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, the best, and the one for rollbacks."""
    for unit in sorted(ctx.folder.glob("step-*"))[:-keep]:
        if unit.name not in (unit_name(state.best_step), unit_name(state.good_step)):
            shutil.rmtree(set_aside(unit, "retired"), ignore_errors=True)


def remove_after(ctx: Context, step: int) -> Path | None:
    """Remove the checkpoints after `step`; return the newest intact one of the rest."""
    for unit in ctx.folder.glob("step-*"):
        if unit.name > unit_name(step):
            shutil.rmtree(set_aside(unit, "retired"), ignore_errors=True)
    return find_newest(ctx)
