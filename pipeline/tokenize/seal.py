"""The seal of a tokenized corpus: a list of verified shards, their sizes, and duplicate rows.

If several documents have the same text, one is kept: the first in test, otherwise the first in
validation, otherwise the first in train. This keeps held-out texts out of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.core.commit import release
from pipeline.core.errors import CorruptInput, InputError, UserError
from pipeline.core.receipt import verify
from pipeline.core.stage import Context, Input, Inputs, Item, RunConfig
from pipeline.tokenize.dataset_card import write_card
from pipeline.tokenize.facts import (
    SPLITS,
    SealContent,
    SealFacts,
    ShardFacts,
    SplitCounts,
    as_facts,
    shard_facts,
)
from pipeline.tokenize.quarantine import QUARANTINE, too_many_malformed
from pipeline.tokenize.reference_marker import check_encoders
from pipeline.tokenize.shards import Hashes, read_hashes

KEEP_ORDER = ("test", "validation", "train")  # the split that keeps a text which several hold

Indices = npt.NDArray[np.int64]


def seal_shards(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Verify every shard, count documents, find duplicate texts, and write the dataset card.

    Raises:
        CorruptInput: A shard is damaged, a split is empty, too many lines are malformed, or the
            fast encoder gave wrong ids.
        InputError: All texts are empty, equal or without tokens, or there is only one.
        UserError: No document has a value in the field `split_by`.
    """
    shards = inputs["tokenize.shards"]
    if not shards.receipts:
        raise CorruptInput("the corpus holds no text", "Check what was downloaded, or FILE=")
    facts = [shard_facts(shards.receipts[name]) for name in sorted(shards.receipts)]
    check_encoders(shards, ctx)
    _check_malformed(config, facts, ctx)
    _check_groups(config, facts, ctx)
    unique = deduplicate(shards, ctx)
    check_texts(facts, unique.splits)
    _check_splits(unique.splits)
    content: SealContent = {
        "splits": unique.splits,
        "duplicates": {split: len(rows) for split, rows in unique.duplicates.items()},
        "shards": sorted(shards.receipts),
        "kept": unique.kept,
        "quarantined": sum(f["quarantined"] for f in facts),
        "empty": sum(f["empty"] for f in facts),
        "encoder": ", ".join(sorted({f["encoder"] for f in facts})),
        "vocabulary": facts[0]["vocabulary"],
    }
    if "," in content["encoder"]:
        ctx.log(f"WARNING: shards were encoded by {content['encoder']}; see the logs of tokenize")
    if not config.decompress.keep_chunks:
        release_chunks(inputs["decompress.chunks"], ctx)
    with ctx.commit(item.name) as draft:
        (draft.path / "seal.json").write_text(json.dumps(content, indent=1))
        np.savez(draft.path / "duplicates.npz", **unique.duplicates)  # type: ignore[arg-type]
        sealed: SealFacts = {
            "splits": content["splits"],
            "duplicates": content["duplicates"],
            "quarantined": content["quarantined"],
            "empty": content["empty"],
            "encoder": content["encoder"],
        }
        draft.facts = as_facts(sealed)
    write_card(ctx.folder, content)


def _documents(facts: Sequence[ShardFacts]) -> int:
    """Documents in all shards, duplicates included."""
    return sum(split["documents"] for f in facts for split in f["splits"].values())


def _check_malformed(config: RunConfig, facts: Sequence[ShardFacts], ctx: Context) -> None:
    """Refuse a corpus with more malformed lines than the settings allow."""
    malformed, documents = sum(f["quarantined"] for f in facts), _documents(facts)
    limits = config.tokenize
    if malformed > min(limits.max_bad_lines, limits.max_bad_share * (malformed + documents)):
        first = next(f["first_bad"] for f in facts if f["first_bad"])
        raise too_many_malformed(malformed, documents, first, f"{ctx.folder}/*/{QUARANTINE}")


def _check_groups(config: RunConfig, facts: Sequence[ShardFacts], ctx: Context) -> None:
    """Refuse a `split_by` field that no document has; log how many lack it."""
    field, documents = config.dataset.split_by, _documents(facts)
    if not field or not documents:
        return
    without = documents - sum(f["grouped"] for f in facts)
    if without == documents:
        raise UserError(
            f"no record has dataset.split_by={field}, so near-copies would not stay together",
            'Name the field that groups documents, or split by text: ARGS="dataset.split_by=null"',
        )
    if without:
        ctx.log(f"{without:,} of {documents:,} documents have no {field} and are split by text")


def check_texts(facts: Sequence[ShardFacts], splits: dict[str, SplitCounts]) -> None:
    """Refuse a corpus whose texts are all empty, equal or without tokens, or that has only one."""
    documents, different = _documents(facts), sum(split["documents"] for split in splits.values())
    empty = sum(f["empty"] for f in facts)
    field = "Name the field with the text: dataset.text_field=NAME"
    if empty and not documents:
        raise InputError(f"all {empty:,} texts of the corpus are empty", field)
    if documents > 1 and different == 1:
        raise InputError(f"all {documents:,} documents of the corpus have the same text", field)
    if documents == 1:
        raise InputError(
            "the corpus has one document, and three splits need at least three",
            "If each line of it is a document, pass it as JSON lines",
        )
    if documents and not sum(split["tokens"] for split in splits.values()):
        raise InputError(
            f"the tokenizer makes no tokens of any of the {different:,} documents",
            "Use a MODEL whose tokenizer knows their script",
        )


