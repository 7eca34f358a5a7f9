"""Evaluation mode: no dropout, no gradients, and the same arithmetic as in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.modeling.device import Precision, autocast
from pipeline.modeling.loading import is_quantized

if TYPE_CHECKING:
    import torch


@contextmanager
def eval_mode(model: Any, device: torch.device, precision: Precision) -> Iterator[None]:
    """Put a model into evaluation mode under autocast, without gradients; restore it afterwards."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    _keep_training_arithmetic(model, device)
    try:
        # not inference_mode: its tensors stay in int8 layers and break a later backward pass
        with torch.no_grad(), autocast(device, precision):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _keep_training_arithmetic(model: Any, device: torch.device) -> None:
    """Let int8 layers on a CPU compute in evaluation as they do in training.

    In evaluation on a CPU, bitsandbytes quantizes activations too. That is not the arithmetic that
    the adapter was trained with, runs at two thirds of the speed and takes twice the memory. On a
    GPU both modes compute the same.
    """
    if device.type != "cpu" or not is_quantized(model):
        return
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.training = True
