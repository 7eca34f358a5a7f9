"""The seal of a tokenized corpus: what its shards hold, and which rows repeat a text.

Of equal texts the first in test stays, else the first in validation, else the first of all: what is
held out is never learned from.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import release, verify
from pipeline.core.stage import Context, Input, Inputs, Item, RunConfig
from pipeline.tokenize.dataset_card import write_card
from pipeline.tokenize.quarantine import QUARANTINE, refusal
from pipeline.tokenize.shards import SPLITS, Hashes, read_hashes

PRIORITY = ("test", "validation", "train")

COUNTED = ("documents", "tokens", "bytes")

Totals = dict[str, dict[str, int]]
Places = npt.NDArray[np.int64]
Kept = list[list[int]]


def seal(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Verify every shard, count, find duplicate texts, and write the card of the data set.

    Raises:
        CorruptInput: A shard is damaged, a split is empty, or too many lines were malformed.
        UserError: No document says what decides its split, as it should.
    """
    given = inputs["tokenize.shards"]
    if not given.receipts:
        raise CorruptInput("the corpus holds no text", "Check what was downloaded, or FILE=")
    facts = [given.receipts[name].facts for name in sorted(given.receipts)]
    quarantined = sum(f["quarantined"] for f in facts)
    sound = sum(split["documents"] for f in facts for split in f["splits"].values())
    limits = config.tokenize
    if quarantined > min(limits.max_bad_lines, limits.max_bad_share * (quarantined + sound)):
        first = next(f["first_bad"] for f in facts if f["first_bad"])
        raise refusal(quarantined, sound, first, f"{ctx.folder}/*/{QUARANTINE}")
    field = config.dataset.split_by
    if field and sound and all("grouped" in f for f in facts):  # older shards do not tell
        without = sound - sum(f["grouped"] for f in facts)
        if without == sound:
            raise UserError(
                f"no record has dataset.split_by={field}: near-copies would not stay together",
                "Name the field that says what belongs together, or let the text decide: "
                'ARGS="dataset.split_by=null"',
            )
        if without:
            ctx.log(f"{without:,} of {sound:,} documents have no {field}: their text decides")
    totals, duplicates, kept = judge(given, ctx)
    for split in SPLITS:
        if not totals[split]["documents"]:
            raise CorruptInput(
                f"the {split} split is empty: the corpus has too few documents",
                "Check dataset.text_field"
                if split == "train"
                else f'Hold out a larger share, e.g. ARGS="tokenize.{split}=0.2"',
            )
    content = {
        "splits": totals,
        "duplicates": {split: len(found) for split, found in duplicates.items()},
        "shards": sorted(given.receipts),
        "kept": kept,
        "quarantined": quarantined,
        "empty": sum(f["empty"] for f in facts),
        "encoder": ", ".join(sorted({f["encoder"] for f in facts})),
        "vocabulary": facts[0]["vocabulary"],
    }
    if "," in content["encoder"]:
        ctx.log(f"WARNING: shards were encoded by {content['encoder']}: see the logs of tokenize")
    if not config.decompress.keep_chunks:
        drop_chunks(inputs["decompress.chunks"], ctx)
    with ctx.commit(item.name) as draft:
        (draft.path / "seal.json").write_text(json.dumps(content, indent=1))
        np.savez(draft.path / "duplicates.npz", **duplicates)  # type: ignore[arg-type]
        draft.facts = {k: content[k] for k in ("splits", "duplicates", "quarantined", "empty")}
    write_card(ctx.folder, content)


def drop_chunks(chunks: Input, ctx: Context) -> None:
    """Remove the chunks, unless shards beside these are not sealed yet and may be made from them.

    It comes before the seal is committed: if it is interrupted, it is done again.
    """
    unsealed = [
        path.name
        for path in ctx.folder.parent.glob("shards-*")
        if path != ctx.folder and not (path / "seal").is_dir()
    ]
    if unsealed:
        ctx.log(f"the chunks stay: {', '.join(unsealed)} may need them and has no seal")
        return
    for part in chunks.receipts:
        ctx.stop.check()
        release(chunks.folder / part)
    ctx.log(f"the chunks in {chunks.folder} were dropped, as decompress.keep_chunks=false says")


def judge(given: Input, ctx: Context) -> tuple[Totals, dict[str, Places], dict[str, Kept]]:
    """Read the text hashes of every shard.

    Returns:
        Documents, tokens and bytes of each split without duplicates; by split, the (shard, row) of
        every duplicate, int64, in order; and by split, documents and tokens of each shard without
        duplicates.

    Raises:
        CorruptInput: A shard is damaged.
    """
    shards, done = sorted(given.receipts), iter(range(1, len(given.receipts) + 1))

    def read(shard: str) -> list[Hashes]:
        ctx.stop.check()
        unit, receipt = given.folder / shard, given.receipts[shard]
        found = [
            read_hashes(verify(unit, f"{split}.parquet", receipt, ctx.stop.check))
            for split in PRIORITY
        ]
        ctx.progress(next(done), len(shards), "shards")
        return found

    with ThreadPoolExecutor(ctx.cpus) as pool:
        columns = list(zip(*pool.map(read, shards), strict=True))
    starts = np.cumsum([0, *(len(part) for column in columns for part in column)])
    extra = find_duplicates(np.concatenate([part for column in columns for part in column]))
    del columns
    owner = np.searchsorted(starts, extra, side="right") - 1
    rank, shard = np.divmod(owner, len(shards))
    places = np.stack([shard, extra - starts[owner]], axis=1)
    duplicates = {split: places[rank == index] for index, split in enumerate(PRIORITY)}
    facts = [given.receipts[name].facts["splits"] for name in shards]
    kept = {
        split: np.array([[f[split][name] for name in COUNTED] for f in facts]) for split in SPLITS
    }
    _drop(given, duplicates, kept)
    totals = {
        split: dict(zip(COUNTED, found.sum(axis=0).tolist(), strict=True))
        for split, found in kept.items()
    }
    return totals, duplicates, {split: found[:, :2].tolist() for split, found in kept.items()}


def find_duplicates(digests: Hashes) -> Places:
    """Which rows repeat the text of one before them.

    Args:
        digests: Text hash of each row, 16 bytes.

    Returns:
        Their indices, int64, in order.
    """
    halves = digests.view(np.uint64).reshape(-1, 2)
    order = np.argsort(halves[:, 0], kind="stable")
    first = halves[order, 0]
    same = first[1:] == first[:-1]
    # the few in which the first halves agree are then looked at closely
    near = np.zeros(len(order), dtype=bool)
    near[1:] |= same
    near[:-1] |= same
    rows = order[near]
    rows = rows[np.lexsort((rows, halves[rows, 1], halves[rows, 0]))]
    again = (halves[rows[1:]] == halves[rows[:-1]]).all(axis=1)
    return np.sort(rows[1:][again])


def _drop(given: Input, duplicates: dict[str, Places], kept: dict[str, Places]) -> None:
    """Take the duplicates out of the counts."""
    shards = sorted(given.receipts)
    for split, found in duplicates.items():
        for index in np.unique(found[:, 0]).tolist():
            path = given.folder / shards[index] / f"{split}.parquet"
            table = pq.read_table(path, columns=["tokens", "bytes"], use_threads=False)
            table = table.take(found[found[:, 0] == index][:, 1])
            sums = [sum(column.to_pylist()) for column in table.columns]
            kept[split][index] -= [len(table), *sums]
