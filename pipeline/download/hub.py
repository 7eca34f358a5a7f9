"""The Hugging Face hub: models as the files that are needed, and what its libraries' errors mean.

A model is pinned to the commit that its revision means when the download starts. Its files go
through `pipeline.download.fetch`, which resumes within a file and checks the sha256 that the hub
publishes (`huggingface_hub.snapshot_download` does neither).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import CorruptInput, InputError
from pipeline.core.stop import Stop
from pipeline.download.fetch import fetch
from pipeline.download.response import status_line
from pipeline.download.resume import Progress, require_free_space
from pipeline.download.transport import PATIENCE, Patience, distrust

SIDE_FILES = (
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
REMEDY = {
    "dataset": "set HF_ENDPOINT to a mirror, or FILE= to a copy that is here",
    "model": "set HF_ENDPOINT to a mirror, or MODEL= to a local folder",
}
WEIGHTS = (
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
    progress: Progress,
    patience: Patience = PATIENCE,
) -> dict[str, Any]:
    """Download config, tokenizer and weights of a model, each file resumable and verified.

    Safetensors where there are any, else PyTorch's own form; never both, and no code.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None for the default branch.
        folder: Where the files go; what is there already of this commit is kept.
        stop: Looked at between blocks.
        progress: Called with (bytes there, bytes of all files).
        patience: Time-outs and retries.

    Returns:
        `repo`, `revision` (the commit) and `files` (names in `folder`).

    Raises:
        InputError: The hub or the repo is not there, is not open to us, or has no weights.
        CorruptInput: A file is not what the hub says it is.
        Interrupted: A stop was asked for.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    with telling(repo, "model"):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    listed = {f.rfilename: f for f in info.siblings or []}
    names = choose(repo, sorted(listed))
    total, done = sum(listed[name].size or 0 for name in names), 0
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    require_free_space(folder, total - there)
    token = {k: v for k, v in build_hf_headers().items() if k == "authorization"}

    def show(there: int, _: int | None) -> None:
        progress(done + there, total)

    for name in names:
        lfs = listed[name].lfs
        try:
            fetched = fetch(
                [hf_hub_url(repo, name, revision=info.sha)],
                folder / name,
                sha256=lfs.sha256 if lfs else None,
                size=listed[name].size,
                stop=stop,
                progress=show,
                headers=token,
                patience=patience,
            )
        except CorruptInput:
            raise
        except InputError as error:
            raise InputError(error.what, REMEDY["model"]) from error
        done += fetched.size
    return {"repo": repo, "revision": info.sha, "files": names}


def choose(repo: str, names: list[str]) -> list[str]:
    """The files of a model repo that are needed to load it offline.

    Raises:
        InputError: There is no configuration, or there are no weights that can be read safely.
    """
    for pattern, index in WEIGHTS:
        weights = [n for n in names if re.fullmatch(pattern, n)]
        if weights and (not index or index in names):
            weights += [index] if index else []
            break
    else:
        raise InputError(
            f"{repo} has no weights as safetensors or pytorch_model.bin", "take another MODEL"
        )
    if "config.json" not in names:
        raise InputError(f"{repo} has no config.json", "take another MODEL")
    return [n for n in SIDE_FILES if n in names] + weights


def resolve_revision(repo: str, revision: str | None, kind: str) -> str:
    """The commit that a revision of a hub repo means now; `kind` is `model` or `dataset`.

    Raises:
        InputError: The hub or the repo is not there, or not open to us.
    """
    from huggingface_hub import HfApi

    with telling(repo, kind):
        return str(HfApi().repo_info(repo, revision=revision, repo_type=kind).sha)


@contextmanager
def telling(repo: str, kind: str) -> Iterator[None]:
    """Tell what the hub's libraries raise in one line, with a remedy.

    Raises:
        InputError: In place of any error of theirs.
    """
    try:
        yield
    except Exception as error:
        raise InputError(f"{kind} {repo}: {_reason(error)}", REMEDY[kind]) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if why := distrust(error):
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
    said = next(iter(str(error).strip().splitlines()), "")
    network = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
    fault = f"{hub} cannot be reached" if network else "it cannot be read"
    return f"{fault} ({type(error).__name__}: {said[:200]})"
