"""The base model of the data benchmarks: GPT-2's tokenizer with minimal weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bench.text import SHARED

VOCABULARY = 50_257
END_ID = 50_256
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def make(folder: Path, source: Callable[[], str]) -> Path:
    """Make a model folder in Hugging Face format, unless it exists.

    Args:
        folder: Where the model is written.
        source: Returns text to train a tokenizer of the same size, if GPT-2's is not available.
    """
    if not (folder / "model.safetensors").exists():
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1)
        shared = SHARED / "data" / "gpt2-tokenizer"
        folder.mkdir(parents=True, exist_ok=True)
        if shared.is_dir():
            for name in TOKENIZER_FILES:
                shutil.copyfile(shared / name, folder / name)
        else:
            _train_tokenizer(folder, source())
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _train_tokenizer(folder: Path, text: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=END_ID, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text[:50_000_000].split("\n\n"), trainer)
    # GPT-2 has its end token last.
    tokenizer.add_special_tokens(["<|endoftext|>"])
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
