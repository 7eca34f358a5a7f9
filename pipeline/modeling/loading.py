"""Load base models and adapters: quantization, LoRA.

The libraries below fail silently in places. The code that prevents it is here, with the reason.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.registry import OUTPUT_HEAD_MODULES
from pipeline.modeling import cpu_attention
from pipeline.modeling.attention import AttentionImplementation, default_attention
from pipeline.modeling.device import WeightFormat, check_int8
from pipeline.modeling.small_config import config_parts

if TYPE_CHECKING:
    import torch

DROPOUT_FIELD = re.compile(r"drop(out|_path|path)?(_prob|_rate)?$|layerdrop$")
"""Fields of model configurations that hold a dropout probability."""
NOT_IN_LANGUAGE_MODELS = ("classifier", "summary")
"""Parts that a causal language model does not have; their dropout is left as it is."""

TRANSPOSED_WEIGHTS = ("gpt2", "openai-gpt")
"""Model types whose linear layers are `Conv1D`, with weights of shape (in, out)."""


def load_base(
    folder: Path,
    weights: WeightFormat,
    device: torch.device,
    int8_threshold: float = 6.0,
    unquantized_modules: Sequence[str] = (),
    dropout: float = 0.0,
    attention: AttentionImplementation | None = None,
) -> Any:
    """Load a causal language model from a folder; it is frozen and in evaluation mode.

    Args:
        folder: Contains config and safetensors, as transformers writes them.
        weights: Format of the linear layers; under int8 and nf4 everything else is fp32.
        device: Where to put the model.
        int8_threshold: Outlier threshold of LLM.int8 (arXiv 2208.07339).
        unquantized_modules: Modules that are not quantized, besides the output head.
        dropout: Dropout of the model itself. It replaces the one in the model's configuration,
            which is 0.1 for OPT and GPT-2.
        attention: Attention implementation; None: the default of the device.

    Raises:
        UserError: The folder does not contain a causal language model that transformers supports,
            or such weights cannot be trained on that device.
    """
    import torch
    import transformers

    if weights == "nf4" and device.type == "cpu":
        raise UserError(
            "train.weights=nf4 cannot be trained on a CPU: validation repacks the weights, and all "
            "gradients are zero from then on",
            "Use train.weights=int8",
        )
    if weights == "int8":
        check_int8(device)
    silence_libraries()
    cpu_attention.register()
    quantization = _quantization(weights, int8_threshold, unquantized_modules)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=_model_config(folder, dropout),
            dtype=torch.float32 if weights == "fp32" else torch.bfloat16,
            quantization_config=quantization,
            device_map={"": str(device)} if quantization else None,
            attn_implementation=attention or default_attention(device),
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a causal language model from {folder}: {error}") from None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        # Norms and embeddings lose too much in half precision. Quantized weights are not affected:
        # they are not floating point.
        if quantization and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(torch.float32)
    model.config.use_cache = False
    if not quantization:
        torch.nn.Module.to(model, device)
    return model.eval()


def _quantization(
    weights: WeightFormat, int8_threshold: float, unquantized_modules: Sequence[str]
) -> Any:
    """The quantization that transformers applies while it loads; None: no quantization."""
    import torch
    import transformers

    # a list replaces the one that transformers would use, which contains the output head
    skipped = [*unquantized_modules, *OUTPUT_HEAD_MODULES] if unquantized_modules else None
    if weights == "int8":
        return transformers.BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=int8_threshold, llm_int8_skip_modules=skipped
        )
    if weights == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=skipped,
        )
    return None


def _model_config(folder: Path, dropout: float) -> Any:
    """The configuration of a model, with our dropout."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    set_dropout(config, dropout)
    return config


def set_dropout(config: Any, dropout: float) -> None:
    """Set all dropout probabilities of a configuration; whole layers are never dropped."""
    for part in config_parts(config):
        for name, value in list(vars(part).items()):
            if not DROPOUT_FIELD.search(name) or name.startswith(NOT_IN_LANGUAGE_MODELS):
                continue
            wanted = 0.0 if "layerdrop" in name or "path" in name else dropout
            if value != wanted:  # some fields take no float, not even 0.0
                setattr(part, name, wanted)


def silence_libraries() -> None:
    """Silence warnings and progress bars that do not help the user."""
    import transformers

    # one warning per linear layer and forward pass, about an intended cast
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # suggests a faster 4-bit kernel, which int8 does not use
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # peft reads all attributes of a model, including renamed ones
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    transformers.utils.logging.disable_progress_bar()


def attention_of(model: Any) -> str:
    """The attention implementation that a model was loaded with."""
    return str(model.config.get_text_config()._attn_implementation)


def body_and_head(model: Any) -> tuple[Any, Any]:
    """The body and the output head of a model.

    The body's output has `.last_hidden_state` (batch, tokens, width); the head maps width to
    vocabulary. Works on a plain causal language model and on one with adapters, whose layers are
    replaced in place.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = causal.base_model
    if body is causal:  # some classes name the attribute of their body wrongly
        body = causal.model
    return body, causal.get_output_embeddings()


def add_lora(
    model: Any, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str, seed: int
) -> Any:
    """Add LoRA adapters (arXiv 2106.09685) to the target modules.

    They are in fp32, and the only trainable weights.

    Raises:
        UserError: One of the modules cannot have an adapter.
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
        # as these layers need it when the adapter is loaded onto the plain base model; 8-bit
        # layers ignore it
        fan_in_fan_out=model.config.model_type in TRANSPOSED_WEIGHTS,
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        names = targets if isinstance(targets, str) else f"[{','.join(targets)}]"
        problem = f"train.lora_targets={names} cannot have adapters: {error}".rstrip(".")
        raise UserError(problem, "Use train.lora_targets=all-linear") from None


def load_adapter(model: Any, folder: Path) -> Any:
    """Load a trained adapter onto a base model; the result is in evaluation mode."""
    import peft

    return peft.PeftModel.from_pretrained(model, folder).eval()


def is_quantized(model: Any) -> bool:
    """Whether the linear layers are in 8 or 4 bits."""
    return bool(
        getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)
    )
