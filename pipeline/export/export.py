"""Export a trained model so that anybody can load it: merged weights, tokenizer, model card.

An adapter is merged into the unquantized weights of the base model, in fp32, even if it was trained
on an 8-bit base. Merging into dequantized weights would keep the quantization error in the model
(half a 127th of the largest weight of a row, 1 to 2 % of the logits), and quantizing the model
again would add the same error once more. The adapter does not compensate for that error: a few
ranks cannot represent noise in every weight. Merged like this, the model equals base + adapter up
to rounding, which is also what loading the adapter on the unquantized base gives. The model card
says that the scores of the report were measured on the base as it was trained on.
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
from pipeline.core.receipt import RECEIPT_FILE, Receipt, UnitIdentity, hash_json, load_current
from pipeline.core.receipt import load as read_receipt
from pipeline.download.base_model import TOKENIZER_FILES
from pipeline.modeling.device import Precision
from pipeline.modeling.loading import body_and_head, load_adapter, silence_libraries

VERSION = 2
EXPORT_KIND = "export"
MAX_SHARD_BYTES = 2_000_000_000  # of a file; that much is in memory twice while it is written
LIBRARY_BYTES = 1_000_000_000  # memory of torch, transformers and peft
DTYPES = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}
OTHER_FOLDER_HINT = 'choose another folder: make export ARGS="--to=DIR"'


@dataclass(frozen=True)
class Source:
    """What is exported: folder and receipt of the base model, and of the training (`best`)."""

    base: Path
    base_receipt: Receipt
    best: Path
    best_receipt: Receipt

    @property
    def merged(self) -> bool:
        """Whether the training is an adapter that is merged; otherwise it is a whole model."""
        return self.best_receipt.facts["method"] == "lora"

    @property
    def parameters(self) -> int:
        """Number of weights of the exported model."""
        return int(self.base_receipt.facts["parameters"])


def required_bytes(parameters: int, precision: Precision) -> tuple[int, int]:
    """Bytes of memory and of disk that exporting this many weights takes."""
    held, written = 4 * parameters, DTYPES[precision][1] * parameters
    return held + min(MAX_SHARD_BYTES, written) + LIBRARY_BYTES, written


def check_memory(parameters: int, precision: Precision) -> None:
    """Raise `UserError` if there is too little memory to export this many weights."""
    required, _ = required_bytes(parameters, precision)
    if required > memory():
        raise UserError(
            f"exporting {parameters:,} weights takes {size(required)} of memory (they are merged "
            f"in fp32), but only {size(memory())} may be used here",
            f"Run it in a job: srun --mem={-(-required // 10**9)}G make export …",
        )


def identity(source: Source, card: str, precision: Precision, code: str) -> UnitIdentity:
    """What an export is made from: equal identities mean equal content."""
    inputs = {
        "download.model": source.base_receipt.digest,
        "train.train": source.best_receipt.digest,
    }
    return UnitIdentity(hash_json([VERSION, precision, card, inputs]), EXPORT_KIND, inputs, code)


def check_destination(to: Path, expected: UnitIdentity) -> bool:
    """Whether the same export is already in the folder.

    Raises:
        UserError: The folder holds something else, or an export that was changed since.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return False
    receipt = read_receipt(to)
    if receipt is None or receipt.own != EXPORT_KIND:
        raise UserError(f"{to} exists and was not written by make export", OTHER_FOLDER_HINT)
    if load_current(to, expected):
        return True
    present = {p.relative_to(to).as_posix() for p in to.rglob("*") if not p.is_dir()}
    try:
        receipt.verify(to)
        changed = sorted(present - {RECEIPT_FILE, *receipt.outputs})
    except CorruptInput as error:
        changed = [error.what]
    if changed:
        raise UserError(f"{to} was changed since it was exported ({changed[0]})", OTHER_FOLDER_HINT)
    return False


def export(
    source: Source,
    card: str,
    to: Path,
    expected: UnitIdentity,
    precision: Precision = "fp32",
    prepare: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the model into a folder in one step, so that the folder is never incomplete.

    Args:
        source: What is exported.
        card: Text of its README.md.
        to: The folder; its parent exists. An earlier export in its place is replaced.
        expected: See `identity`.
        precision: Of the written weights. They are rounded to 16 bits after merging.
        prepare: Called with the new folder before anything is written, e.g. to change its group.

    Raises:
        UserError: The folder holds something else, or the model cannot be merged or written so.
        CorruptInput: Base model or adapter are damaged.
    """
    for left in filter(ended, to.parent.glob(f".tmp-{glob.escape(to.name)}-*")):
        shutil.rmtree(left, ignore_errors=True)
    source.base_receipt.verify(source.base)
    source.best_receipt.verify(source.best)
    model = _model(source)
    _round(model, precision)

    def confirm() -> None:
        check_destination(to, expected)

    with commit(to.parent, to.name, expected, confirm) as draft:
        prepare(draft.path)
        model.save_pretrained(draft.path, max_shard_size=MAX_SHARD_BYTES)
        for path in sorted(source.base.iterdir()):
            # copied unchanged: transformers may refuse to write what it reads
            if re.match(rf"{TOKENIZER_FILES}|generation_config\.json", path.name):
                shutil.copyfile(path, draft.path / path.name)
        _add_end_token(draft.path, int(source.base_receipt.facts["end_id"]))
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        open_as_umask(draft.path)
        draft.facts = {"parameters": source.parameters, "precision": precision}


def _add_end_token(folder: Path, end: int) -> None:
    """Stop generation also at the token that followed each document in training."""
    path = folder / "generation_config.json"
    content = json.loads(path.read_bytes())
    own = content.get("eos_token_id")
    ends = own if isinstance(own, list) else [] if own is None else [own]
    if end not in ends:
        content["eos_token_id"] = [*ends, end] if ends else end
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _model(source: Source) -> Any:
    """The model in fp32, with the configuration of the base model: training changed some of it."""
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
    """Raise `UserError` if the adapter changes weights that two modules share."""
    _, head = body_and_head(adapted)
    embeddings = adapted.get_base_model().get_input_embeddings()
    if head.weight is embeddings.weight and any(hasattr(m, "lora_A") for m in (head, embeddings)):
        raise UserError(
            "the adapter changes only the output head or the embeddings, which share their "
            "weights: merged, it would change both",
            "Share the adapter itself, the folder best/ of train-…: see docs/operations.md",
        )


def _round(model: Any, precision: Precision) -> None:
    import torch

    model.to(getattr(torch, DTYPES[precision][0]))
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise UserError(
            f"some merged weights are not finite in {precision}", "Try --precision=fp32"
        )
