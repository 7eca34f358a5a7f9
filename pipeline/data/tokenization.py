"""A chunk of JSON lines to shards of tokens: what the step `tokenize.shards` computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xxhash

from pipeline.data.encoder import Encoder
from pipeline.data.quarantine import QUARANTINE, Quarantine
from pipeline.data.raw import CHUNK, Raw
from pipeline.data.records import Bad, Lines, Reader, Record
from pipeline.data.shards import SPLITS, Writer
from pipeline.errors import CorruptInput
from pipeline.receipt import expect, load, verify
from pipeline.stage import Context, Inputs, Item

if TYPE_CHECKING:
    from pipeline.config import Config

BATCH = 2_000_000


def tokenize(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Turn one chunk into the shards of the three splits.

    Raises:
        CorruptInput: The chunk or the tokenizer is damaged, or too many lines are no records.
    """
    unit = inputs["decompress.chunks"].folder / item.name
    model, model_receipt = inputs["download.model"].one()
    verify(model, "tokenizer.json", model_receipt)
    receipt = load(unit)
    if receipt is None:
        raise CorruptInput(f"{unit} has no receipt", unit=unit)
    encoder = Encoder(model)
    with ctx.commit(item.name) as draft:
        writers = {split: Writer(draft.path / f"{split}.parquet") for split in SPLITS}
        raw = Raw(unit / CHUNK, unit)
        quarantine = Quarantine(draft.path / QUARANTINE, config.tokenize.max_bad_lines)
        for batch in _batches(_records(Lines(raw), config, item, quarantine)):
            ctx.stop.check()
            for record, ids in zip(batch, encoder.encode([r.text for r in batch]), strict=True):
                text = record.text.encode()
                digest = xxhash.xxh3_128_digest(text)
                split = _split(record, digest, item.data["shares"])
                writers[split].add(record.id, ids, len(text), digest)
            ctx.progress(raw.read, receipt.outputs[CHUNK].size)
        expect(raw.sha256, unit, CHUNK, receipt)
        quarantine.close()
        for writer in writers.values():
            writer.close()
        draft.facts = {
            "splits": {
                split: {"documents": w.rows, "tokens": w.tokens, "bytes": w.bytes}
                for split, w in writers.items()
            },
            "quarantined": quarantine.count,
            "first_bad": quarantine.first,
            "empty": quarantine.empty,
            "encoder": encoder.name,
            "vocabulary": encoder.vocabulary,
        }


def _records(lines: Lines, config: Config, item: Item, quarantine: Quarantine) -> Iterator[Record]:
    dataset, longest = config.dataset, config.tokenize.max_line_bytes
    reader = Reader(dataset.text_field, dataset.id_field, dataset.split_by, longest)
    (file, begins), *files = item.data["files"]
    files.reverse()
    number = 0
    for batch in lines.whole(BATCH, longest):
        for line in batch:
            number += 1
            while files and number > files[-1][1]:
                file, begins = files.pop()
            record = reader.parse(line, f"{file}:{number - begins}")
            if isinstance(record, Record):
                quarantine.sound += 1
                yield record
            elif isinstance(record, Bad):
                quarantine.add(file, number - begins, line, record)
            else:
                quarantine.empty += 1


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch, size = [], 0
    for record in records:
        batch.append(record)
        size += len(record.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _split(record: Record, digest: bytes, shares: dict[str, float]) -> str:
    """The split of a document: where its hash falls in [0, 1)."""
    if record.split_by is not record.text:
        digest = xxhash.xxh3_128_digest(record.split_by.encode())
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < shares["validation"]:
        return "validation"
    return "test" if point < shares["validation"] + shares["test"] else "train"
