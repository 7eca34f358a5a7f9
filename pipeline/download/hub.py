"""Download models from the Hugging Face hub, and translate the errors of its libraries.

The revision is resolved to a commit when the download starts. Files go through
`pipeline.download.fetch`, which resumes within a file and checks the sha256 that the hub publishes
(`huggingface_hub.snapshot_download` does neither).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import CorruptInput, InputError
from pipeline.core.registry import ADAPTER_FILE, adapter_error
from pipeline.core.stop import Stop
from pipeline.download.checkpoint import CONFIG_FILE, check_files
from pipeline.download.fetch import fetch
from pipeline.download.response import status_line
from pipeline.download.resume import ProgressCallback, require_free_space
from pipeline.download.transport import DEFAULT_RETRY_POLICY, RetryPolicy, certificate_problem

CONFIG_AND_TOKENIZER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
HINTS = {
    "dataset": "set HF_ENDPOINT to a mirror, or FILE= to a local copy",
    "model": "set HF_ENDPOINT to a mirror, or MODEL= to a local folder",
}
LIBRARIES = (
    "huggingface_hub", "httpx", "httpx2", "datasets", "fsspec", "pyarrow", "zstandard", "zlib",
    "_lzma",
)  # fmt: skip
WEIGHT_FILES = (  # pattern, and the index that sharded weights need
    (r"model\.safetensors", ""),
    (r"model-\d+-of-\d+\.safetensors", "model.safetensors.index.json"),
    (r"pytorch_model\.bin", ""),
    (r"pytorch_model-\d+-of-\d+\.bin", "pytorch_model.bin.index.json"),
)


def fetch_repo(
    repo: str,
    revision: str | None,
    folder: Path,
    stop: Stop,
    progress: ProgressCallback,
    policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> dict[str, Any]:
    """Download config, tokenizer and weights of a model, each file resumable and verified.

    Weights are safetensors if the repo has them, else pytorch_model*.bin. Code is not downloaded.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None for the default branch.
        folder: Where the files go; files of an interrupted download are resumed.
        stop: Checked between blocks.
        progress: Called with (bytes so far, bytes of all files).
        policy: Timeouts and retries.

    Returns:
        `repo`, `revision` (the commit) and `files` (names in `folder`).

    Raises:
        InputError: The hub or the repo is unavailable or needs a token, or has no weights.
        CorruptInput: A file does not match the hub's sha256 or size, or config.json is damaged.
        UserError: It is an adapter, or quantized.
        Interrupted: A stop was requested.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    with map_hub_errors(repo, "model"):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    listed = {f.rfilename: f for f in info.siblings or []}
    names = select_files(repo, sorted(listed))
    total, done = sum(listed[name].size or 0 for name in names), 0
    folder.mkdir(parents=True, exist_ok=True)
    existing = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    require_free_space(folder, total - existing)
    token = {k: v for k, v in build_hf_headers().items() if k == "authorization"}

    def total_progress(file_bytes: int, _: int | None) -> None:
        progress(done + file_bytes, total)

    for name in names:
        lfs = listed[name].lfs
        try:
            fetched = fetch(
                [hf_hub_url(repo, name, revision=info.sha)],
                folder / name,
                sha256=lfs.sha256 if lfs else None,
                size=listed[name].size,
                stop=stop,
                progress=total_progress,
                headers=token,
                policy=policy,
            )
        except CorruptInput:
            raise
        except InputError as error:
            raise InputError(error.what, HINTS["model"]) from error
        if name == CONFIG_FILE:  # before the weights, which may be large
            check_files(f"hf://{repo}", folder, [name])
        done += fetched.size
    return {"repo": repo, "revision": info.sha, "files": names}


def select_files(repo: str, names: list[str]) -> list[str]:
    """The files of a model repo that are needed to load it offline.

    Raises:
        InputError: There is no config.json, no index of shards, or no weights in a supported
            format.
        UserError: It is an adapter.
    """
    missing = ""
    for pattern, index in WEIGHT_FILES:
        weights = [n for n in names if re.fullmatch(pattern, n)]
        if weights and (not index or index in names):
            weights += [index] if index else []
            break
        missing = missing or index * bool(weights)
    else:
        if missing:
            raise InputError(f"{repo} has shards and no {missing}", "Copy this file, too")
        if any(name.rpartition("/")[2] == ADAPTER_FILE for name in names):
            raise adapter_error(repo)
        raise InputError(
            f"{repo} has no weights as safetensors or pytorch_model.bin", "Take another MODEL"
        )
    if "config.json" not in names:
        raise InputError(f"{repo} has no config.json", "Take another MODEL")
    return [n for n in CONFIG_AND_TOKENIZER_FILES if n in names] + weights


def resolve_revision(repo: str, revision: str | None, repo_type: str) -> str:
    """The commit that a revision points to now; `repo_type` is `model` or `dataset`.

    Raises:
        InputError: The hub or the repo is unavailable or needs a token.
    """
    from huggingface_hub import HfApi

    with map_hub_errors(repo, repo_type):
        return str(HfApi().repo_info(repo, revision=revision, repo_type=repo_type).sha)


@contextmanager
def map_hub_errors(repo: str, repo_type: str) -> Iterator[None]:
    """Turn the errors of the hub's libraries into one line with a hint; others pass unchanged.

    Raises:
        InputError: Instead of an error of the libraries, the network or the data.
    """
    try:
        yield
    except Exception as error:
        if not _is_library_error(error):
            raise
        raise InputError(f"{repo_type} {repo}: {_reason(error)}", HINTS[repo_type]) from error


def _is_library_error(error: Exception) -> bool:
    """Whether the hub's libraries raise this for what they were given, rather than for a bug.

    These are exceptions that they define and those that they document: OSError for the network,
    ValueError for a wrong name, split or file, RuntimeError for a dataset with a script, EOFError
    for a truncated file, and the TypeError of a column whose type differs between files.
    """
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if modules & set(LIBRARIES):
        return True
    if isinstance(error, TypeError):
        return str(error).startswith("Couldn't cast array")
    return isinstance(error, OSError | ValueError | RuntimeError | EOFError)


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if why := certificate_problem(error):
        return f"{hub}: {why}"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated: accept its terms on {hub} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub} has no such revision of it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no such repo, or it is private and needs HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        token = ", so HF_TOKEN is missing or not valid" if status in (401, 403) else ""
        return f"{hub} answers: {status_line(status)}{token}"
    message = next(iter(str(error).strip().splitlines()), "")
    network = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
    what = f"{hub} cannot be reached" if network else "it cannot be read"
    return f"{what} ({type(error).__name__}: {message[:200]})"
