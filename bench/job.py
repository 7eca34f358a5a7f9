"""A training job that every system gets, and the base model that every peer starts from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One training run, saved as a JSON file that the system's process reads.

    `kind`: the system. `model`: a folder in Hugging Face format. `documents`: an .npz file of `ids`
    and `offsets`. `out`: folder for the adapter. `padded_length`: positions to which the padding
    systems truncate and pad. `sequence_length`: positions of a packed window. A micro-batch has
    `padded_windows`, `packed_windows`, or `flat_documents` (concatenated without padding); the
    three have about the same number of positions. `accumulate`: micro-batches per optimizer step.
    """

    kind: str
    model: str
    documents: str
    out: str
    root: str = ""
    dataset: str = ""
    base: str = ""
    padded_length: int = 512
    sequence_length: int = 1024
    padded_windows: int = 4
    packed_windows: int = 2
    flat_documents: int = 5
    accumulate: int = 1
    checkpointing: bool = True
    weights: str = "bf16"
    autocast: bool = True
    optimizer: str = "adamw"
    lr: float = 1e-3
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0

    def write(self, path: Path) -> Path:
        """Save the job for `read`."""
        path.write_text(json.dumps(asdict(self)))
        return path

    def sequences(self) -> list[list[int]]:
        """The documents as token ids, each with its prefix token and its end token."""
        import numpy as np

        data = np.load(self.documents)
        ids, offsets = data["ids"], data["offsets"].tolist()
        prefix, end = data["ends"].tolist()
        return [[prefix, *ids[start:stop].tolist(), end] for start, stop in pairwise(offsets)]

    def make_model(self) -> Any:
        """The base model with LoRA adapters, made with transformers and peft."""
        import peft
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        int8 = self.weights == "int8"
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_pretrained(
            self.model,
            dtype=torch.float32 if self.weights == "fp32" else torch.bfloat16,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True) if int8 else None,
            device_map={"": "cpu"} if int8 else None,
            trust_remote_code=False,
        )
        model.config.use_cache = False
        if self.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        config = peft.LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            target_modules=list(self.lora_targets),
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, config)


def read(path: str) -> Job:
    """Read a job that `Job.write` saved."""
    values = json.loads(Path(path).read_text())
    return Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def shuffled_indices(count: int, seed: int) -> Iterator[int]:
    """Yield the numbers below `count` epoch after epoch, shuffled again for each."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(count), count)


def pad(rows: list[list[int]], length: int, pad_id: int) -> tuple[Any, Any, Any]:
    """Truncate and pad documents; returns ids, attention mask and labels, each (rows, length)."""
    import torch

    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        truncated = torch.tensor(row[:length])
        ids[number, : len(truncated)] = truncated
        mask[number, : len(truncated)] = 1
    return ids, mask, ids.masked_fill(mask == 0, -100)
