"""Llama-family weights in a GGUF file → a folder in HF form, in bf16.

The quantized blocks are expanded by the `gguf` package and renamed here. Going through
`from_pretrained(gguf_file=)` and a second model gives the same weights in three times the time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.stop import Stop
from pipeline.download.resume import Progress, require_free_space

if TYPE_CHECKING:
    import torch

TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK = {
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


def convert(path: Path, out: Path, stop: Stop, progress: Progress) -> None:
    """Write config, generation config, weights and tokenizer of a GGUF file into `out`.

    Args:
        path: The GGUF file.
        out: The folder to write into.
        stop: Looked at between tensors.
        progress: Called with (bytes read, bytes of all tensors).

    Raises:
        UserError: The `gguf` package is missing, or the model is not of the Llama family.
        Interrupted: A stop was asked for.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"{path.name} needs the package gguf", "pip install gguf") from error
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
        raise UserError(f"{name} is not a plain Llama model", "take another MODEL")
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


def _save_weights(reader: Any, config: Any, target: Path, stop: Stop, progress: Progress) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    total, done = sum(int(t.n_bytes) for t in reader.tensors), 0
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        stop.check()
        name, part = rename(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if part in heads:
            values = unpermute(values, heads[part])
        values = values if values.flags.writeable else values.copy()  # the file is mapped
        tensors[name] = torch.from_numpy(values).to(torch.bfloat16).contiguous()
        done += int(tensor.n_bytes)
        progress(done, total)
    save_file(tensors, target, metadata={"format": "pt"})


def rename(name: str) -> tuple[str, str]:
    """The HF name of a GGUF tensor, and the part of the model it is.

    Raises:
        UserError: A plain Llama model has no such tensor.
    """
    if (top := re.fullmatch(r"(\w+)\.weight", name)) and top[1] in TOP:
        return f"{TOP[top[1]]}.weight", top[1]
    if (block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) and block[2] in BLOCK:
        return f"model.layers.{block[1]}.{BLOCK[block[2]]}.weight", block[2]
    raise UserError(f"the tensor {name} is not one of a plain Llama model", "take another MODEL")


def unpermute(values: Any, heads: int) -> Any:
    """Rows of a query or key projection, from GGUF's pairs of rotary halves to HF's halves.

    Args:
        values: (heads × width, hidden); the inverse of `permute` in llama.cpp's
            convert_hf_to_gguf.py.
        heads: Of queries or of keys.
    """
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
