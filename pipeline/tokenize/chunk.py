"""Tokenize one chunk of JSON lines into shards: the work of the step `tokenize.shards`.

Blocks of lines become lists of texts, then flat arrays of token ids, then Parquet columns. Nothing
is done per token in Python, and as little as possible per document.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.core.commit import Draft
from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import Receipt, load, verify
from pipeline.core.stage import Context, Inputs, Item, RunConfig
from pipeline.sources.chunks import chunk_facts
from pipeline.sources.codecs import CHUNK_NAME, CompressedFile
from pipeline.sources.records import LineReader, RecordParser
from pipeline.sources.spans import Span
from pipeline.tokenize.batch_reader import BatchReader, DocumentBatch
from pipeline.tokenize.encoder import (
    TOKENIZER_FILE,
    Encoder,
    EncoderMismatch,
    FastEncoder,
    FlatIds,
    ReferenceEncoder,
    WrongIds,
    load_encoder,
)
from pipeline.tokenize.facts import SPLITS, ShardFacts, SplitCounts, as_facts
from pipeline.tokenize.quarantine import QUARANTINE, Quarantine
from pipeline.tokenize.shards import HASH_DTYPE, EncodedDocuments, Hashes, ShardWriter

BLOCK_BYTES = 2_000_000  # of lines that are read at a time
CHECKED_PER_65536 = 66  # documents compared with the reference encoder: one in a thousand


def tokenize_chunk(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Tokenize one chunk into a shard per split.

    Raises:
        CorruptInput: The chunk or the tokenizer is damaged, or too many lines are malformed.
        UserError: A document holds a token for which the model has no embedding.
    """
    unit = inputs["decompress.chunks"].folder / item.name
    receipt = load(unit)
    if receipt is None:
        raise CorruptInput(f"{unit} has no receipt", unit=unit)
    reference, encoder = _encoders(inputs, ctx)
    mismatch = None
    if "encoder" in (item.inputs or {}):
        encoder = reference  # see `pipeline.tokenize.reference_marker`
    elif encoder is not reference:
        try:
            _encode_chunk(config, item, unit, receipt, encoder, reference, None, ctx)
            return
        except EncoderMismatch as error:
            ctx.log(f"WARNING: {error}. {item.name} is encoded again by {reference.name}")
            mismatch = str(error) if isinstance(error, WrongIds) else None
    # only this chunk: the bytes of others must not depend on which chunks this task has seen
    _encode_chunk(config, item, unit, receipt, reference, reference, mismatch, ctx)


def _encoders(inputs: Inputs, ctx: Context) -> tuple[ReferenceEncoder, Encoder]:
    """The reference encoder and the one to use, loaded once per task."""
    if "encoders" not in ctx.memo:
        model, receipt = inputs["download.model"].one()
        if TOKENIZER_FILE not in receipt.outputs:
            raise CorruptInput(f"{model} has no {TOKENIZER_FILE}", unit=model)
        verify(model, TOKENIZER_FILE, receipt)
        reference = ReferenceEncoder(model)
        encoder, reason = load_encoder(model, reference)
        if reason:
            ctx.log(f"WARNING: {reason}. Using {reference.name}, which is slow")
        ctx.memo["encoders"] = reference, encoder
    encoders: tuple[ReferenceEncoder, Encoder] = ctx.memo["encoders"]
    return encoders


def _encode_chunk(
    config: RunConfig,
    item: Item,
    unit: Path,
    receipt: Receipt,
    encoder: Encoder,
    reference: ReferenceEncoder,
    mismatch: str | None,
    ctx: Context,
) -> None:
    dataset, max_line_bytes = config.dataset, config.tokenize.max_line_bytes
    reader = BatchReader(
        RecordParser(dataset.text_field, dataset.id_field, dataset.split_by, max_line_bytes)
    )
    chunk = chunk_facts(receipt)
    raw = CompressedFile(
        unit / CHUNK_NAME, unit, span=Span(0, receipt.outputs[CHUNK_NAME].size, chunk["xxh3"])
    )
    positions, line = LinePositions(item.data["files"]), 0
    rows = (item.inputs or {}).get("rows")
    check_rows = partial(reference.check_rows, int(rows)) if rows else None
    lines = LineReader(raw, counted=False)
    with (
        ctx.commit(item.name) as draft,
        SplitWriter(draft, encoder, item.data["fractions"], check_rows) as shards,
    ):
        quarantine = Quarantine(draft.path / QUARANTINE, config.tokenize.max_bad_lines)
        for block in lines.whole_lines(BLOCK_BYTES, max_line_bytes):
            ctx.stop.check()
            batch = reader.read(block)
            quarantine.documents += len(batch.texts)
            quarantine.blank_lines += batch.blank
            for index, data, malformed in batch.malformed:
                quarantine.add(*positions.locate(line + index), data, malformed)
            shards.add(batch, positions, line)
            line += batch.count
            ctx.progress(lines.bytes_read, chunk["bytes"], documents=quarantine.documents)
        raw.verify(receipt)
        quarantine.close()
        facts: ShardFacts = {
            "splits": shards.close(),
            "quarantined": quarantine.count,
            "first_bad": quarantine.first,
            "empty": quarantine.blank_lines,
            "grouped": shards.grouped,
            "encoder": encoder.name,
            "vocabulary": reference.vocabulary_size,
            "mismatch": mismatch,
        }
        draft.facts = as_facts(facts)


