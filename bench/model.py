"""The base model of the measurements: GPT-2's tokenizer, and weights as small as can be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bench.text import SHARED

WORDS = 50_257
END = 50_256
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make(folder: Path, source: Callable[[], str]) -> Path:
    """A model folder in Hugging Face form, unless it is there.

    Args:
        folder: Where it goes.
        source: Text to train a tokenizer of the same size on, where GPT-2's is not at hand.
    """
    if not (folder / "model.safetensors").exists():
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=1)
        shared = SHARED / "data" / "gpt2-tokenizer"
        folder.mkdir(parents=True, exist_ok=True)
        if shared.is_dir():
            for name in TOKENIZER:
                shutil.copyfile(shared / name, folder / name)
        else:
            _train(folder, source())
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _train(folder: Path, text: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=END, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text[:50_000_000].split("\n\n"), trainer)
    # as GPT-2 has it: the end token comes last
    tokenizer.add_special_tokens(["<|endoftext|>"])
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end).save_pretrained(folder)
