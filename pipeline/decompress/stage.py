"""The decompress stage: converts raw files to JSON lines and writes them as compressed chunks.

A chunk is a zstd file of about `chunk_bytes` of text; the last chunk of a part is smaller.
Whole files, and spans of files with many zstd frames, make up parts, which tasks share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.commit import set_aside
from pipeline.core.errors import CorruptInput, InputError
from pipeline.core.receipt import Receipt, hash_file, hash_json
from pipeline.core.settings import Section, hashed, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.decompress.disk_estimate import estimate_chunks
from pipeline.decompress.partition import FileSlice, partition, spans_of
from pipeline.sources.chunks import PartFacts, as_facts, chunk_facts
from pipeline.sources.data_files import ARCHIVE, format_of
from pipeline.sources.formats import FORMAT_VERSIONS

ANOTHER_COPY = "Get an intact copy and pass it as FILE="


class DecompressConfig(Section):
    """How the corpus is cut.

    `chunk_bytes`: approximate bytes of text per chunk. `level`: zstd level of the chunks.
    `part_bytes`: approximate raw bytes per part; only zstd files of several frames are divided.
    `tasks`: array elements that share the parts. `keep_chunks`: whether chunks stay after their
    shards are sealed; if not, they are rebuilt on demand.
    """

    chunk_bytes: int = hashed(256_000_000, neutral=256_000_000, ge=1000)
    level: int = hashed(1, neutral=1, ge=1, le=19)
    part_bytes: int = hashed(256_000_000, neutral=256_000_000, ge=1000)
    tasks: int = not_hashed(4, ge=1)
    keep_chunks: bool = not_hashed(True)


def items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item per part of the corpus."""
    _, receipt = inputs["download.corpus"].one()
    form = config.dataset.form
    # the extension is hashed with each file, because `auto` reads the file by it
    formats = {name: format_of(name) if form == "auto" else "" for name in receipt.outputs}
    divisible = {name for name, known in formats.items() if (known or form) in ("jsonl", "auto")}
    read_as = {name: _read_as(known, config) for name, known in formats.items()}
    parts = partition(
        [
            (name, output.size, spans if name in divisible and len(spans) > 1 else [])
            for name, output in receipt.outputs.items()
            for spans in [spans_of(receipt, name)]
        ],
        config.decompress.part_bytes,
    )
    return [
        Item(
            f"part-{number:05d}",
            {"files": hash_json([[*_key_values(p, receipt), read_as[p.name]] for p in part])},
            {"slices": part, "parts": len(parts)},
        )
        for number, part in enumerate(parts)
    ]


def _read_as(known: str | None, config: RunConfig) -> Any:
    """What decides, besides its bytes, which lines a file becomes.

    Args:
        known: The format that its name says, empty if the settings say it.
        config: The run.
    """
    dataset = config.dataset
    form = known or dataset.form
    if form == ARCHIVE:
        return [known, FORMAT_VERSIONS]
    if form not in FORMAT_VERSIONS:
        return known
    # of Parquet, only the columns that are needed are read
    fields = [dataset.text_field, dataset.id_field, dataset.split_by] if form == "parquet" else []
    return [known, FORMAT_VERSIONS[form], *fields]


def _key_values(file_slice: FileSlice, receipt: Receipt) -> list[object]:
    """What identifies the bytes of a slice. The name is in the ids of documents without an id."""
    output = receipt.outputs[file_slice.name]
    return [
        file_slice.name,
        output.sha256,
        *file_slice.byte_range(spans_of(receipt, file_slice.name), output.size),
    ]


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Cut a part into `chunk-…` units, and list them in the unit of the part.

    Raises:
        CorruptInput: A raw file cannot be read, or has changed since it was downloaded.
    """
    from pipeline.decompress.cutting import ChunkCutter, PartReader

    unit, receipt = inputs["download.corpus"].one()
    slices: list[FileSlice] = item.data["slices"]
    settings = config.decompress
    part = PartReader(unit, receipt, slices, config.dataset, ctx)
    prefix = item.name.replace("part", "chunk")
    cutter = ChunkCutter(prefix, part.line_reader, settings.chunk_bytes, settings.level, ctx)
    try:
        cutter.cut()
    except CorruptInput as error:
        if error.unit == unit:
            _check_downloaded(unit, receipt, slices, error, ctx)
            # chunks that were cut from a damaged file cannot be trusted
            for chunk in filter(ctx.has, cutter.names):
                set_aside(ctx.folder / chunk, "damaged")
        raise
    if not cutter.names and item.data["parts"] == 1:
        raise CorruptInput(f"{unit} holds no text", ANOTHER_COPY)
    chunks = {name: _committed(name, ctx) for name in cutter.names}
    facts: PartFacts = {
        "lines": part.line_reader.lines_read,
        "bytes": part.line_reader.bytes_read,
        "files": part.file_starts,
        "first_lines": {name: chunk_facts(chunk)["first_line"] for name, chunk in chunks.items()},
    }
    with ctx.commit(item.name) as draft:
        draft.units = {name: chunk.digest for name, chunk in chunks.items()}
        draft.facts = as_facts(facts)


def _check_downloaded(
    unit: Path, receipt: Receipt, slices: Sequence[FileSlice], error: CorruptInput, ctx: Context
) -> None:
    """Refuse the corpus if its files are still as they were downloaded, but cannot be read."""
    for file_slice in slices:
        try:
            digest = hash_file(unit / file_slice.name, ctx.stop.check)
        except OSError:
            return
        if digest != receipt.outputs[file_slice.name].sha256:
            return
    if error.hint:
        raise InputError(error.what, error.hint) from None
    raise CorruptInput(f"{error.what}; it was downloaded in this state", ANOTHER_COPY) from None


def _committed(chunk: str, ctx: Context) -> Receipt:
    receipt = ctx.has(chunk)
    if receipt is None:
        raise CorruptInput(f"{ctx.folder / chunk} vanished after it was committed")
    return receipt


def _folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/chunks-{keys['decompress.chunks']}"


STEPS = (
    Step(
        stage="decompress",
        name="decompress.chunks",
        version=3,
        uses=(
            "decompress.chunk_bytes",
            "decompress.level",
            "decompress.part_bytes",
            "dataset.form",
            "dataset.delimiter",
            "dataset.quoting",
            "dataset.columns",
        ),
        reads=("dataset.text_field", "dataset.id_field", "dataset.split_by"),
        needs=("download.corpus",),
        folder=_folder,
        items=items,
        run=run,
        tasks_setting="decompress.tasks",
        leased=True,
        read_by="tokenize.shards",
        estimate=estimate_chunks,
    ),
)
