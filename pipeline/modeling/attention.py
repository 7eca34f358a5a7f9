"""Choose the attention implementation that a training uses.

All of them keep the documents of a window apart. `cpu_by_document` and torch's SDPA use the
block-diagonal mask of a `PackedBatch`. FlashAttention uses sequence lengths (`varlen_inputs`) and
needs neither mask nor padding. They agree up to rounding, so a run may change between them, as it
may change the GPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.device import Precision

AttentionSetting = Literal["auto", "sdpa", "flash"]
AttentionImplementation = Literal["cpu_by_document", "sdpa", "flash_attention_2"]
"""Names under which transformers finds them; the first is registered by `cpu_attention`."""

MIN_FLASH_MAJOR = 8  # compute capability, Ampere


def default_attention(device: torch.device) -> AttentionImplementation:
    """What a device uses without FlashAttention."""
    return "cpu_by_document" if device.type == "cpu" else "sdpa"


def pick_attention(
    setting: AttentionSetting, device: torch.device, precision: Precision
) -> AttentionImplementation:
    """Resolve `auto`: FlashAttention where it can run, else the default of the device.

    Raises:
        UserError: FlashAttention was requested and cannot run.
    """
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
