"""What all training systems stand on: one base model, one corpus, tokenized and split once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import corpora, model, text
from bench.measure import ROOT

BASE = "smollm2-135m"
SPLITS = ("tokenize.validation=0.1", "tokenize.test=0.1")
STEPS = ("download", "decompress", "tokenize.shards", "tokenize.seal")


@dataclass(frozen=True)
class Ground:
    """`base`: MODEL for our command line. `model`: its folder. `train`, `test`: .npz of documents.

    `lengths`: pairs (input, target) of each training document.
    """

    root: Path
    dataset: Path
    base: str
    model: Path
    train: Path
    test: Path
    lengths: list[int]


def lay(folder: Path, megabytes: float, quick: bool) -> Ground:
    """Make it, or take what is there of it.

    Args:
        folder: Where all of it goes.
        megabytes: Of the corpus as jsonl.
        quick: A model of two layers in place of SmolLM2.
    """
    root = folder / f"train-{'tiny' if quick else BASE}"
    root.mkdir(parents=True, exist_ok=True)
    base = str(tiny(folder)) if quick else BASE

    def source() -> str:
        return text.harvest(limit=round(megabytes * 1e6))

    corpus = corpora.make("nih", megabytes, root, source)
    dataset = root / f"{corpus.name}.yaml"
    dataset.write_text(
        yaml.safe_dump({"urls": [corpus.packed.resolve().as_uri()], "id_field": "meta.id"})
    )
    for step in STEPS:
        words = ["run", step, f"--dataset={dataset}", f"--model={base}", f"--root={root}"]
        words += ["--profile=local", "--element=0/1", "--cpus=1", "--name=ground", *SPLITS]
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{step}: {done.stdout}{done.stderr}"[-2000:])
    return _gather(root, dataset, base)


def tiny(folder: Path) -> Path:
    """Two layers of the Llama family, with the tokenizer of the other measurements."""
    home = folder / "tiny-llama"
    if not (home / "model.safetensors").exists():
        from transformers import LlamaConfig, LlamaForCausalLM

        names = model.make(folder / "model", lambda: corpora.cached(folder))
        home.mkdir(parents=True, exist_ok=True)
        for name in model.TOKENIZER:
            shutil.copyfile(names / name, home / name)
        config = LlamaConfig(
            vocab_size=model.WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            bos_token_id=model.END, eos_token_id=model.END, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(home)
    return home


def _gather(root: Path, dataset: Path, base: str) -> Ground:
    """What the stages have made, as files that a peer reads."""
    import numpy as np

    from pipeline.config import resolve
    from pipeline.core.stage import Context
    from pipeline.dag import find
    from pipeline.dataset.sealed import open_sealed

    config = resolve(str(dataset), base, "lora", list(SPLITS), name="ground")
    inputs = find(config, root, "train.train").work.inputs
    folder, receipt = inputs["download.model"].one()
    ends = [receipt.facts["prefix_id"], receipt.facts["end_id"]]
    paths: dict[str, Path] = {}
    lengths: dict[str, Any] = {}
    for split in ("train", "test"):
        corpus = open_sealed(inputs, split, Context(cpus=1))
        paths[split] = root / f"{split}.npz"
        np.savez(paths[split], ids=corpus.ids, offsets=corpus.offsets, ends=ends)
        lengths[split] = (np.diff(corpus.offsets) + 1).tolist()
    return Ground(root, dataset, base, folder, paths["train"], paths["test"], lengths["train"])
