"""Convert a GGUF file with a model of the Llama family to a Hugging Face folder, in bf16.

The `gguf` package dequantizes the tensors; they are renamed here. `from_pretrained(gguf_file=)`
gives the same weights in three times the time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.stop import Stop
from pipeline.download.resume import ProgressCallback, require_free_space

if TYPE_CHECKING:
    import torch

TOP_LEVEL_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(path: Path, out: Path, stop: Stop, progress: ProgressCallback) -> None:
    """Write config, generation config, weights and tokenizer of a GGUF file into `out`.

    Args:
        path: The GGUF file.
        out: The folder to write into.
        stop: Checked between tensors.
        progress: Called with (bytes read, bytes of all tensors).

    Raises:
        UserError: The `gguf` package is missing, or the model is not a plain Llama model.
        Interrupted: A stop was requested.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        what = f"{path.name} needs the package gguf"
        raise UserError(what, "Install it with: pip install gguf") from error
    from transformers import AutoTokenizer, GenerationConfig

    reader = GGUFReader(path)
    config = _config(reader, path.name)
    require_free_space(out, 2 * sum(int(t.n_elements) for t in reader.tensors))
    _save_weights(reader, config, out / "model.safetensors", stop, progress)
    config.save_pretrained(out)
    GenerationConfig.from_model_config(config).save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(out)


def _config(reader: Any, name: str) -> Any:
    from transformers import LlamaConfig

    def value(key: str) -> Any:
        field = reader.fields.get(key)
        return None if field is None else field.contents()

    if value("general.architecture") != "llama" or value("llama.rope.scaling.type"):
        raise UserError(f"{name} is not a plain Llama model", "Take another MODEL")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        tie_word_embeddings=all(t.name != "output.weight" for t in reader.tensors),
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        pad_token_id=value("tokenizer.ggml.padding_token_id"),
    )


def _save_weights(
    reader: Any, config: Any, target: Path, stop: Stop, progress: ProgressCallback
) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    total, done = sum(int(t.n_bytes) for t in reader.tensors), 0
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        stop.check()
        name, role = hf_tensor_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if role in heads:
            values = unpermute(values, heads[role])
        values = values if values.flags.writeable else values.copy()  # memory-mapped
        tensors[name] = torch.from_numpy(values).to(torch.bfloat16).contiguous()
        done += int(tensor.n_bytes)
        progress(done, total)
    save_file(tensors, target, metadata={"format": "pt"})


def hf_tensor_name(name: str) -> tuple[str, str]:
    """The Hugging Face name of a GGUF tensor, and its role, such as `attn_q`.

    Raises:
        UserError: A plain Llama model has no such tensor.
    """
    if (top := re.fullmatch(r"(\w+)\.weight", name)) and top[1] in TOP_LEVEL_TENSORS:
        return f"{TOP_LEVEL_TENSORS[top[1]]}.weight", top[1]
    if (layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) and layer[2] in LAYER_TENSORS:
        return f"model.layers.{layer[1]}.{LAYER_TENSORS[layer[2]]}.weight", layer[2]
    raise UserError(f"the tensor {name} is not one of a plain Llama model", "Take another MODEL")


def unpermute(values: Any, heads: int) -> Any:
    """Reorder the rows of a query or key projection from GGUF's to Hugging Face's rotary layout.

    The inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.

    Args:
        values: Weights of shape (heads × head width, hidden).
        heads: Number of query or key heads.
    """
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
