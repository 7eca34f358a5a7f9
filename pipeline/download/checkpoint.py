"""Refuse checkpoints that cannot be trained as they are, before anything is tokenized.

Files are checked before they are copied: Git LFS pointers, missing shards, damaged safetensors and
JSON, weights that are quantized already. Then the names and shapes of the weights are compared with
the model that config.json describes. transformers does this itself when it loads onto the device
`meta`, with its own renaming and tying of weights; only the headers of safetensors are read.
transformers initializes missing weights at random, so without this check such a model would be
trained to a finished report.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core.errors import CorruptInput, UserError
from pipeline.sources.lfs_pointer import LFS_HINT, is_lfs_pointer

CONFIG_FILE = "config.json"
COPY_HINT = "Copy or download it again"
HEAD_BYTES = 256
MAX_NAMES = 3  # named in a message
MAX_REASON_CHARACTERS = 300
ZIP_MAGIC = b"PK\x03\x04"  # PyTorch's format of weights is a zip archive
BUFFERS = re.compile(
    r"(^|\.)(masked_bias|(attn|attention)\.bias|causal_mask|inv_freq|(cos|sin)_cached"
    r"|position_ids|embed_positions\.weights|version)$"
)
"""Values that older versions of transformers saved with a model and now compute: masks, rotary
frequencies, positions. `attn.bias` is GPT-2's causal mask, not a bias of a linear layer."""


def check_files(source: str, folder: Path, names: Collection[str]) -> None:
    """Refuse a model by its files.

    Args:
        source: What the messages call the model.
        folder: Contains the files.
        names: The files that are used, config.json among them.

    Raises:
        CorruptInput: A file is a Git LFS pointer or damaged, or a shard is missing.
        UserError: The weights are quantized.
    """
    import safetensors

    for name in names:
        path = folder / name
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if is_lfs_pointer(head):
            what = f"{source}: {name} is a Git LFS pointer, not the file itself"
            raise CorruptInput(what, LFS_HINT)
        if not head or (head.startswith(ZIP_MAGIC) and not zipfile.is_zipfile(path)):
            state = "truncated" if head else "empty"
            raise CorruptInput(f"{source}: {name} is {state}", COPY_HINT)
        if name.endswith(".json"):
            content = _read_json(source, path)
            if name.endswith(".index.json"):
                _check_index(source, name, content, names)
            elif name == CONFIG_FILE:
                _check_quantization(source, content)
        elif name.endswith(".safetensors"):
            try:
                with safetensors.safe_open(path, "pt"):
                    pass
            except safetensors.SafetensorError as error:
                what = f"{source}: {name} is no intact safetensors file ({error})"
                raise CorruptInput(what, COPY_HINT) from None


def _read_json(source: str, path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise CorruptInput(f"{source}: {path.name} is not JSON ({error})", COPY_HINT) from None


def _check_index(source: str, name: str, index: Any, names: Collection[str]) -> None:
    """Refuse an index of shards that names a file which is not among the files of the model."""
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CorruptInput(f"{source}: {name} lists no weights", COPY_HINT)
    if missing := {str(shard) for shard in shards.values()} - {*names}:
        number = "a file that is" if len(missing) == 1 else f"{len(missing)} files that are"
        what = f"{source}: {name} names {number} not there: {_first(missing)}"
        raise CorruptInput(what, "Copy or download the whole model again")


def _check_quantization(source: str, config: Any) -> None:
    """Refuse quantized weights: training quantizes by itself, and an export could not merge them.

    transformers lets the quantization of a checkpoint override the one that is asked for.
    """
    if not isinstance(config, dict):
        raise CorruptInput(f"{source}: config.json is no JSON object", COPY_HINT)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for field in ("quantization_config", "compression_config"):
            if part.get(field) is not None:
                raise UserError(
                    f"{source}: its weights are quantized already ({_method(part[field])})",
                    "Take the unquantized model as MODEL; train.weights=int8 and nf4 quantize it "
                    "while it is loaded",
                )


def _method(quantization: Any) -> str:
    """The name of a quantization method, such as `gptq` or `bitsandbytes 4-bit`."""
    fields = quantization if isinstance(quantization, dict) else {}
    bits = "4-bit" if fields.get("load_in_4bit") else "8-bit" if fields.get("load_in_8bit") else ""
    method = fields.get("quant_method") or ("bitsandbytes" if bits else "by an unnamed method")
    return f"{method} {bits}".strip()


def load(source: str, folder: Path, **options: Any) -> Any:
    """Load a causal language model whose weights are exactly those that config.json describes.

    Args:
        source: What the messages call the model.
        folder: Contains config.json and weights.
        options: Further arguments of `from_pretrained`. With `device_map="meta"` no weight is read,
            which takes seconds and little memory for a model of any size.

    Raises:
        CorruptInput: Weights are missing, left over or of another shape.
    """
    from transformers import AutoModelForCausalLM

    with _without_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the result
            dtype="auto",
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    model, info = loaded
    missing, shapes = info["missing_keys"], info["mismatched_keys"]
    unknown = {
        name
        for name in info["unexpected_keys"]
        if not BUFFERS.search(name) and (missing or _is_inside(name, model))
    }
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_first(missing)})")
    if unknown:
        problems.append(f"{len(unknown)} unknown ({_first(unknown)})")
    if shapes:
        named = {f"{name} is {_size(found)}, not {_size(own)}" for name, found, own in shapes}
        problems.append(f"{len(named)} of another shape ({_first(named)})")
    if problems:
        raise CorruptInput(
            f"{source}: the weights do not fit config.json: {', '.join(problems)}",
            "Take another MODEL, or save this one again with save_pretrained of transformers",
        )
    return model


def _is_inside(name: str, model: Any) -> bool:
    """Whether a weight that the model does not have lies inside its own modules.

    Such a weight may be a bias that config.json switches off, or one layer more, and the model
    would compute something else without it. Other heads (`v_head`, `mtp`, `vision_tower`) lie
    outside, and do not change the result.
    """
    top = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return any(
        top == child for part in (model, model.base_model) for child, _ in part.named_children()
    )


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from logging what `load` raises, and from drawing progress bars."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.disabled = logger.disabled, True  # with another level it would warn elsewhere
    try:
        yield
    finally:
        logger.disabled = before


def _first(names: Collection[str]) -> str:
    """The first few of some names."""
    return ", ".join(sorted(names)[:MAX_NAMES]) + ", …" * (len(names) > MAX_NAMES)


def _size(shape: Collection[int]) -> str:
    """A shape as `512 × 64`."""
    return " × ".join(map(str, shape)) or "a number"


def reason(error: Exception) -> str:
    """The first line of an error of transformers, with the next one where that is a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return text[:MAX_REASON_CHARACTERS].rstrip(". ") or type(error).__name__
