"""A finished training as a model that anybody can load: merged weights, tokenizer, card.

An adapter is merged into the base model's own weights, in fp32, also where it was trained on a base
in 8 bits. The other way, to merge into the dequantised weights, would keep the error of their
quantization in the product for ever (half a 127th of a row's largest weight, 1 to 2 % of the
logits), and whoever quantizes the product adds the same once more. The adapter does not make up for
that error: a few ranks cannot hold what is noise in every weight. Merged like this the product is
base + adapter to rounding, which is also what loading the adapter on the plain base gives. What it
costs is said on the card: the scores of the report were measured on the base as it was trained on.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import open_as_umask
from pipeline.core.cgroup_memory import memory
from pipeline.core.commit import commit, ended
from pipeline.core.disk import size
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import NAME, Receipt, UnitIdentity, hash_json, load_current
from pipeline.core.receipt import load as read_receipt
from pipeline.download.base_model import TOKENIZER_FILES
from pipeline.modeling.device import Precision
from pipeline.modeling.loading import backbone, load_adapter, silence_libraries

VERSION = 2
OWN = "export"
SHARD = 2_000_000_000  # bytes of a file; so much of the weights is held twice while it is written
LIBRARIES = 1_000_000_000  # bytes of memory that torch, transformers and peft take
TYPES = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}
ELSEWHERE = 'choose another place: make export ARGS="--to=DIR"'


@dataclass(frozen=True)
class Source:
    """What is exported: folder and receipt of the base model, and of what was trained (`best`)."""

    base: Path
    base_receipt: Receipt
    best: Path
    best_receipt: Receipt

    @property
    def merged(self) -> bool:
        """Whether it is an adapter, to be merged; else it is a whole model."""
        return self.best_receipt.facts["method"] == "lora"

    @property
    def parameters(self) -> int:
        """Weights of the product."""
        return int(self.base_receipt.facts["parameters"])


def needed(parameters: int, precision: Precision) -> tuple[int, int]:
    """Bytes of memory and of disk that the export of so many weights takes."""
    held, written = 4 * parameters, TYPES[precision][1] * parameters
    return held + min(SHARD, written) + LIBRARIES, written


def check_memory(parameters: int, precision: Precision) -> None:
    """Raise `UserError` if there is too little memory to export so many weights."""
    wanted, _ = needed(parameters, precision)
    if wanted > memory():
        raise UserError(
            f"to export {parameters:,} weights takes {size(wanted)} of memory (they are merged in "
            f"fp32), and {size(memory())} may be used here",
            f"have a job do it: srun --mem={-(-wanted // 10**9)}G make export …",
        )


def identity(source: Source, card: str, precision: Precision, code: str) -> UnitIdentity:
    """What an export is made from: equal stamps, equal content."""
    inputs = {
        "download.model": source.base_receipt.digest,
        "train.train": source.best_receipt.digest,
    }
    return UnitIdentity(hash_json([VERSION, precision, card, inputs]), OWN, inputs, code)


def check_place(to: Path, made_from: UnitIdentity) -> bool:
    """Whether the export is there already.

    Raises:
        UserError: Something else is, or an export in which something was changed since.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return False
    receipt = read_receipt(to)
    if receipt is None or receipt.own != OWN:
        raise UserError(f"{to} is there, and was not written by make export", ELSEWHERE)
    if load_current(to, made_from):
        return True
    there = {p.relative_to(to).as_posix() for p in to.rglob("*") if not p.is_dir()}
    try:
        receipt.verify(to)
        changed = sorted(there - {NAME, *receipt.outputs})
    except CorruptInput as error:
        changed = [error.what]
    if changed:
        raise UserError(f"{to} was changed since it was exported ({changed[0]})", ELSEWHERE)
    return False


def export(
    source: Source,
    card: str,
    to: Path,
    made_from: UnitIdentity,
    precision: Precision = "fp32",
    prepare: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the model into a folder, which is there whole or not at all.

    Args:
        source: What is exported.
        card: Text of its README.md.
        to: The folder, in one that is there; an earlier export may be in its place.
        made_from: As `identity` says.
        precision: Of the written weights. Rounding to 16 bits comes after merging.
        prepare: Called with the folder that is to be written into, e.g. to give it to a group.

    Raises:
        UserError: Something else is in the place, or the model cannot be merged or written so.
        CorruptInput: Base or adapter are damaged.
    """
    for left in filter(ended, to.parent.glob(f".tmp-{glob.escape(to.name)}-*")):
        shutil.rmtree(left, ignore_errors=True)
    source.base_receipt.verify(source.base)
    source.best_receipt.verify(source.best)
    model = _model(source)
    _round(model, precision)

    def confirm() -> None:
        check_place(to, made_from)

    with commit(to.parent, to.name, made_from, confirm) as draft:
        prepare(draft.path)
        model.save_pretrained(draft.path, max_shard_size=SHARD)
        for path in sorted(source.base.iterdir()):
            # the base's own word for word, which transformers may no longer accept for writing
            if re.match(rf"{TOKENIZER_FILES}|generation_config\.json", path.name):
                shutil.copyfile(path, draft.path / path.name)
        _end_there(draft.path, int(source.base_receipt.facts["end_id"]))
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        open_as_umask(draft.path)
        draft.facts = {"parameters": source.parameters, "precision": precision}


def _end_there(folder: Path, end: int) -> None:
    """Generation ends at the token that training put after each document, and at the base's own."""
    path = folder / "generation_config.json"
    content = json.loads(path.read_bytes())
    own = content.get("eos_token_id")
    ends = own if isinstance(own, list) else [] if own is None else [own]
    if end not in ends:
        content["eos_token_id"] = [*ends, end] if ends else end
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _model(source: Source) -> Any:
    """The product in fp32, with the configuration of the base: training has changed some of it."""
    import torch
    import transformers

    silence_libraries()
    config = transformers.AutoConfig.from_pretrained(
        source.base, local_files_only=True, trust_remote_code=False
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.base if source.merged else source.best,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
    )
    if source.merged:
        adapted = load_adapter(model, source.best)
        _check_ties(adapted)
        model = adapted.merge_and_unload(safe_merge=True)
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    return model


def _check_ties(adapted: Any) -> None:
    """Raise `UserError` if an adapter lies on weights that two modules share."""
    _, head = backbone(adapted)
    embeddings = adapted.get_base_model().get_input_embeddings()
    if head.weight is embeddings.weight and any(hasattr(m, "lora_A") for m in (head, embeddings)):
        raise UserError(
            "the adapter changes the output head alone, whose weights are those of the embeddings, "
            "too: merged, it would change both",
            "hand on the adapter itself: see README, 'What comes out'",
        )


def _round(model: Any, precision: Precision) -> None:
    import torch

    model.to(getattr(torch, TYPES[precision][0]))
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise UserError(
            f"some merged weights are not finite in {precision}", "try --precision=fp32"
        )
