"""Models and tokenizers small enough for a test: 2 layers, 64 wide, 512 words, made in a second.

The tokenizer is a byte-level BPE trained on the paragraph below, so any text round-trips. Special
tokens: `<s>` 0 (bos), `</s>` 1 (eos), `<pad>` 2; none of them is added by encoding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = 512
POSITIONS = 256
FAMILIES = ("opt", "opt-350m", "gpt2", "llama", "qwen2", "mistral")
PARAGRAPH = """
The court of appeals affirmed the judgment of the district court. The plaintiff, who had appealed
from an order dismissing the complaint, argued that the statute of limitations did not begin to run
until the injury was discovered. We disagree. The record shows that the defendant gave notice of the
claim in writing, and that the plaintiff did not file this action within the time which the statute
allows. Accordingly, the motion for summary judgment was properly granted, and costs are awarded to
the defendant. The long-term goal of this project is to understand how cells in the human brain
respond to stress. We propose to study the expression of genes that are known to be involved in the
regulation of growth, and to test the hypothesis that a loss of function leads to disease. In the
first aim, mice will be treated with a drug that inhibits the receptor; in the second aim, patients
with a high risk of cancer will be followed for five years. The results of these studies will
provide new information on the mechanisms of the disorder, and may lead to better treatments.
Return the number of items in the list, or raise an error if the argument is not a valid path. The
function takes a file name and a mode, reads the data in blocks of 1024 bytes, and writes them to
the output stream. It is 2 or 3 times faster than 10 copies of the same loop: see section 4.5, 6-7
and 89. Questions? "Yes", he said; (no). Don't use it with data that isn't yours!
""".strip()


def make_tokenizer(folder: Path) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder` and return it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PARAGRAPH.splitlines(), trainer)
    assert tokenizer.get_vocab_size() == WORDS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return folder


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model of `family`, one of `FAMILIES`, and the tokenizer into `folder`.

    The form is the hub's: config.json, generation_config.json, model.safetensors (fp32, embeddings
    tied), tokenizer files. The same seed gives the same bytes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32)
    model.save_pretrained(folder)
    return make_tokenizer(folder)


def make_config(family: str) -> Any:
    """The `transformers` configuration of the tiny model of `family`."""
    from transformers import GPT2Config, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config

    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    size: dict[str, Any] = {"vocab_size": WORDS, "tie_word_embeddings": True, **ids}
    if family == "gpt2":
        return GPT2Config(
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **size,
        )
    size |= {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }
    if family == "opt":
        return OPTConfig(ffn_dim=256, word_embed_proj_dim=64, dropout=0.0, **size)
    if family == "opt-350m":  # alone among its kind: narrow embeddings, and norms after the layers
        shape: dict[str, Any] = {"word_embed_proj_dim": 32, "do_layer_norm_before": False}
        return OPTConfig(ffn_dim=256, dropout=0.0, **shape, **size)
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
    if family in kinds:
        return kinds[family](intermediate_size=128, num_key_value_heads=2, **size)
    raise ValueError(f"no tiny model of family {family!r}: {', '.join(FAMILIES)}")


def make_old_form(folder: Path, to: Path, shards: int = 1) -> Path:
    """A model as `facebook/opt-125m` is published: fp16 pickles, vocab.json and merges.txt."""
    import torch
    from safetensors.torch import load_file

    to.mkdir(parents=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float16", "torch_dtype": "float16"}
    (to / "config.json").write_text(json.dumps(config))
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    (to / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]]
    (to / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    token: dict[str, Any] = {
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    settings: dict[str, Any] = {
        k: {"__type": "AddedToken", "content": v} | token for k, v in names.items()
    }
    settings |= {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace"}
    (to / "tokenizer_config.json").write_text(json.dumps(settings))
    weights = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    if shards == 1:
        torch.save(weights, to / "pytorch_model.bin")
        return to
    files = [f"pytorch_model-{k + 1:05}-of-{shards:05}.bin" for k in range(shards)]
    where = {key: files[k % shards] for k, key in enumerate(weights)}
    for name in files:
        torch.save({k: v for k, v in weights.items() if where[k] == name}, to / name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (to / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return to
