"""Which attention computes a training: torch's own with a mask, or FlashAttention by lengths.

Both keep documents of a window apart, one by the block-diagonal mask of a `Batch`, the other by the
places where its pieces begin (`Batch.by_length`), which needs no mask and no padding. They agree to
rounding, so the choice is free, as that of the GPU is.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.loading import Precision

Wanted = Literal["auto", "sdpa", "flash"]
Attention = Literal["sdpa", "flash_attention_2"]
AMPERE = 8


def pick_attention(wanted: Wanted, device: torch.device, precision: Precision) -> Attention:
    """Resolve `auto`: flash where device, precision and installation allow it, else sdpa.

    Raises:
        UserError: flash was asked for, and cannot be.
    """
    why = "" if wanted == "sdpa" else _why_no_flash(device, precision)
    if wanted == "flash" and why:
        raise UserError(f"train.attention=flash {why}", "use train.attention=auto")
    return "sdpa" if wanted == "sdpa" or why else "flash_attention_2"


def _why_no_flash(device: torch.device, precision: Precision) -> str:
    import torch

    if device.type != "cuda":
        return "needs a GPU"
    if precision == "fp32":
        return "computes in bf16 or fp16 only, and the precision is fp32"
    if torch.cuda.get_device_capability(device)[0] < AMPERE:
        name = torch.cuda.get_device_name(device)
        return f"needs a GPU of compute capability 8.0 or more, and {name} has less"
    if find_spec("flash_attn") is None:
        return "needs the package flash-attn, which is not installed"
    return ""
