"""The tokenize stage: each chunk becomes three Parquet shards; a seal verifies and lists them.

A hash of the text (or of the dataset's `split_by` field) decides the split of a document, so it
does not depend on chunks, tasks or order. Malformed lines go to `quarantine.jsonl` with their
position and the reason.
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
from pipeline.sources.chunks import part_facts
from pipeline.sources.records import MAX_LINE_BYTES
from pipeline.tokenize.disk_estimate import estimate_seal, estimate_shards
from pipeline.tokenize.reference_marker import needs_reference

SMALL_CORPUS_BYTES = 5_000_000_000  # of text; below that, larger fractions are held out


class TokenizeConfig(Section):
    """How documents are split and encoded.

    `validation`, `test`: fraction of the documents in the split; `auto` is 5 % below 5 GB of text,
    0.5 % above. `tasks`: array elements that share the chunks. `max_bad_lines`, `max_bad_share`:
    number and fraction of malformed lines above which the corpus is refused. `max_line_bytes`: a
    longer line is malformed; tokenizing takes 120 to 220 bytes of memory per byte of a line.
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
    def _check_fractions(self) -> TokenizeConfig:
        fractions = [value for value in (self.validation, self.test) if value != "auto"]
        if any(not 0 < float(value) < 0.5 for value in fractions):
            raise ValueError("validation and test must lie between 0 and 0.5, or be auto")
        return self


def items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item per chunk."""
    chunks = inputs["decompress.chunks"]
    parts = list(chunks.receipts.values())
    _, receipt = inputs["download.model"].one()
    small = sum(part_facts(part)["bytes"] for part in parts) < SMALL_CORPUS_BYTES
    fractions = {
        name: (0.05 if small else 0.005) if value == "auto" else value
        for name, value in [
            ("validation", config.tokenize.validation),
            ("test", config.tokenize.test),
        ]
    }
    rows = receipt.facts["vocabulary"]
    file = receipt.outputs.get("tokenizer.json")  # an old model may have none: refused in `run`
    tokenizer = file.sha256 if file else ""
    read = {"tokenizer": tokenizer, "split": json.dumps(fractions, sort_keys=True)}
    if receipt.facts.get("token_ids", 0) > rows:  # ids that the embedding lacks are refused
        read["rows"] = str(rows)
    if needs_reference(chunks.folder.parent, tokenizer):
        read["encoder"] = "reference"
    return [
        # positions are in the ids of documents without an id, and in the quarantine
        Item(
            chunk,
            {**read, "chunk": digest, "positions": hash_json(files)},
            {"fractions": fractions, "files": files},
        )
        for chunk, digest, files in _chunks(parts)
    ]


def _chunks(parts: list[Receipt]) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    """Each chunk with its digest and its raw files; see `LinePositions` for the latter."""
    names: list[str] = []
    file_starts: list[int] = []
    chunks: list[tuple[str, str, int]] = []
    line = 0
    for part in parts:
        facts = part_facts(part)
        names += facts["files"]
        file_starts += [line + start for start in facts["files"].values()]
        firsts = facts["first_lines"]
        chunks += [(chunk, part.units[chunk], line + first) for chunk, first in firsts.items()]
        line += facts["lines"]
    ends = [first for _, _, first in chunks[1:]] + [line]
    for (chunk, digest, first), end in zip(chunks, ends, strict=True):
        files = range(bisect_right(file_starts, first) - 1, bisect_left(file_starts, end))
        yield chunk, digest, [(names[n], file_starts[n] - first) for n in files]


def run(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Tokenize one chunk; see `tokenize_chunk`."""
    from pipeline.tokenize.chunk import tokenize_chunk

    tokenize_chunk(config, item, inputs, ctx)


def seal_items(config: RunConfig, inputs: Inputs) -> list[Item]:
    """One item: the list of all shards."""
    return [Item("seal", {"shards": inputs["tokenize.shards"].digest})]


def seal(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Seal the shards; see `seal_shards`."""
    from pipeline.tokenize.seal import seal_shards

    seal_shards(config, item, inputs, ctx)


def downstream_inputs(inputs: Inputs) -> dict[str, str]:
    """Inputs of the steps that read sealed shards: digests, and the tokens around each document."""
    _, receipt = inputs["download.model"].one()
    ends = f"{receipt.facts['prefix_id']} {receipt.facts['end_id']}"
    named = ("tokenize.seal", "download.model")
    return {"special_tokens": ends, **{name: inputs[name].digest for name in named}}


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
        tasks_setting="tokenize.tasks",
        estimate=estimate_shards,
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
        estimate=estimate_seal,
    ),
)
