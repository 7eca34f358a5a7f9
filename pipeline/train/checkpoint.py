"""Checkpoints: the state of a training as the files of one unit, `step-…`.

`trainable.safetensors` (what is learned: adapters, or all weights), `optimizer.pt` (optimizer and
gradient scaler; loads with `weights_only`), `state.json` (numbers). The order of the data, the
learning rate and all random numbers are pure functions of the seed and of the step.
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
from pipeline.core.receipt import NAME as RECEIPT
from pipeline.core.receipt import load
from pipeline.core.stage import Context
from pipeline.train.stability import Memory

LAG = 90.0


@dataclass
class State:
    """Where a training stands, at a step boundary.

    `step`: optimizer steps taken. `tokens`: targets seen. `seconds`: spent in steps, all attempts.
    `validated`: the last step that was validated; `stale`: validations in a row that were not
    better. `attempts`: starts so far. `precision`: as the first step resolved it. `total`: steps
    of the schedule. `micro_batch`: windows that memory has allowed, 0 if it was never short.
    `good_step`: the newest checkpoint at which no step was being skipped, and for which it did not
    take a stop; `rollbacks`: returns to such a one, `slowdown`: the share of the learning rate that
    they have left.
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
    guard: Memory = field(default_factory=Memory)


def trainable(model: Any) -> dict[str, Any]:
    """The weights that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model: Any, optimizer: Any, scaler: Any, state: State) -> None:
    """Write a checkpoint's files into a folder."""
    import torch
    from safetensors.torch import save_file

    weights = {name: p.detach().contiguous() for name, p in trainable(model).items()}
    save_file(weights, folder / "trainable.safetensors")
    rest = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    # a file, not its name: with that torch does not say that the disk is full
    with (folder / "optimizer.pt").open("wb") as file:
        torch.save(rest, file)
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=1))
    open_as_umask(folder)


def read(folder: Path) -> State:
    """The numbers of a checkpoint."""
    content = json.loads((folder / "state.json").read_text())
    return State(**content | {"guard": Memory(**content["guard"])})


def restore(folder: Path, model: Any, optimizer: Any, scaler: Any) -> None:
    """Put a checkpoint back into model, optimizer and scaler.

    Raises:
        CorruptInput: There is more than numbers in it.
    """
    import torch

    restore_weights(folder, model)
    device = next(iter(trainable(model).values())).device
    path = folder / "optimizer.pt"
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        what = f"{path} is a pickle with more in it than tensors and numbers, which is not run"
        raise CorruptInput(what, unit=folder) from None
    optimizer.load_state_dict(saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])


def restore_weights(folder: Path, model: Any) -> None:
    """Put only what was learned back into the model."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / "trainable.safetensors")
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(weights[name])


def name(step: int) -> str:
    """The unit of the checkpoint of a step."""
    return f"step-{step:08d}"


def appeared(unit: Path) -> Path:
    """A checkpoint, once this host sees what another has written: network file systems lag."""
    end = time.monotonic() + LAG
    while not (unit / RECEIPT).exists() and time.monotonic() < end:
        time.sleep(1.0)
    return unit


def newest(ctx: Context) -> Path | None:
    """The newest checkpoint that is sound, as is the best one it refers to.

    Damaged ones are set aside, and it is said.

    Raises:
        UserError: They were made from another corpus or base model.
    """
    for unit in sorted(ctx.folder.glob("step-*"), reverse=True):
        _refuse_others(ctx, unit)
        if unit.exists() and _sound(ctx, unit):
            best = ctx.folder / name(read(unit).best_step)
            if best == unit or read(unit).best_step < 0 or _sound(ctx, best):
                return unit
            aside = set_aside(unit, "damaged")
            ctx.log(f"PASSED OVER {unit.name}, whose best is gone; it is now {aside.name}")
    return None


def _refuse_others(ctx: Context, unit: Path) -> None:
    """Raise `UserError` if a checkpoint of the same settings was made from other inputs."""
    made, wanted = load(unit), ctx.identity.inputs or {}
    if made is None or made.key != ctx.identity.key or made.inputs == wanted:
        return
    changed = sorted(k for k in {*made.inputs, *wanted} if made.inputs.get(k) != wanted.get(k))
    raise UserError(
        f"{unit.parent} holds a training on other data: {', '.join(changed)} changed since",
        f"to begin anew on what is there now, remove it: rm -r {shlex.quote(str(unit.parent))}",
    )


def _sound(ctx: Context, unit: Path) -> bool:
    try:
        receipt = ctx.has(unit.name)
        if receipt is None:
            raise CorruptInput(f"{unit} is missing, incomplete, or of another making")
        receipt.verify(unit)
        return True
    except CorruptInput as error:
        aside = set_aside(unit, "damaged").name if unit.exists() else "gone"
        ctx.log(f"PASSED OVER a checkpoint: {error}; it is now {aside}")
        return False


def retire(ctx: Context, state: State, keep: int) -> None:
    """Remove checkpoints other than the newest `keep`, the best, and the last good one."""
    for unit in sorted(ctx.folder.glob("step-*"))[:-keep]:
        if unit.name not in (name(state.best_step), name(state.good_step)):
            shutil.rmtree(set_aside(unit, "retired"), ignore_errors=True)


def rewind(ctx: Context, step: int) -> Path | None:
    """Remove the checkpoints after that step; the newest sound one of those that are left."""
    for unit in ctx.folder.glob("step-*"):
        if unit.name > name(step):
            shutil.rmtree(set_aside(unit, "retired"), ignore_errors=True)
    return newest(ctx)
