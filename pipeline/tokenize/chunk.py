"""A chunk of JSON lines to shards of tokens: what the step `tokenize.shards` computes.

Blocks of lines become lists of texts, these flat arrays of ids, and these Parquet columns: nothing
is done token by token, and as little as can be document by document.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import Draft, Receipt, load, verify
from pipeline.core.stage import Context, Inputs, Item, RunConfig
from pipeline.sources.codecs import CHUNK_NAME, RawFile
from pipeline.sources.records import LineReader, RecordParser
from pipeline.sources.spans import Span
from pipeline.tokenize.batch_reader import Batch, BatchReader
from pipeline.tokenize.encoder import Encoder, Fast, Mismatch, Reference, load_fast
from pipeline.tokenize.quarantine import QUARANTINE, Quarantine
from pipeline.tokenize.shards import HASH, SPLITS, Documents, Hashes, Writer

BATCH = 2_000_000
SAMPLE = 66  # of 65,536 documents are compared with the reference: one in a thousand


def tokenize(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Turn one chunk into the shards of the three splits.

    Raises:
        CorruptInput: The chunk or the tokenizer is damaged, or too many lines are no records.
    """
    unit = inputs["decompress.chunks"].folder / item.name
    receipt = load(unit)
    if receipt is None:
        raise CorruptInput(f"{unit} has no receipt", unit=unit)
    reference, encoder = _encoders(inputs, ctx)
    try:
        _encode_chunk(config, item, unit, receipt, encoder, reference.vocabulary, ctx)
        return
    except Mismatch as error:
        ctx.log(f"WARNING: {error}. {reference.name} does {item.name} again")
    # for this chunk alone: its bytes are not to depend on which task does the next one
    _encode_chunk(config, item, unit, receipt, reference, reference.vocabulary, ctx)


def _encoders(inputs: Inputs, ctx: Context) -> tuple[Reference, Encoder]:
    """The model's own tokenizer, and what is used in its place; loaded once a task."""
    if "encoders" not in ctx.memo:
        model, receipt = inputs["download.model"].one()
        verify(model, "tokenizer.json", receipt)
        reference = Reference(model)
        encoder, why = load_fast(model, reference)
        if why:
            ctx.log(f"WARNING: {why}. {reference.name} is used, which is slow")
        ctx.memo["encoders"] = reference, encoder
    found: tuple[Reference, Encoder] = ctx.memo["encoders"]
    return found


def _encode_chunk(
    config: RunConfig,
    item: Item,
    unit: Path,
    receipt: Receipt,
    encoder: Encoder,
    vocabulary: int,
    ctx: Context,
) -> None:
    dataset, longest = config.dataset, config.tokenize.max_line_bytes
    reader = BatchReader(
        RecordParser(dataset.text_field, dataset.id_field, dataset.split_by, longest)
    )
    size = receipt.outputs[CHUNK_NAME].size
    raw = RawFile(unit / CHUNK_NAME, unit, span=Span(0, size, receipt.facts["xxh3"]))
    places, line = Places(item.data["files"]), 0
    lines = LineReader(raw, counted=False)
    with ctx.commit(item.name) as draft, Shards(draft, encoder, item.data["shares"]) as shards:
        quarantine = Quarantine(draft.path / QUARANTINE, config.tokenize.max_bad_lines)
        for block in lines.whole_lines(BATCH, longest):
            ctx.stop.check()
            batch = reader.read(block)
            quarantine.sound += len(batch.texts)
            quarantine.empty += batch.blank
            for number, data, bad in batch.bad:
                quarantine.add(*places.of(line + number), data, bad)
            shards.add(batch, places, line)
            line += batch.count
            ctx.progress(lines.bytes_read, receipt.facts["bytes"], documents=quarantine.sound)
        raw.verify(receipt)
        quarantine.close()
        draft.facts = {
            "splits": shards.close(),
            "quarantined": quarantine.count,
            "first_bad": quarantine.first,
            "empty": quarantine.empty,
            "grouped": shards.grouped,
            "encoder": encoder.name,
            "vocabulary": vocabulary,
        }