class LinePositions:
    """Positions of a chunk's lines in the raw files.

    Args:
        files: The raw files in the chunk, each with the number of lines of the chunk before it;
            negative for a file that begins in an earlier chunk.
    """

    def __init__(self, files: Sequence[tuple[str, int]]) -> None:
        self._names = [name for name, _ in files]
        self._starts = [start for _, start in files]

    def locate(self, index: int) -> tuple[str, int]:
        """The raw file of a line, given its index in the chunk, and its line number there, from 1.

        If several files begin at one line, all but the last of them are empty.
        """
        file = max(0, bisect_left(self._starts, index + 1) - 1)
        return self._names[file], index + 1 - self._starts[file]


class SplitWriter:
    """Writes the documents of a chunk to one shard per split.

    Args:
        draft: The unit that the shards belong to.
        encoder: Encodes the texts.
        fractions: Fractions of the documents in the validation and test splits.
        check_rows: Refuses documents, given their names and ids; None: all ids are valid.

    Attributes:
        grouped: Number of documents with a `split_by` value.
    """

    def __init__(
        self,
        draft: Draft,
        encoder: Encoder,
        fractions: dict[str, float],
        check_rows: Callable[[list[str], FlatIds], None] | None = None,
    ) -> None:
        self._writers = {split: ShardWriter(draft.path / f"{split}.parquet") for split in SPLITS}
        self._encoder, self._fractions, self._check_rows = encoder, fractions, check_rows
        self._checked = encoder if isinstance(encoder, FastEncoder) else None
        self._to_check: list[tuple[str, npt.NDArray[np.uint32]]] = []
        self.grouped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def add(self, batch: DocumentBatch, positions: LinePositions, line: int) -> None:
        """Encode documents and write each to its split.

        Args:
            batch: The documents.
            positions: Positions of lines, which name the documents without an id.
            line: Index in the chunk of the batch's first line.
        """
        data = [text.encode() for text in batch.texts]
        hashes = _hashes(data)
        sizes = np.fromiter(map(len, data), np.int64, len(data))
        names = [
            name if name is not None else "{}:{}".format(*positions.locate(line + index))
            for name, index in zip(batch.ids, batch.lines, strict=True)
        ]
        splits = self._splits(batch, hashes)
        for index, writer in enumerate(self._writers.values()):
            rows = np.flatnonzero(splits == index)
            if len(rows):
                indices = rows.tolist()
                split_names = [names[n] for n in indices]
                ids, offsets = self._encode([batch.texts[n] for n in indices], hashes[rows])
                if self._check_rows:
                    self._check_rows(split_names, (ids, offsets))
                writer.add(EncodedDocuments(split_names, ids, offsets, sizes[rows], hashes[rows]))

    def close(self) -> dict[str, SplitCounts]:
        """Check the sampled documents and finish the shards.

        Returns:
            The size of each shard.

        Raises:
            EncoderMismatch: The ids of a checked document are wrong.
        """
        if self._checked and self._to_check:
            texts, ids = zip(*self._to_check, strict=True)
            offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
            self._checked.check(list(texts), (np.concatenate(ids), offsets))
        for writer in self._writers.values():
            writer.close()
        return {
            split: {"documents": w.rows, "tokens": w.tokens, "bytes": w.bytes}
            for split, w in self._writers.items()
        }

    def _splits(self, batch: DocumentBatch, hashes: Hashes) -> npt.NDArray[np.int64]:
        """The split of each document, as an index of `SPLITS`.

        It is decided by where the hash of the group, or else of the text, falls in [0, 1).
        """
        grouped = [n for n, group in enumerate(batch.groups) if group is not None]
        self.grouped += len(grouped)
        if grouped:
            hashes = hashes.copy()
            hashes[grouped] = _hashes([str(batch.groups[n]).encode() for n in grouped])
        # the first 8 of the 16 bytes, as a fraction of 2^64
        point = hashes.view(">u8")[::2].astype(np.float64) / 2**64
        validation = self._fractions["validation"]
        held_out = validation + self._fractions["test"]
        return np.select([point < validation, point < held_out], [1, 2], 0)

    def _encode(self, texts: list[str], hashes: Hashes) -> FlatIds:
        """Encode texts, and keep a sample of them, chosen by hash, for the check.

        The check comes at the end of the chunk: the tables of the slow encoder would evict those of
        the fast one from the processor's caches each time, which costs as much as the check itself.
        """
        ids, offsets = self._encoder.encode(texts)
        if self._checked:
            # the last 2 of the 16 bytes: independent of the bytes that decide the split
            for n in np.flatnonzero(hashes.view(">u2")[7::8] < CHECKED_PER_65536).tolist():
                self._to_check.append((texts[n], ids[offsets[n] : offsets[n + 1]].copy()))
        return ids, offsets


def _hashes(data: list[bytes]) -> Hashes:
    """xxh3-128 of each text, 16 bytes."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, data)), HASH_DTYPE)
