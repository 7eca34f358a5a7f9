"""Prepare the tokenizer of a base model: one tokenizer.json that gives the ids that users get.

The reference is `AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)`. It may
differ from the tokenizer.json beside it: tokens may stand in tokenizer_config.json or
added_tokens.json only, and some classes of transformers build a tokenizer of their own from the
vocabulary. Later stages read tokenizer.json alone, so in that case the loaded tokenizer is saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.core.errors import CorruptInput, Failure, InputError, UserError
from pipeline.core.registry import BaseModel
from pipeline.download.checkpoint import reason

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
VOCABULARY_FILES = r"tokenizer\.json|vocab\.\w+|merges\.txt|tekken\.json|.*\.(model|tiktoken)"
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # of BPE: "" is the same as null
MAX_CANDIDATES = 6  # tokens that a message suggests
WITHOUT_EFFECT = ("post_processor", "truncation", "padding")
"""Parts of tokenizer.json that change nothing where no special token is added."""


def load_tokenizer(source: str, folder: Path) -> Any:
    """Load the tokenizer of a model as users do.

    Args:
        source: What the messages call the model.
        folder: Contains the tokenizer's files and config.json.

    Raises:
        UserError: It has no fast form, or a package is missing that reads it.
        InputError: There is none, or it is damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise _load_error(source, folder, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _not_fast(source, type(tokenizer).__name__)
    if len(tokenizer.get_added_vocab()) == len(tokenizer):
        raise _no_vocabulary(source)  # without files, transformers makes an empty one
    if tokenizer.split_special_tokens:
        what = f"{source}: tokenizer_config.json sets split_special_tokens, which is not supported"
        raise UserError(what, "Take another MODEL, or a copy of it without this setting")
    return tokenizer


def _load_error(source: str, folder: Path, error: Exception) -> Failure:
    """Why a tokenizer cannot be loaded."""
    files = {path.name for path in folder.iterdir() if path.is_file()}
    if not any(re.fullmatch(VOCABULARY_FILES, name) for name in files):
        return _no_vocabulary(source)
    if TOKENIZER_FILE not in files:
        if package := _missing_package(folder / SENTENCEPIECE_FILE):
            what = f"{source}: its tokenizer is converted by the package {package}, which is not "
            return UserError(f"{what}installed", f"Install it with: pip install {package}")
        if isinstance(error, ImportError):  # a tokenizer in Python, with packages of its own
            name = re.search(r"\w+Tokenizer\b", str(error))
            return _not_fast(source, name[0] if name else str(error))
    what = f"{source}: its tokenizer cannot be read: {type(error).__name__}: {reason(error)}"
    return CorruptInput(what, "Take another MODEL")


def _not_fast(source: str, name: str) -> UserError:
    what = f"{source}: its tokenizer ({name}) has no fast form (tokenizer.json), which is required"
    return UserError(what, "Take another MODEL")


def _no_vocabulary(source: str) -> InputError:
    what = f"{source} has no tokenizer: there is no {TOKENIZER_FILE}"
    return InputError(what, "Copy the files of its tokenizer into the folder of the model")


def _missing_package(path: Path) -> str | None:
    """The package that reads a vocabulary and is not installed; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        is_protobuf = file.read(1) == b"\n"  # the other format is lines of base64 text
    packages = ("sentencepiece", "protobuf") if is_protobuf else ("tiktoken",)
    return next((name for name in packages if not _is_installed(name)), None)


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def is_faithful(tokenizer: Any, path: Path) -> bool:
    """Whether the tokenizer.json at `path` gives the ids of a loaded tokenizer."""
    from tokenizers import Tokenizer

    return path.is_file() and _content(Tokenizer.from_file(str(path))) == _content(
        tokenizer.backend_tokenizer
    )


def _content(backend: Any) -> dict[str, Any]:
    """What decides the ids, as plain data."""
    content: dict[str, Any] = json.loads(backend.to_str())
    model = content["model"]
    model |= {name: model[name] or None for name in AFFIXES if name in model}
    return {name: part for name, part in content.items() if name not in WITHOUT_EFFECT}


def check_ids(source: str, tokenizer: Any, rows: int) -> int:
    """Compare the ids of a tokenizer with the rows of a model's embedding.

    A few models have added tokens without a row, such as the one for images in Gemma 3. They are
    allowed, as long as they do not occur in the corpus: tokenizing refuses a document with one.

    Returns:
        The largest id + 1.

    Raises:
        UserError: A token of the vocabulary itself has no row.
    """
    vocabulary = tokenizer.get_vocab()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    size = 1 + max(vocabulary.values())
    if any(number >= rows and token not in added for token, number in vocabulary.items()):
        raise UserError(
            f"{source}: the tokenizer has {size} tokens, the model {rows}",
            "Take the tokenizer that belongs to the model",
        )
    return size


def document_tokens(model: BaseModel, tokenizer: Any, rows: int) -> tuple[int, int]:
    """The ids of the tokens before and after each document.

    They are those that the model's YAML file names, else bos and eos; where there is no bos, eos.

    Args:
        model: The registry's entry.
        tokenizer: Its tokenizer.
        rows: Rows of the model's embedding.

    Raises:
        UserError: One or both are unknown, or have no row.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokens = {
        "prefix_token": model.prefix_token or bos or eos,
        "end_token": model.end_token or eos,
    }
    vocabulary = tokenizer.get_vocab()
    ids = {name: vocabulary.get(token, rows) for name, token in tokens.items()}
    missing = {name: token for name, token in tokens.items() if ids[name] >= rows}
    if not missing:
        return ids["prefix_token"], ids["end_token"]
    problems = [_problem(name, token, vocabulary) for name, token in missing.items()]
    if None in missing.values():
        lacking = [name for name in ("bos_token", "eos_token") if not getattr(tokenizer, name)]
        problems.append(f"the tokenizer has no {' and no '.join(lacking)}")
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    choice = (
        f"among {', '.join(added[:MAX_CANDIDATES])}, for example" if added else "that texts lack"
    )
    values = {**model.content, **tokens, **dict.fromkeys(missing, "TOKEN")}
    raise UserError(
        f"model {model.id}: {', '.join(problems)}",
        f"Write a file {model.id}.yaml with {json.dumps(values, ensure_ascii=False)}, where TOKEN "
        f"is a token of its vocabulary ({choice}), and type MODEL={model.id}.yaml",
    )


def _problem(setting: str, token: str | None, vocabulary: Mapping[str, int]) -> str:
    """Why a setting names no token that documents can have around them."""
    if token is None:
        return f"{setting} is not set"
    where = "has no row in the embedding" if token in vocabulary else "is not in the vocabulary"
    return f"{setting} {token!r} {where}"
