"""The product of a training: what was learned, in the form that peft or transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import open_as_umask
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import verify
from pipeline.core.registry import BaseModel
from pipeline.core.stage import Context
from pipeline.train import checkpoint
from pipeline.train.checkpoint import State
from pipeline.train.metrics_log import METRICS, SAMPLES


def publish(
    ctx: Context, unit: str, model: Any, state: State, method: str, base: Path, named: BaseModel
) -> None:
    """Commit the weights of the best checkpoint.

    Args:
        ctx: Of the training.
        unit: The unit to commit.
        model: The model that was trained; its learned weights are replaced by the best ones.
        state: At the end of the training.
        method: `lora` writes an adapter, `full` a whole model with its tokenizer.
        base: Folder of the base model.
        named: What the world calls it.

    Raises:
        CorruptInput: The best checkpoint is gone or damaged.
        UserError: Its weights are not finite.
    """
    import torch

    best = ctx.folder / checkpoint.name(state.best_step)
    receipt = ctx.has(best.name)
    if receipt is None:
        raise CorruptInput(f"the best checkpoint {best} is gone", unit=best)
    verify(best, "trainable.safetensors", receipt)
    checkpoint.restore_weights(best, model)
    learned = checkpoint.trainable(model)
    if not all(bool(torch.isfinite(p).all()) for p in learned.values()):
        raise UserError("the best weights are not finite", "try a lower train.lr")
    with ctx.commit(unit) as draft:
        if method == "lora":
            # without the switch peft asks the hub whether the vocabulary has grown
            model.save_pretrained(draft.path, save_embedding_layers=False)
            (draft.path / "README.md").unlink(missing_ok=True)
            _settle_config(draft.path / "adapter_config.json", named)
        else:
            model.save_pretrained(draft.path)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(base / name, draft.path / name)
        open_as_umask(draft.path)
        for name in (METRICS, SAMPLES):
            shutil.copyfile(ctx.folder / name, draft.path / name)
        draft.notes = [METRICS, SAMPLES]
        draft.facts = {
            "method": method,
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
            "best_step": state.best_step,
            "best_loss": state.best_loss,
            "stopped_early": state.step < state.total,
            "skipped": state.skipped,
            "rollbacks": state.rollbacks,
            "attempts": state.attempts,
            "precision": state.precision,
            "cpus": ctx.cpus,
            "gpus": ctx.gpus,
            "ranks": ctx.world,
            "trainable": sum(p.numel() for p in learned.values()),
            "parameters": sum(p.numel() for p in model.parameters()),
        }


def _settle_config(path: Path, named: BaseModel) -> None:
    """Write the adapter's configuration so that it is the same wherever it was trained.

    The base is named as the world knows it, not by a path; targets, a set to peft, are in order.
    """
    content = json.loads(path.read_text())
    if isinstance(content["target_modules"], list):
        content["target_modules"].sort()
    content["base_model_name_or_path"] = named.repo or named.id
    content["revision"] = named.revision
    path.write_text(json.dumps(content, indent=2, sort_keys=True))
