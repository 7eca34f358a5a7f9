"""Checkpoints: the state of a training as the files of one unit, `step-…`.

`trainable.safetensors` (what is learned: adapters, or all weights), `optimizer.pt` (optimizer,
gradient scaler, random generators; loads with `weights_only`), `state.json` (numbers).
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CorruptInput
from pipeline.files import open_as_umask
from pipeline.receipt import set_aside
from pipeline.stage import Context


@dataclass
class State:
    """Where a training stands, at a step boundary.

    `step`: optimizer steps taken. `tokens`: targets seen. `seconds`: spent in steps, all attempts.
    `validated`: the last step that was validated. `attempts`: starts so far.
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


def trainable(model: Any) -> dict[str, Any]:
    """The weights that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model: Any, optimizer: Any, scaler: Any, state: State) -> None:
    """Write a checkpoint's files into a folder."""
    import torch
    from safetensors.torch import save_file

    weights = {name: p.detach().contiguous() for name, p in trainable(model).items()}
    save_file(weights, folder / "trainable.safetensors")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    rest = {
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": cuda,
    }
    # a file, not its name: with that torch does not say that the disk is full
    with (folder / "optimizer.pt").open("wb") as file:
        torch.save(rest, file)
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=1))
    open_as_umask(folder)


def read(folder: Path) -> State:
    """The numbers of a checkpoint."""
    return State(**json.loads((folder / "state.json").read_text()))


def restore(folder: Path, model: Any, optimizer: Any, scaler: Any) -> None:
    """Put a checkpoint back into model, optimizer, scaler and the random generators.

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
    torch.set_rng_state(saved["random"].cpu())
    if saved["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["random_cuda"]])


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


def newest(ctx: Context) -> Path | None:
    """The newest checkpoint that is sound, as is the best one it refers to.

    Others are set aside, and it is said.
    """
    for unit in sorted(ctx.folder.glob("step-*"), reverse=True):
        if unit.exists() and _sound(ctx, unit):
            best = ctx.folder / name(read(unit).best_step)
            if best == unit or read(unit).best_step < 0 or _sound(ctx, best):
                return unit
            aside = set_aside(unit, "damaged")
            ctx.log(f"PASSED OVER {unit.name}, whose best is gone; it is now {aside.name}")
    return None


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


def retire(ctx: Context, best: int, keep: int) -> None:
    """Remove checkpoints other than the newest `keep` and that of the step `best`."""
    for unit in sorted(ctx.folder.glob("step-*"))[:-keep]:
        if unit.name != name(best):
            shutil.rmtree(set_aside(unit, "retired"), ignore_errors=True)
