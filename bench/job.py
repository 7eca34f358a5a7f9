"""What a training system is asked to do, and the base model as all of them are given it."""

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
    """A training, as a file that its process reads.

    `kind`: which system. `model`: a folder in HF form. `documents`: an .npz of `ids` and `offsets`.
    `out`: folder for the adapter. `width`: slots to which the padded systems cut and pad.
    `length`: slots of a packed window. `windows`: padded windows of a micro-batch; `packed`:
    packed windows of one; `flat`: documents of one, where they are laid end to end. The three make
    about the same slots. `accumulate`: micro-batches of a step.
    """

    kind: str
    model: str
    documents: str
    out: str
    root: str = ""
    dataset: str = ""
    base: str = ""
    width: int = 512
    length: int = 1024
    windows: int = 4
    packed: int = 2
    flat: int = 5
    accumulate: int = 1
    checkpointing: bool = True
    weights: str = "bf16"
    autocast: bool = True
    optimizer: str = "adamw"
    lr: float = 1e-3
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0

    def write(self, path: Path) -> Path:
        """Save it for `read`."""
        path.write_text(json.dumps(asdict(self)))
        return path

    def sequences(self) -> list[list[int]]:
        """The documents, each with the token before it and the one after it."""
        import numpy as np

        data = np.load(self.documents)
        ids, offsets = data["ids"], data["offsets"].tolist()
        first, last = data["ends"].tolist()
        return [[first, *ids[start:stop].tolist(), last] for start, stop in pairwise(offsets)]

    def learner(self) -> Any:
        """Base model with adapters, as transformers and peft make it."""
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
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, config)


def read(path: str) -> Job:
    """A job that was written."""
    found = json.loads(Path(path).read_text())
    return Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


def forever(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count` in an order of chance, again and again."""
    chance = random.Random(seed)
    while True:
        yield from chance.sample(range(count), count)


def pad(rows: list[list[int]], width: int, filler: int) -> tuple[Any, Any, Any]:
    """Ids, attention mask and labels of some documents, cut off and padded; each (rows, width)."""
    import torch

    ids = torch.full((len(rows), width), filler)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        kept = torch.tensor(row[:width])
        ids[number, : len(kept)] = kept
        mask[number, : len(kept)] = 1
    return ids, mask, ids.masked_fill(mask == 0, -100)
