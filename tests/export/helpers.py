"""Models to compare by their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.dag import find
from pipeline.modeling.loading import load_base


def parts(config: Config, root: Path) -> tuple[Path, Path]:
    """The folders of the base model and of the adapter."""
    node = find(config, root, "train.train")
    return node.work.inputs["download.model"].one()[0], node.work.folder / "best"


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(3, 63)[None]).logits.float()


def apart(one: Any, other: Any) -> float:
    """The largest difference, of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def in_fp32(base: Path) -> Any:
    import torch

    return load_base(base, "fp32", torch.device("cpu"))