class Places:
    """Where the lines of a chunk stand in the raw files.

    Args:
        files: The raw files in it, each with the line of the chunk after which it begins.
    """

    def __init__(self, files: Sequence[tuple[str, int]]) -> None:
        self._names = [name for name, _ in files]
        self._begins = [begins for _, begins in files]

    def of(self, index: int) -> tuple[str, int]:
        """Raw file and line number there, from 1, of the line with that index in the chunk."""
        # several may begin at one line: all but the last are empty
        file = max(0, bisect_left(self._begins, index + 1) - 1)
        return self._names[file], index + 1 - self._begins[file]


class Shards:
    """The three shards of a chunk.

    Args:
        draft: The unit that they belong to.
        encoder: Text to ids.
        shares: Of the documents, by split.

    Attributes:
        grouped: Documents that said what decides their split.
    """

    def __init__(self, draft: Draft, encoder: Encoder, shares: dict[str, float]) -> None:
        self._writers = {split: Writer(draft.path / f"{split}.parquet") for split in SPLITS}
        self._encoder, self._shares = encoder, shares
        self._judge = encoder if isinstance(encoder, Fast) else None
        self._looked_at: list[tuple[str, npt.NDArray[np.uint32]]] = []
        self.grouped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def add(self, batch: Batch, places: Places, line: int) -> None:
        """Encode documents and write each to its split.

        Args:
            batch: The documents.
            places: Where lines stand; a document without an id is called after that.
            line: Index in the chunk of the batch's first line.
        """
        data = [text.encode() for text in batch.texts]
        digests = _digests(data)
        sizes = np.fromiter(map(len, data), np.int64, len(data))
        names = [
            name if name is not None else "{}:{}".format(*places.of(line + number))
            for name, number in zip(batch.ids, batch.lines, strict=True)
        ]
        split = self._splits(batch, digests)
        for index, writer in enumerate(self._writers.values()):
            chosen = np.flatnonzero(split == index)
            if len(chosen):
                few = chosen.tolist()
                texts = [batch.texts[n] for n in few]
                ids, offsets = self._encode(texts, digests[chosen])
                named = [names[n] for n in few]
                writer.add(Documents(named, ids, offsets, sizes[chosen], digests[chosen]))

    def close(self) -> dict[str, dict[str, int]]:
        """Finish the files; documents, tokens and bytes of each.

        Raises:
            Mismatch: A document that was looked at has other ids than it should.
        """
        if self._judge and self._looked_at:
            texts, ids = zip(*self._looked_at, strict=True)
            offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
            self._judge.check(list(texts), (np.concatenate(ids), offsets))
        for writer in self._writers.values():
            writer.close()
        return {
            split: {"documents": w.rows, "tokens": w.tokens, "bytes": w.bytes}
            for split, w in self._writers.items()
        }

    def _splits(self, batch: Batch, digests: Hashes) -> npt.NDArray[np.int64]:
        """Index in `SPLITS` of each document: where its hash falls in [0, 1)."""
        grouped = [n for n, group in enumerate(batch.groups) if group is not None]
        self.grouped += len(grouped)
        if grouped:
            digests = digests.copy()
            digests[grouped] = _digests([str(batch.groups[n]).encode() for n in grouped])
        point = digests.view(">u8")[::2].astype(np.float64) / 2**64
        validation = self._shares["validation"]
        held_out = validation + self._shares["test"]
        return np.select([point < validation, point < held_out], [1, 2], 0)

    def _encode(
        self, texts: list[str], digests: Hashes
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Ids and offsets; a few documents are looked at again, always the same ones.

        All of a chunk at its end: one at a time, the slow encoder's tables would take the place of
        the fast one's in the processor's caches, which costs as much again as the comparison.
        """
        ids, offsets = self._encoder.encode(texts)
        if self._judge:
            for n in np.flatnonzero(digests.view(">u2")[7::8] < SAMPLE).tolist():
                self._looked_at.append((texts[n], ids[offsets[n] : offsets[n + 1]].copy()))
        return ids, offsets


def _digests(data: list[bytes]) -> Hashes:
    """xxh3-128 of each, 16 bytes."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, data)), HASH)
