"""Choose the attention implementation that a training uses.

All of them keep the documents of a window apart. `cpu_by_document` and torch's SDPA use the
block-diagonal mask of a `PackedBatch`. FlashAttention uses sequence lengths (`varlen_inputs`) and
needs neither mask nor padding. Models that compute attention in their own way use their eager
attention, with a row for each piece (`row_inputs`). They agree up to rounding, so a run may change
between them, as it may change the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.device import Precision

AttentionSetting = Literal["auto", "sdpa", "flash"]
AttentionImplementation = Literal["cpu_by_document", "sdpa", "flash_attention_2", "eager"]
"""Names under which transformers finds them; the first is registered by `cpu_attention`."""
AttentionSupport = Literal["default", "eager"]
"""What a base model can use: the default of the device and FlashAttention, or its own only."""

MIN_FLASH_MAJOR = 8  # compute capability, Ampere


def attention_support(facts: Mapping[str, Any]) -> AttentionSupport:
    """What a base model can use, by the facts of its receipt; 0.1 recorded nothing."""
    support: AttentionSupport = facts.get("attention", "default")
    return support


def default_attention(
    device: torch.device, support: AttentionSupport = "default"
) -> AttentionImplementation:
    """What a device uses without FlashAttention."""
    if support == "eager":
        return "eager"
    return "cpu_by_document" if device.type == "cpu" else "sdpa"


def pick_attention(
    setting: AttentionSetting,
    device: torch.device,
    precision: Precision,
    support: AttentionSupport = "default",
) -> AttentionImplementation:
    """Resolve `auto`: FlashAttention where it can run, else the default of the device.

    Raises:
        UserError: An implementation was requested that cannot run, or not with this model.
    """
    if support == "eager":
        if setting != "auto":
            raise UserError(
                f"train.attention={setting} cannot be used with this model, which needs its own "
                "eager attention",
                "Use train.attention=auto",
            )
        return "eager"
    if setting == "sdpa":
        return "sdpa"
    problem = _flash_problem(device, precision)
    if not problem:
        return "flash_attention_2"
    if setting == "flash":
        raise UserError(f"train.attention=flash {problem}", "Use train.attention=auto")
    return default_attention(device)


def _flash_problem(device: torch.device, precision: Precision) -> str:
    """Why FlashAttention cannot run; empty if it can."""
    import torch

    if device.type != "cuda":
        return "needs a GPU"
    if precision == "fp32":
        return "computes in bf16 or fp16 only, and the precision is fp32"
    if torch.cuda.get_device_capability(device)[0] < MIN_FLASH_MAJOR:
        name = torch.cuda.get_device_name(device)
        return f"needs a GPU of compute capability 8.0 or more, and {name} has less"
    if find_spec("flash_attn") is None:
        return "needs the package flash-attn, which is not installed"
    return ""
