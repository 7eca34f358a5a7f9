"""Datasets of the Hugging Face hub as one `.jsonl.zst` file.

Rows are streamed and written as many small zstd frames. After each frame, the sidecar of the
partial file records where the stream continues, so an interrupted download gives the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core.errors import InputError
from pipeline.core.registry import Dataset
from pipeline.core.stop import Stop
from pipeline.download.fetch import FetchedFile
from pipeline.download.hub import map_hub_errors, resolve_revision
from pipeline.download.resume import PartFile, ProgressCallback, RemoteContent
from pipeline.sources.parquet_rows import as_text

ROWS_PER_FRAME = 1000
ZSTD_LEVEL = 3


def fetch_dataset(
    dataset: Dataset, partial_path: Path, stop: Stop, progress: ProgressCallback
) -> FetchedFile:
    """Write the rows of a hub dataset to `partial_path`, one JSON object per line, keys sorted.

    Args:
        dataset: Its first URL is `hf://owner/name`; it has its own revision, subset and split.
        partial_path: The `.jsonl.zst` to write. It and its sidecar, see `PartFile`, may exist from
            an interrupted call.
        stop: Checked after each row; complete frames are kept.
        progress: Called with (bytes written, None) after each frame.

    Returns:
        The file; its `etag` is the commit.

    Raises:
        InputError: The hub, the dataset or its split does not exist, or the download failed.
        Interrupted: A stop was requested.
    """
    url = dataset.urls[0]
    repo = url.removeprefix("hf://")
    commit = resolve_revision(repo, dataset.revision, "dataset")
    partial_path.parent.mkdir(parents=True, exist_ok=True)
    file = PartFile(partial_path, sync_bytes=1)  # after each frame
    content = RemoteContent(f"{url}/{dataset.subset or ''}/{dataset.split}", etag=commit)
    if file.identity and (file.identity.url, file.identity.etag) == (content.url, content.etag):
        file.resume(stop)
    else:
        file.discard()
    if file.identity is None:
        file.start(content)
    if not file.complete:
        _append_rows(dataset, repo, commit, file, stop, progress)
        file.finish()
    if not file.size:
        raise InputError(f"hf://{repo}: the split {dataset.split!r} has no rows")
    fingerprint = file.fingerprint
    return FetchedFile(
        partial_path, url, file.size, fingerprint.hexdigest(), etag=commit, spans=fingerprint.spans
    )


def _append_rows(
    dataset: Dataset,
    repo: str,
    commit: str,
    file: PartFile,
    stop: Stop,
    progress: ProgressCallback,
) -> None:
    """Write the rows that are missing, frame by frame."""
    import datasets

    with map_hub_errors(repo, "dataset"):
        stream = datasets.load_dataset(
            repo, dataset.subset, split=dataset.split, revision=commit, streaming=True
        )
    if file.identity and file.identity.state:
        stream.load_state_dict(file.identity.state)
    file.append(_frames(_rows(stream, repo, stop)), stop, progress, state=stream.state_dict)


def _frames(rows: Iterator[Any]) -> Iterator[bytes]:
    """Rows as zstd frames of JSON lines."""
    import zstandard

    encoder = msgspec.json.Encoder(order="sorted", enc_hook=str)
    while lines := [
        encoder.encode(readable(row)) + b"\n" for row in itertools.islice(rows, ROWS_PER_FRAME)
    ]:
        yield zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b"".join(lines))


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its bytes as text; an object, which is no text, for bytes that are not UTF-8."""
    columns = {}
    for name, value in row.items():
        try:
            columns[name] = as_text(value)
        except UnicodeDecodeError as error:
            columns[name] = {"not UTF-8": str(error)}
    return columns


def _rows(stream: Any, repo: str, stop: Stop) -> Iterator[Any]:
    with map_hub_errors(repo, "dataset"):
        for row in stream:
            stop.check()
            yield row
