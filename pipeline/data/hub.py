"""What comes from the hub: data sets as one `.jsonl.zst`, models as the files that are needed.

Both are pinned to the commit that their revision means when the download starts, and both go on
where an interruption left them, to the same bytes. A data set is streamed row by row and written
as many small zstd frames; after each the sidecar says how to go on. Files of a model go through
`pipeline.data.http`, which resumes within a file and checks the sha256 that the hub publishes
(`huggingface_hub.snapshot_download` does neither).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.data.answers import status_line
from pipeline.data.http import PATIENCE, Fetched, Patience, fetch
from pipeline.data.partial import (
    BLOCK,
    Progress,
    check_room,
    read_json,
    room_is_needed,
    write_json,
)
from pipeline.errors import CorruptInput, InputError
from pipeline.registry import Dataset
from pipeline.stop import Stop

ROWS = 1000
LEVEL = 3
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


@dataclass(frozen=True)
class Frames:
    """The sidecar of a data set: `size` bytes with `sha256` hold `rows` rows of `source`.

    `state`: how the stream goes on after them. `whole`: there is nothing after them.
    """

    source: list[str | None]
    size: int = 0
    rows: int = 0
    sha256: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


def fetch_dataset(dataset: Dataset, part: Path, stop: Stop, progress: Progress) -> Fetched:
    """Write the rows of a hub data set to `part`, one JSON object a line, keys sorted.

    Args:
        dataset: Its first URL is `hf://owner/name`; revision, subset and split are its own.
        part: The `.jsonl.zst` to write; beside it lies `<part>.json`. Both may be left from before.
        stop: Looked at between rows; what was written up to the last full frame is kept.
        progress: Called with (bytes written, None) after each frame.

    Returns:
        The file; its `etag` is the commit.

    Raises:
        InputError: The hub, the data set or its split is not there, or breaks off.
        Interrupted: A stop was asked for.
    """
    repo = dataset.urls[0].removeprefix("hf://")
    commit = resolve(repo, dataset.revision, "dataset")
    part.parent.mkdir(parents=True, exist_ok=True)
    frames, digest = _resume(part, [repo, commit, dataset.subset, dataset.split], stop)
    if not frames.whole:
        frames = _stream(dataset, repo, frames, digest, part, stop, progress)
    if not frames.rows:
        raise InputError(f"hf://{repo}: the split {dataset.split!r} has no rows")
    return Fetched(part, dataset.urls[0], frames.size, frames.sha256, etag=commit)


def _stream(
    dataset: Dataset,
    repo: str,
    frames: Frames,
    digest: Any,
    part: Path,
    stop: Stop,
    progress: Progress,
) -> Frames:
    """Write the rows that are missing, frame by frame."""
    import datasets
    import zstandard

    with _telling(repo, "dataset"):
        stream = datasets.load_dataset(
            repo, dataset.subset, split=dataset.split, revision=frames.source[1], streaming=True
        )
    if frames.state:
        stream.load_state_dict(frames.state)
    rows = _rows(stream, repo, stop)
    encoder = msgspec.json.Encoder(order="sorted", enc_hook=str)
    with room_is_needed(part), part.open("ab") as file:
        while not frames.whole:
            lines = [encoder.encode(row) + b"\n" for row in itertools.islice(rows, ROWS)]
            if lines:
                data = zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(lines))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                digest.update(data)
            frames = Frames(
                source=frames.source,
                size=frames.size + (len(data) if lines else 0),
                rows=frames.rows + len(lines),
                sha256=digest.hexdigest(),
                state=stream.state_dict(),
                whole=len(lines) < ROWS,
            )
            write_json(_sidecar(part), frames)
            progress(frames.size, None)
    return frames


def _rows(stream: Any, repo: str, stop: Stop) -> Iterator[Any]:
    with _telling(repo, "dataset"):
        for row in stream:
            stop.check()
            yield row


def _resume(part: Path, source: list[str | None], stop: Stop) -> tuple[Frames, Any]:
    """What is there of this source, cut after its last full frame, and the hash so far."""
    frames, digest = read_json(_sidecar(part), Frames), hashlib.sha256()
    if frames and frames.source == source and part.is_file():
        left = frames.size
        with part.open("rb") as file:
            while left > 0 and (block := file.read(min(BLOCK, left))):
                stop.check()
                digest.update(block)
                left -= len(block)
        if left == 0 and digest.hexdigest() == frames.sha256:
            os.truncate(part, frames.size)
            return frames, digest
    _sidecar(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    return Frames(source), hashlib.sha256()


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


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

    with _telling(repo, "model"):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    listed = {f.rfilename: f for f in info.siblings or []}
    names = choose(repo, sorted(listed))
    total, done = sum(listed[name].size or 0 for name in names), 0
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    check_room(folder, total - there)
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


def resolve(repo: str, revision: str | None, kind: str) -> str:
    """The commit that a revision of a hub repo means now; `kind` is `model` or `dataset`.

    Raises:
        InputError: The hub or the repo is not there, or not open to us.
    """
    from huggingface_hub import HfApi

    with _telling(repo, kind):
        return str(HfApi().repo_info(repo, revision=revision, repo_type=kind).sha)


@contextmanager
def _telling(repo: str, kind: str) -> Iterator[None]:
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
