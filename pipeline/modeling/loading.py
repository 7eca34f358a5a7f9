"""Base models and adapters in memory: device, precision, quantization, LoRA.

The libraries under it fail silently in places; what is done against that stands here, with the
reason. Everything is chosen by the device that torch reports, so the same code runs on a CPU.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import UserError
from pipeline.modeling import cpu_attention as documents

if TYPE_CHECKING:
    import torch

DROPOUTS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "layerdrop",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
INT8 = (7, 5)  # Turing

Weights = Literal["fp32", "bf16", "int8", "nf4"]
Precision = Literal["bf16", "fp16", "fp32"]


def pick_device(gpus: int, local_rank: int = 0) -> torch.device:
    """The device to compute on: the granted GPU, else the CPU.

    Raises:
        UserError: A GPU was granted but torch cannot use it.
    """
    import torch

    if not gpus:
        return torch.device("cpu")
    _check_gpu(local_rank)
    return torch.device("cuda", local_rank)


def _check_gpu(number: int) -> None:
    """Raise `UserError` with the reason why torch cannot use the granted GPU of that number."""
    import torch

    what = f"a GPU was granted, but torch {torch.__version__} cannot use it:"
    if torch.version.cuda is None:
        raise UserError(
            f"{what} this build of it is without CUDA",
            "Install one that fits the driver shown by nvidia-smi, e.g. make plan TORCH=cu126; "
            "see README, 'On a GPU'",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        raise UserError(
            f"{what} CUDA_VISIBLE_DEVICES={visible!r} hides all of them",
            "unset it (in your shell, or in setup: of the profile)",
        )
    # torch only warns where the driver does not fit, and then sees no device
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= seen:
        why = str(said[0].message).partition("\n")[0].strip() if said else f"it sees {seen}"
        raise UserError(
            f"{what} {why.rstrip('.')} (built for CUDA {torch.version.cuda})",
            "Compare with the driver shown by nvidia-smi, and install the build that fits, e.g. "
            "make plan TORCH=cu126; see README, 'On a GPU'",
        )
    major, minor = torch.cuda.get_device_capability(number)
    # the code of a build runs on what it was made for, and on later ones of the same generation
    made = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch[:3] == "sm_"]
    if made and 10 * major + minor < min(made):
        raise UserError(
            f"{what} {torch.cuda.get_device_name(number)} is of compute capability "
            f"{major}.{minor}, and this build is for {min(made) / 10} and later",
            "Ask for a newer GPU (constraint: or gres: of the profile), or install a build for "
            "older ones, e.g. make plan TORCH=cu126",
        )


def _check_int8(device: torch.device) -> None:
    """Raise `UserError` if a GPU has no int8 tensor cores, on which LLM.int8 computes."""
    import torch

    if device.type == "cuda" and torch.cuda.get_device_capability(device) < INT8:
        found = "{}.{}".format(*torch.cuda.get_device_capability(device))
        raise UserError(
            f"train.weights=int8 needs a GPU of compute capability 7.5 or more, and "
            f"{torch.cuda.get_device_name(device)} has {found}",
            "use RECIPE=lora (weights that are not quantized), or ask for a newer GPU",
        )


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve `auto`: bf16 where the hardware has it, else fp16 on a GPU, else fp32.

    Raises:
        UserError: fp16 was asked for on a CPU, where it is slower than fp32 and overflows.
    """
    import torch

    if wanted == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU", "use train.precision=auto")
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The autocast context of a precision."""
    import torch

    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def load_base(
    folder: Path,
    weights: Weights,
    device: torch.device,
    threshold: float = 6.0,
    keep: Sequence[str] = (),
    dropout: float = 0.0,
    attention: str = "sdpa",
) -> Any:
    """The causal language model of a folder in HF form, frozen, in evaluation mode.

    Args:
        folder: Holds config and safetensors.
        weights: How the linear layers are kept; what is not quantized is fp32 under int8 and nf4.
        device: Where to.
        threshold: Outlier threshold of LLM.int8 (arXiv 2208.07339).
        keep: Modules that stay unquantized, besides the output head.
        dropout: Of the model itself, whatever its configuration says: OPT and GPT-2 bring 0.1.
        attention: How it is computed, by the name that transformers has for it.

    Raises:
        UserError: The folder does not hold a causal language model that transformers knows, or the
            weights cannot learn on that device.
    """
    import torch
    import transformers

    if weights == "nf4" and device.type == "cpu":
        raise UserError(
            "train.weights=nf4 does not learn on a CPU: validation repacks the weights and every "
            "gradient is zero from then on",
            "use train.weights=int8",
        )
    hush()
    on_cpu = (device.type, attention) == ("cpu", "sdpa")
    if weights == "int8":
        _check_int8(device)
    quantization = None
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    # any name takes the place of those that transformers would leave as they are
    skip = [*keep, "lm_head", "embed_out"] if keep else None
    if weights == "int8":
        quantization = transformers.BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=skip
        )
    elif weights == "nf4":
        quantization = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=skip,
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0 if name == "layerdrop" else dropout)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": str(device)} if quantization else None,
            attn_implementation=documents.register() if on_cpu else attention,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a causal language model from {folder}: {error}") from None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        # norms and embeddings lose too much in half precision; quantized ones are not floating
        # point (int8) or are packed (nf4: uint8)
        if quantization and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(torch.float32)
    model.config.use_cache = False
    if not quantization:
        torch.nn.Module.to(model, device)
    return model.eval()


def hush() -> None:
    """Silence what the libraries say that is of no use to anybody."""
    import transformers

    # a warning per linear layer and forward pass, about a cast that is meant
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # that a faster 4-bit kernel could be installed; 8 bits do not use it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # peft looks at all attributes of a model, those with a new name among them
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    transformers.utils.logging.disable_progress_bar()


def backbone(model: Any) -> tuple[Any, Any]:
    """The module that returns hidden states (`.last_hidden_state`), and the output head after it.

    Works on a plain causal model and on one with adapters, whose layers are replaced in place.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.base_model, causal.get_output_embeddings()


def add_lora(
    model: Any, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str, seed: int
) -> Any:
    """LoRA adapters (arXiv 2106.09685) on the target modules; fp32, the only trainable weights.

    Raises:
        UserError: Adapters do not go into one of them.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        # as the plain base wants it, on which the adapter may be laid; 8-bit layers do not look
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        named = targets if isinstance(targets, str) else f"[{','.join(targets)}]"
        why = f"train.lora_targets={named} cannot have adapters: {error}".rstrip(".")
        raise UserError(why, "use train.lora_targets=all-linear") from None


def load_adapter(model: Any, folder: Path) -> Any:
    """A base model with a trained adapter laid on it, in evaluation mode."""
    import peft

    return peft.PeftModel.from_pretrained(model, folder).eval()


def keep_arithmetic(model: Any, device: torch.device) -> None:
    """Let 8-bit layers on a CPU compute in evaluation as they do in training.

    bitsandbytes quantizes activations too in evaluation there: another arithmetic than the one that
    was trained, at two thirds of the speed and twice the memory. On a GPU both are the same.
    """
    for layer in _int8_layers(model) if device.type == "cpu" else ():
        layer.training = True


def _int8_layers(model: Any) -> list[Any]:
    if not is_quantized(model):
        return []
    import bitsandbytes as bnb

    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]


def is_quantized(model: Any) -> bool:
    """Whether the linear layers are kept in 8 or 4 bits."""
    return bool(
        getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)
    )
