"""Tokenize: every chunk becomes a unit of three Parquet shards; a seal then lists and judges them.

A document's split is decided by a hash of its text (or of the data set's `split_by` field), so it
is the same whatever chunk, task or order it comes in. Lines that are no records go to
`quarantine.jsonl` with their place and the reason.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import model_validator

from pipeline.core.receipt import Receipt, hash_json
from pipeline.core.settings import Section, hashed, not_hashed
from pipeline.core.stage import Context, Inputs, Item, RunConfig, Step
from pipeline.sources.records import MAX_LINE_BYTES

SMALL = 5_000_000_000


class TokenizeConfig(Section):
    """How documents are split and encoded.

    `validation`, `test`: share of the documents held out; auto is 5 % under 5 GB of text, 0.5 %
    above. `tasks`: array elements the chunks are shared among. `max_bad_lines`, `max_bad_share`:
    malformed lines that are put aside before the corpus is refused; all, and of all.
    `max_line_bytes`: a longer line is malformed. A tokenizer wants 120 to 220 bytes of memory a
    byte.
    """

    validation: Literal["auto"] | float = hashed("auto", neutral="auto")
    test: Literal["auto"] | float = hashed("auto", neutral="auto")
    tasks: int = not_hashed(16, ge=1)
    max_bad_lines: int = not_hashed(1000, ge=0)
    max_bad_share: float = not_hashed(0.1, ge=0, le=1)
    max_line_bytes: int = hashed(  # so that the tokens of a line fit into a Parquet page
        MAX_LINE_BYTES, neutral=16_000_000, ge=1000, le=500_000_000
    )

    @model_validator(mode="after")
    def _leave_something(self) -> TokenizeConfig:
        shares = [share for share in (self.validation, self.test) if share != "auto"]
        if any(not 0 < float(share) < 0.5 for share in shares):
            raise ValueError("validation and test must lie between 0 and 0.5, or be auto")
        return self


def items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item a chunk."""
    parts = list(inputs["decompress.chunks"].receipts.values())
    _, receipt = inputs["download.model"].one()
    small = sum(part.facts["bytes"] for part in parts) < SMALL
    shares = {
        name: (0.05 if small else 0.005) if share == "auto" else share
        for name, share in [
            ("validation", config.tokenize.validation),
            ("test", config.tokenize.test),
        ]
    }
    read = {
        "tokenizer": receipt.outputs["tokenizer.json"].sha256,
        "split": json.dumps(shares, sort_keys=True),
    }
    return [
        # the place is in the ids of records that bring none, and in the quarantine
        Item(
            chunk,
            {**read, "chunk": digest, "place": hash_json(files)},
            {"shares": shares, "files": files},
        )
        for chunk, digest, files in _chunks(parts)
    ]


def _chunks(parts: list[Receipt]) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    """Each chunk, its digest, and the raw files in it, each with the line after which it begins.

    That is below zero for a file that began in a chunk before.
    """
    names: list[str] = []
    begins: list[int] = []
    found: list[tuple[str, str, int]] = []
    line = 0
    for part in parts:
        names += part.facts["files"]
        begins += [line + begin for begin in part.facts["files"].values()]
        firsts = part.facts["first_lines"]
        found += [(chunk, part.units[chunk], line + first) for chunk, first in firsts.items()]
        line += part.facts["lines"]
    afters = [first for _, _, first in found[1:]] + [line]
    for (chunk, digest, first), after in zip(found, afters, strict=True):
        span = range(bisect_right(begins, first) - 1, bisect_left(begins, after))
        yield chunk, digest, [(names[n], begins[n] - first) for n in span]


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Turn one chunk into the shards of the three splits.

    Raises:
        CorruptInput: The chunk or the tokenizer is damaged, or too many lines are no records.
    """
    from pipeline.tokenize.chunk import tokenize

    tokenize(config, item, inputs, ctx)


def seal_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item: the whole list of shards."""
    return [Item("seal", {"shards": inputs["tokenize.shards"].digest})]


def seal(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Verify every shard, count, find duplicate texts, and write the card of the data set.

    Raises:
        CorruptInput: A shard is damaged, a split is empty, or too many lines were malformed.
        UserError: No document says what decides its split, as it should.
    """
    from pipeline.tokenize.seal import seal

    seal(config, item, inputs, ctx)


def what_is_read(inputs: Inputs) -> dict[str, str]:
    """What later stages read: the corpus, the base model, the tokens put around each document."""
    _, receipt = inputs["download.model"].one()
    ends = f"{receipt.facts['prefix_id']} {receipt.facts['end_id']}"
    named = ("tokenize.seal", "download.model")
    return {"ends": ends, **{name: inputs[name].digest for name in named}}


def _folder(config: RunConfig, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/shards-{config.model.id}-{keys['tokenize.shards']}"


STEPS = (
    Step(
        stage="tokenize",
        name="tokenize.shards",
        version=4,
        uses=(
            "tokenize.max_line_bytes",
            "dataset.text_field",
            "dataset.id_field",
            "dataset.split_by",
        ),
        resolved=("tokenize.validation", "tokenize.test"),
        reads=("tokenize",),
        needs=("decompress.chunks", "download.model"),
        folder=_folder,
        items=items,
        run=run,
        tasks="tokenize.tasks",
    ),
    Step(
        stage="tokenize",
        name="tokenize.seal",
        version=2,
        uses=(),
        reads=("tokenize", "dataset", "model", "decompress.keep_chunks"),
        needs=("decompress.chunks", "tokenize.shards"),
        folder=_folder,
        items=seal_items,
        run=seal,
    ),
)
