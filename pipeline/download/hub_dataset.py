"""Data sets of the Hugging Face hub as one `.jsonl.zst`.

Rows are streamed and written as many small zstd frames; after each the sidecar says how to go on,
so an interrupted download ends in the same bytes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core.errors import InputError
from pipeline.core.registry import Dataset
from pipeline.core.stop import Stop
from pipeline.download.fetch import Fetched
from pipeline.download.hub import resolve_revision, telling
from pipeline.download.resume import BLOCK, Progress, read_json, room_is_needed, write_json
from pipeline.sources.spans import Fingerprint

ROWS = 1000
LEVEL = 3


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
    commit = resolve_revision(repo, dataset.revision, "dataset")
    part.parent.mkdir(parents=True, exist_ok=True)
    frames, seen = _resume(part, [repo, commit, dataset.subset, dataset.split], stop)
    if not frames.whole:
        frames = _stream(dataset, repo, frames, seen, part, stop, progress)
    if not frames.rows:
        raise InputError(f"hf://{repo}: the split {dataset.split!r} has no rows")
    url = dataset.urls[0]
    return Fetched(part, url, frames.size, frames.sha256, etag=commit, spans=seen.spans)


def _stream(
    dataset: Dataset,
    repo: str,
    frames: Frames,
    seen: Fingerprint,
    part: Path,
    stop: Stop,
    progress: Progress,
) -> Frames:
    """Write the rows that are missing, frame by frame."""
    import datasets
    import zstandard

    with telling(repo, "dataset"):
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
                seen.update(data)
            frames = Frames(
                source=frames.source,
                size=frames.size + (len(data) if lines else 0),
                rows=frames.rows + len(lines),
                sha256=seen.hexdigest(),
                state=stream.state_dict(),
                whole=len(lines) < ROWS,
            )
            write_json(_sidecar(part), frames)
            progress(frames.size, None)
    return frames


def _rows(stream: Any, repo: str, stop: Stop) -> Iterator[Any]:
    with telling(repo, "dataset"):
        for row in stream:
            stop.check()
            yield row


def _resume(part: Path, source: list[str | None], stop: Stop) -> tuple[Frames, Fingerprint]:
    """What is there of this source, cut after its last full frame, and the hash so far."""
    frames, seen = read_json(_sidecar(part), Frames), Fingerprint()
    if frames and frames.source == source and part.is_file():
        left = frames.size
        with part.open("rb") as file:
            while left > 0 and (block := file.read(min(BLOCK, left))):
                stop.check()
                seen.update(block)
                left -= len(block)
        if left == 0 and seen.hexdigest() == frames.sha256:
            os.truncate(part, frames.size)
            return frames, seen
    _sidecar(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    return Frames(source), Fingerprint()


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")
