"""Setup shared by all training systems: one base model, one corpus, tokenized and split once."""

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
SPLIT_SETTINGS = ("tokenize.validation=0.1", "tokenize.test=0.1")
STEPS = ("download", "decompress", "tokenize.shards", "tokenize.seal")


@dataclass(frozen=True)
class TrainingSetup:
    """Base model and documents of a training comparison.

    `base`: MODEL on our command line. `model`: its folder. `train`, `test`: .npz files of
    documents. `lengths`: number of (input, target) pairs of each training document.
    """

    root: Path
    dataset: Path
    base: str
    model: Path
    train: Path
    test: Path
    lengths: list[int]


def prepare(folder: Path, megabytes: float, quick: bool) -> TrainingSetup:
    """Run the data stages and export the splits; existing results are reused.

    Args:
        folder: Where everything is written.
        megabytes: Size of the corpus as jsonl.
        quick: Use a model of two layers instead of SmolLM2.
    """
    root = folder / f"train-{'tiny' if quick else BASE}"
    root.mkdir(parents=True, exist_ok=True)
    base = str(tiny_llama(folder)) if quick else BASE

    def source() -> str:
        return text.collect(limit=round(megabytes * 1e6))

    corpus = corpora.make("nih", megabytes, root, source)
    dataset = root / f"{corpus.name}.yaml"
    dataset.write_text(
        yaml.safe_dump({"urls": [corpus.packed.resolve().as_uri()], "id_field": "meta.id"})
    )
    for step in STEPS:
        arguments = ["run", step, f"--dataset={dataset}", f"--model={base}", f"--root={root}"]
        arguments += [
            "--profile=local",
            "--element=0/1",
            "--cpus=1",
            f"--name=setup-{dataset.stem}",
            *SPLIT_SETTINGS,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{step}: {done.stdout}{done.stderr}"[-2000:])
    return _export_splits(root, dataset, base)


def tiny_llama(folder: Path) -> Path:
    """A Llama model of two layers, with the tokenizer of the other benchmarks."""
    home = folder / "tiny-llama"
    if not (home / "model.safetensors").exists():
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = model.make(folder / "model", lambda: corpora.cached(folder))
        home.mkdir(parents=True, exist_ok=True)
        for name in model.TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, home / name)
        config = LlamaConfig(
            vocab_size=model.VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            bos_token_id=model.END_ID, eos_token_id=model.END_ID, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(home)
    return home


def _export_splits(root: Path, dataset: Path, base: str) -> TrainingSetup:
    """Write the tokenized splits to files that a peer can read."""
    import numpy as np

    from pipeline.config import resolve
    from pipeline.core.stage import Context
    from pipeline.dag import find
    from pipeline.dataset.sealed import open_sealed

    config = resolve(str(dataset), base, "lora", list(SPLIT_SETTINGS), name=f"setup-{dataset.stem}")
    inputs = find(config, root, "train.train").work.inputs
    folder, receipt = inputs["download.model"].one()
    prefix_and_end = [receipt.facts["prefix_id"], receipt.facts["end_id"]]
    paths: dict[str, Path] = {}
    lengths: dict[str, Any] = {}
    for split in ("train", "test"):
        corpus = open_sealed(inputs, split, Context(cpus=1))
        paths[split] = root / f"{split}.npz"
        np.savez(paths[split], ids=corpus.ids, offsets=corpus.offsets, ends=prefix_and_end)
        lengths[split] = (np.diff(corpus.offsets) + 1).tolist()
    return TrainingSetup(
        root, dataset, base, folder, paths["train"], paths["test"], lengths["train"]
    )
