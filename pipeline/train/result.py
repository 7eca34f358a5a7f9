"""Commit the result of training in the format that peft or transformers loads."""

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
from pipeline.train.checkpoint import TrainState
from pipeline.train.metrics_log import METRICS_FILE, SAMPLES_FILE


def commit_best(
    ctx: Context,
    unit: str,
    model: Any,
    state: TrainState,
    method: str,
    base: Path,
    base_model: BaseModel,
) -> None:
    """Commit the weights of the best checkpoint as a unit, as peft or transformers loads them.

    Args:
        ctx: Context of the train step.
        unit: The unit to commit.
        model: The trained model; its trained weights are replaced by the best ones.
        state: State at the end of training.
        method: `lora` writes an adapter, `full` a whole model with its tokenizer.
        base: Folder of the base model.
        base_model: Its public name and revision.

    Raises:
        CorruptInput: The best checkpoint is gone or damaged.
        UserError: Its weights are not finite.
    """
    import torch

    best = ctx.folder / checkpoint.unit_name(state.best_step)
    receipt = ctx.has(best.name)
    if receipt is None:
        raise CorruptInput(f"the best checkpoint {best} is gone", unit=best)
    verify(best, "trainable.safetensors", receipt)
    checkpoint.restore_weights(best, model)
    trained = checkpoint.trainable_weights(model)
    if not all(bool(torch.isfinite(p).all()) for p in trained.values()):
        raise UserError("the best weights are not finite", "Try a lower train.lr")
    with ctx.commit(unit) as draft:
        if method == "lora":
            # otherwise peft asks the hub whether the vocabulary has grown
            model.save_pretrained(draft.path, save_embedding_layers=False)
            (draft.path / "README.md").unlink(missing_ok=True)
            _normalize_config(draft.path / "adapter_config.json", base_model)
        else:
            model.save_pretrained(draft.path)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(base / name, draft.path / name)
        open_as_umask(draft.path)
        for name in (METRICS_FILE, SAMPLES_FILE):
            shutil.copyfile(ctx.folder / name, draft.path / name)
        draft.notes = [METRICS_FILE, SAMPLES_FILE]
        draft.facts = _facts(ctx, model, state, method)


def _facts(ctx: Context, model: Any, state: TrainState, method: str) -> dict[str, Any]:
    """Facts of the receipt: what report and evaluation need to know about training."""
    return {
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
        "ranks": ctx.world_size,
        "trainable": sum(p.numel() for p in checkpoint.trainable_weights(model).values()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _normalize_config(path: Path, base_model: BaseModel) -> None:
    """Make the configuration of an adapter independent of where it was trained.

    The base model gets its public name instead of a path. Targets, a set in peft, are sorted.
    """
    content = json.loads(path.read_text())
    if isinstance(content["target_modules"], list):
        content["target_modules"].sort()
    content["base_model_name_or_path"] = base_model.repo or base_model.id
    content["revision"] = base_model.revision
    path.write_text(json.dumps(content, indent=2, sort_keys=True))