def _check_splits(splits: dict[str, SplitCounts]) -> None:
    """Refuse a corpus with an empty split."""
    for split in SPLITS:
        if not splits[split]["documents"] or not splits[split]["tokens"]:
            without = "empty" if not splits[split]["documents"] else "without any token"
            raise CorruptInput(
                f"the {split} split is {without}: the corpus has too few documents",
                "Check dataset.text_field"
                if split == "train"
                else f'Hold out a larger share, e.g. ARGS="tokenize.{split}=0.2"',
            )


def release_chunks(chunks: Input, ctx: Context) -> None:
    """Remove the chunks, unless unsealed shards of another model may still be made from them.

    This runs before the seal is committed, so it is repeated after an interruption.
    """
    unsealed = [
        path.name
        for path in ctx.folder.parent.glob("shards-*")
        if path != ctx.folder and not (path / "seal").is_dir()
    ]
    if unsealed:
        ctx.log(f"keeping the chunks: {', '.join(unsealed)} may need them and has no seal")
        return
    for part in chunks.receipts:
        ctx.stop.check()
        release(chunks.folder / part)
    ctx.log(f"removed the chunks in {chunks.folder} (decompress.keep_chunks=false)")


@dataclass(frozen=True)
class Deduplicated:
    """Sizes of the splits without duplicates, and the duplicates.

    `splits`: size of each split. `kept`: by split, [documents, tokens] of each shard unit,
    duplicates not counted. `duplicates`: by split, shard and row of each duplicate in order, int64,
    (duplicates, 2).
    """

    splits: dict[str, SplitCounts]
    kept: dict[str, list[list[int]]]
    duplicates: dict[str, Indices]


def deduplicate(shards: Input, ctx: Context) -> Deduplicated:
    """Verify every shard, and find documents that repeat the text of another document.

    Raises:
        CorruptInput: A shard is damaged.
    """
    names, hashes = sorted(shards.receipts), _read_hashes(shards, ctx)
    # row numbers in all shards end to end, in the order of `KEEP_ORDER`
    starts = np.cumsum([0, *(len(part) for part in hashes)])
    rows = find_duplicates(np.concatenate(hashes))
    del hashes
    owner = np.searchsorted(starts, rows, side="right") - 1
    split_index, shard = np.divmod(owner, len(names))
    shard_rows = np.stack([shard, rows - starts[owner]], axis=1)
    duplicates = {split: shard_rows[split_index == index] for index, split in enumerate(KEEP_ORDER)}
    facts = [shard_facts(shards.receipts[name])["splits"] for name in names]
    counts = {
        split: np.array([[f[split][n] for n in ("documents", "tokens", "bytes")] for f in facts])
        for split in SPLITS
    }
    _subtract(shards, duplicates, counts)
    return Deduplicated(
        {
            split: SplitCounts(documents=documents, tokens=tokens, bytes=size)
            for split, (documents, tokens, size) in (
                (split, table.sum(axis=0).tolist()) for split, table in counts.items()
            )
        },
        {split: table[:, :2].tolist() for split, table in counts.items()},
        duplicates,
    )


def _read_hashes(shards: Input, ctx: Context) -> list[Hashes]:
    """Verify all shards and read their text hashes: by split in `KEEP_ORDER`, then by name."""
    names, done = sorted(shards.receipts), iter(range(1, len(shards.receipts) + 1))

    def read(name: str) -> list[Hashes]:
        ctx.stop.check()
        unit, receipt = shards.folder / name, shards.receipts[name]
        hashes = [
            read_hashes(verify(unit, f"{split}.parquet", receipt, ctx.stop.check))
            for split in KEEP_ORDER
        ]
        ctx.progress(next(done), len(names), "shards")
        return hashes

    with ThreadPoolExecutor(ctx.cpus) as pool:
        by_split = zip(*pool.map(read, names), strict=True)
    return [part for parts in by_split for part in parts]


def find_duplicates(hashes: Hashes) -> Indices:
    """Find rows that repeat the text of an earlier row.

    Args:
        hashes: Text hash of each row, 16 bytes.

    Returns:
        Their indices, int64, in order.
    """
    halves = hashes.view(np.uint64).reshape(-1, 2)
    order = np.argsort(halves[:, 0], kind="stable")
    first = halves[order, 0]
    same = first[1:] == first[:-1]
    # only the few rows whose first halves agree are compared in full
    candidate = np.zeros(len(order), dtype=bool)
    candidate[1:] |= same
    candidate[:-1] |= same
    rows = order[candidate]
    rows = rows[np.lexsort((rows, halves[rows, 1], halves[rows, 0]))]
    repeated = (halves[rows[1:]] == halves[rows[:-1]]).all(axis=1)
    return np.sort(rows[1:][repeated])


def _subtract(shards: Input, duplicates: dict[str, Indices], counts: dict[str, Indices]) -> None:
    """Subtract the duplicates from the counts (documents, tokens, bytes) of each shard."""
    names = sorted(shards.receipts)
    for split, shard_rows in duplicates.items():
        for index in np.unique(shard_rows[:, 0]).tolist():
            path = shards.folder / names[index] / f"{split}.parquet"
            table = pq.read_table(path, columns=["tokens", "bytes"], use_threads=False)
            table = table.take(shard_rows[shard_rows[:, 0] == index][:, 1])
            sums = [sum(column.to_pylist()) for column in table.columns]
            counts[split][index] -= [len(table), *sums]
