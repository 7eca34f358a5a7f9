"""Decompress: the raw files as JSON lines, cut into chunks that can be worked on independently.

Many files, and the spans of files of many zstd frames, make parts, which tasks share among them. A
part is one pass in constant memory, hashing on the way. A chunk that is already committed is read
over, compared and not written again, so an interrupted pass goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import Receipt, hash_file, hash_json, set_aside
from pipeline.core.settings import Section, hashed, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.decompress.disk_estimate import estimate_chunks
from pipeline.decompress.partition import Slice, Sliced, divide
from pipeline.sources.codecs import CHUNK_NAME, RawFile
from pipeline.sources.formats import format_of, json_lines
from pipeline.sources.records import LineReader
from pipeline.sources.spans import Span
from pipeline.sources.zstd_frames import FrameWriter

COPY = "Get a sound copy and give it with FILE="


class DecompressConfig(Section):
    """How the corpus is cut.

    `chunk_bytes`: text in a chunk, about. `level`: zstd level of the chunks. `part_bytes`: raw
    bytes in a part, about; a file that is one frame, or of another codec than zstd, is not divided.
    `tasks`: array elements the parts are shared among. `keep_chunks`: whether chunks stay when
    their shards are sealed; where they are needed again, they are made again.
    """

    chunk_bytes: int = hashed(256_000_000, neutral=256_000_000, ge=1000)
    level: int = hashed(1, neutral=1, ge=1, le=19)
    part_bytes: int = hashed(256_000_000, neutral=256_000_000, ge=1000)
    tasks: int = not_hashed(4, ge=1)
    keep_chunks: bool = not_hashed(True)


def items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item a part of the corpus."""
    _, receipt = inputs["download.corpus"].one()
    form = config.dataset.form
    # the name is in the ids of records that bring none
    forms = {name: format_of(name) if form == "auto" else "" for name in receipt.outputs}
    lines = {name for name, known in forms.items() if (known or form) in ("jsonl", "auto")}
    parts = divide(
        [
            (name, output.size, spans if name in lines and len(spans) > 1 else [])
            for name, output in receipt.outputs.items()
            for spans in [_spans(receipt, name)]
        ],
        config.decompress.part_bytes,
    )
    return [
        Item(
            f"part-{number:05d}",
            {"files": hash_json([[*_told(piece, receipt), forms[piece.name]] for piece in part])},
            {"slices": part, "of": len(parts)},
        )
        for number, part in enumerate(parts)
    ]


def _told(piece: Slice, receipt: Receipt) -> list[object]:
    output = receipt.outputs[piece.name]
    return [piece.name, output.sha256, *piece.bounds(_spans(receipt, piece.name), output.size)]


