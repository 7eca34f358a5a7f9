"""Decompress: the raw files as JSON lines, cut into chunks that can be worked on independently.

One pass over the raw files in constant memory, hashing them on the way. A chunk that is already
committed is read over, compared and not written again, so an interrupted pass goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.data.forms import form_of, json_lines
from pipeline.data.frames import Press
from pipeline.data.raw import CHUNK, Raw
from pipeline.data.records import Lines
from pipeline.errors import CorruptInput
from pipeline.receipt import Receipt, expect, hash_file, hash_json, set_aside
from pipeline.settings import Section
from pipeline.stage import Context, Inputs, Item, Step

if TYPE_CHECKING:
    from pipeline.config import Config

COPY = "Get a sound copy and give it with FILE="


class DecompressConfig(Section):
    """How the corpus is cut.

    `chunk_bytes`: text in a chunk, about. `level`: zstd level of the chunks.
    """

    chunk_bytes: int = Field(256_000_000, ge=1000)
    level: int = Field(1, ge=1, le=19)


def items(config: Config, inputs: Inputs) -> list[Item]:
    """One item: the input stream, all files in order."""
    _, receipt = inputs["download.corpus"].one()
    auto = config.dataset.form == "auto"
    files = [
        # the name is in the ids of records that bring none
        [name, form_of(name) if auto else "", o.sha256]
        for name, o in receipt.outputs.items()
    ]
    return [Item("complete", {"files": hash_json(files)})]


def run(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Cut the corpus into `chunk-…` units and list them in `complete`.

    Raises:
        CorruptInput: A raw file cannot be read, or is not the one that was downloaded.
    """
    unit, receipt = inputs["download.corpus"].one()
    raws = [Raw(unit / name, unit, ctx.stop.check) for name in receipt.outputs]
    total = sum(output.size for output in receipt.outputs.values())
    begins: dict[str, int] = {}

    def opened() -> Iterator[Raw]:
        for raw in raws:  # the next one is asked for when all lines before it are handed out
            begins[raw.path.name] = lines.line
            yield raw

    lines = Lines(json_lines(opened(), config.dataset.form))
    made: dict[str, Receipt] = {}
    try:
        while lines.more():
            ctx.stop.check()
            chunk = f"chunk-{len(made):05d}"
            made[chunk] = _known(chunk, lines, config, ctx) or _write(chunk, lines, config, ctx)
            ctx.progress(sum(raw.read for raw in raws), total)
        for raw in raws:
            expect(raw.sha256, unit, raw.path.name, receipt)
    except CorruptInput as error:
        if error.unit != unit:
            raise
        if all(
            hash_file(unit / name, ctx.stop.check) == o.sha256
            for name, o in receipt.outputs.items()
        ):
            raise CorruptInput(f"{error.what}; it was so when it came", COPY) from None
        # what was cut from a damaged file is not to be trusted either
        for chunk in made:
            set_aside(ctx.folder / chunk, "damaged")
        raise
    if not made:
        raise CorruptInput(f"{unit} holds no text", COPY)
    with ctx.commit(item.name) as draft:
        draft.units = {chunk: r.digest for chunk, r in made.items()}
        first = {chunk: r.facts["first_line"] for chunk, r in made.items()}
        size = {"lines": lines.line, "bytes": lines.offset}
        draft.facts = {**size, "files": begins, "first_lines": first}


def _write(chunk: str, lines: Lines, config: Config, ctx: Context) -> Receipt:
    first_line, offset = lines.line, lines.offset
    with ctx.commit(chunk) as draft:
        with Press(draft.path / CHUNK, config.decompress.level, ctx.cpus) as press:
            text = _feed(press, lines, config, ctx)
        draft.hashes[CHUNK] = press.sha256
        draft.facts = {
            "lines": lines.line - first_line,
            "bytes": lines.offset - offset,
            "first_line": first_line,
            "offset": offset,
            "text": text,
        }
    committed = ctx.has(chunk)
    if committed is None:
        raise CorruptInput(f"{ctx.folder / chunk} vanished after it was committed")
    return committed


def _known(chunk: str, lines: Lines, config: Config, ctx: Context) -> Receipt | None:
    """Read over a committed chunk, comparing the text with what it was made from."""
    receipt = ctx.has(chunk)
    if receipt is None:
        return None
    with Press(None, threads=ctx.cpus) as press:
        text = _feed(press, lines, config, ctx)
    if text != receipt.facts["text"]:
        raise CorruptInput(
            f"{ctx.folder / chunk} was cut from another text", unit=ctx.folder / chunk
        )
    return receipt


def _feed(press: Press, lines: Lines, config: Config, ctx: Context) -> str:
    """Give a chunk's text to the press; its digest."""
    for piece in lines.pieces(config.decompress.chunk_bytes):
        ctx.stop.check()
        press.add(piece)
    return press.finish()


def _folder(config: Config, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/chunks-{keys['decompress.chunks']}"


STEPS = (
    Step(
        stage="decompress",
        name="decompress.chunks",
        version=2,
        uses=("decompress", "dataset.form"),
        needs=("download.corpus",),
        folder=_folder,
        items=items,
        run=run,
        exclusive=True,
    ),
)
