"""Device and precision: which GPU or CPU computes, and in which floating-point format.

Everything follows from the device that torch reports, so the same code runs on a CPU and on a GPU.
"""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import torch

MIN_INT8_CAPABILITY = (7, 5)  # Turing

Precision = Literal["bf16", "fp16", "fp32"]
WeightFormat = Literal["fp32", "bf16", "int8", "nf4"]


def pick_device(gpus: int, local_rank: int = 0) -> torch.device:
    """The device to compute on: the allocated GPU, else the CPU.

    Raises:
        UserError: A GPU was allocated but torch cannot use it.
    """
    import torch

    if not gpus:
        return torch.device("cpu")
    _check_gpu(local_rank)
    return torch.device("cuda", local_rank)


def _check_gpu(index: int) -> None:
    """Raise `UserError` with the reason if torch cannot use the allocated GPU of that index."""
    import torch

    problem = f"a GPU was allocated, but torch {torch.__version__} cannot use it:"
    if torch.version.cuda is None:
        raise UserError(
            f"{problem} this build has no CUDA",
            "Install a build for the driver shown by nvidia-smi, e.g. make plan TORCH=cu126; "
            "see docs/gpu.md",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        raise UserError(
            f"{problem} CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs",
            "Unset it (in your shell, or in setup: of the profile)",
        )
    # if the driver is too old, torch only warns and then reports no device
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        warning = str(caught[0].message).partition("\n")[0].strip() if caught else ""
        reason = warning.rstrip(".") or f"it sees {count}"
        raise UserError(
            f"{problem} {reason} (built for CUDA {torch.version.cuda})",
            "Compare with the driver shown by nvidia-smi, and install a build for it, e.g. "
            "make plan TORCH=cu126; see docs/gpu.md",
        )
    major, minor = torch.cuda.get_device_capability(index)
    # a build runs on the architectures it was compiled for, and on later ones
    built = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch[:3] == "sm_"]
    if built and 10 * major + minor < min(built):
        raise UserError(
            f"{problem} {torch.cuda.get_device_name(index)} has compute capability "
            f"{major}.{minor}, and this build needs {min(built) / 10} or later",
            "Ask for a newer GPU (constraint: or gres: of the profile), or install a build for "
            "older ones, e.g. make plan TORCH=cu126",
        )


def check_int8(device: torch.device) -> None:
    """Raise `UserError` if a GPU has no int8 tensor cores, which LLM.int8 needs."""
    import torch

    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_INT8_CAPABILITY:
        raise UserError(
            f"train.weights=int8 needs a GPU of compute capability 7.5 or more, and "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}",
            "Use RECIPE=lora (weights are not quantized), or ask for a newer GPU",
        )


def pick_precision(requested: str, device: torch.device) -> Precision:
    """Resolve `auto`: bf16 where the hardware supports it, else fp16 on a GPU, else fp32.

    Raises:
        UserError: fp16 was requested on a CPU, where it overflows and is slower than fp32.
    """
    import torch

    if requested == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU", "Use train.precision=auto")
    if requested != "auto":
        return requested  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def compute_precision(weights: WeightFormat, precision: Precision) -> Precision:
    """The format in which layers compute.

    That of autocast. In fp32 there is none, and layers compute in the format of 16-bit weights.

    Args:
        weights: Format of the weights. `load_base` lets those in nf4 compute in bf16.
        precision: As `pick_precision` resolves it.
    """
    if weights == "nf4" or (weights == "bf16" and precision == "fp32"):
        return "bf16"
    return precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The autocast context of a precision; fp32 needs none."""
    import torch

    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