def _spans(receipt: Receipt, name: str) -> list[Span]:
    """Where a raw file can be taken up; none where it came before that was looked for."""
    return [Span(**span) for span in receipt.facts.get("spans", {}).get(name, [])]


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Cut a part into `chunk-…` units and list them in its own.

    Raises:
        CorruptInput: A raw file cannot be read, or is not the one that was downloaded.
    """
    unit, receipt = inputs["download.corpus"].one()
    pieces: list[Slice] = item.data["slices"]
    begins: dict[str, int] = {}

    def pause() -> None:
        ctx.stop.check()
        ctx.progress(sum(raw.bytes_read for raw in raws), total, lines=lines.lines_read)

    def opened() -> Iterator[RawFile]:
        for piece, raw in zip(pieces, raws, strict=True):
            if not piece.first:  # all lines before it are handed out
                begins[piece.name] = lines.lines_read
            yield raw
            raw.verify(receipt)

    raws, total = [], 0
    for piece in pieces:
        path, spans = unit / piece.name, _spans(receipt, piece.name)
        sliced = Sliced(path, unit, spans, piece, pause) if piece.after else None
        raws.append(sliced or RawFile(path, unit, pause, spans[0] if len(spans) == 1 else None))
        begin, end = piece.bounds(spans, receipt.outputs[piece.name].size)
        total += end - begin
    lines = LineReader(json_lines(opened(), config.dataset.form))
    made: list[str] = []
    try:
        _cut(item.name.replace("part", "chunk"), made, lines, config, ctx)
    except CorruptInput as error:
        if error.unit != unit:
            raise
        if all(_sound(unit / piece.name, receipt, ctx) for piece in pieces):
            raise CorruptInput(f"{error.what}; it was so when it came", COPY) from None
        # what was cut from a damaged file is not to be trusted either
        for chunk in filter(ctx.has, made):
            set_aside(ctx.folder / chunk, "damaged")
        raise
    if not made and item.data["of"] == 1:
        raise CorruptInput(f"{unit} holds no text", COPY)
    receipts = {chunk: _receipt(chunk, ctx) for chunk in made}
    with ctx.commit(item.name) as draft:
        draft.units = {chunk: r.digest for chunk, r in receipts.items()}
        first = {chunk: r.facts["first_line"] for chunk, r in receipts.items()}
        size = {"lines": lines.lines_read, "bytes": lines.bytes_read}
        draft.facts = {**size, "files": begins, "first_lines": first}


def _sound(path: Path, receipt: Receipt, ctx: Context) -> bool:
    """Whether a raw file is still the one that was downloaded."""
    try:
        return hash_file(path, ctx.stop.check) == receipt.outputs[path.name].sha256
    except OSError:
        return False


def _cut(name: str, made: list[str], lines: LineReader, config: RunConfig, ctx: Context) -> None:
    """Make the chunks of a part, and list them; one is committed while the next is cut."""
    commits: list[Future[None]] = []
    with ThreadPoolExecutor(1) as behind:
        while lines.has_more():
            chunk = f"{name}-{len(made):05d}"
            if known := ctx.has(chunk):
                _compare(known, lines, config, ctx)
            else:
                commits.append(behind.submit(_write(chunk, lines, config, ctx)))
            made.append(chunk)
            while len(commits) > 1:
                commits.pop(0).result()
    for commit in commits:
        commit.result()


def _write(chunk: str, lines: LineReader, config: RunConfig, ctx: Context) -> Callable[[], None]:
    """Feed a chunk to its file; what is returned commits it."""
    first_line, offset, started = lines.lines_read, lines.bytes_read, time.monotonic()
    with ExitStack() as opened:
        draft = opened.enter_context(ctx.commit(chunk))
        press = FrameWriter(draft.path / CHUNK_NAME, config.decompress.level, ctx.cpus)
        opened.enter_context(press)
        _feed(press, lines, config, ctx)
        draft.facts = {
            "lines": lines.lines_read - first_line,
            "bytes": lines.bytes_read - offset,
            "first_line": first_line,
            "offset": offset,
            # of several chunks no second counts twice
            "seconds": round(time.monotonic() - started, 3),
        }
        rest = opened.pop_all()

    def commit() -> None:
        with rest:
            text = press.finish()
            draft.hashes[CHUNK_NAME] = press.sha256
            draft.facts |= {"xxh3": press.xxh3, "text": text}

    return commit


def _compare(known: Receipt, lines: LineReader, config: RunConfig, ctx: Context) -> None:
    """Read over a committed chunk, comparing the text with what it was made from."""
    with FrameWriter(None, threads=ctx.cpus) as press:
        _feed(press, lines, config, ctx)
        text = press.finish()
    if text != known.facts["text"]:
        unit = ctx.folder / known.unit
        raise CorruptInput(f"{unit} was cut from another text", unit=unit)


def _feed(press: FrameWriter, lines: LineReader, config: RunConfig, ctx: Context) -> None:
    """Give a chunk's text to the press."""
    for piece in lines.pieces(config.decompress.chunk_bytes):
        ctx.stop.check()
        press.add(piece)


def _receipt(chunk: str, ctx: Context) -> Receipt:
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
        ),
        needs=("download.corpus",),
        folder=_folder,
        items=items,
        run=run,
        tasks="decompress.tasks",
        exclusive=True,
        read_by="tokenize.shards",
        estimate=estimate_chunks,
    ),
)
