"""The seal of a tokenized corpus: what its shards hold, and which rows repeat a text.

Of equal texts the first in test stays, else the first in validation, else the first of all: what is
held out is never learned from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.data.quarantine import QUARANTINE, refusal
from pipeline.data.shards import SPLITS, Corpus, hashes, open_corpus
from pipeline.errors import CorruptInput
from pipeline.files import write_text
from pipeline.receipt import verify
from pipeline.stage import Context, Input, Inputs, Item

if TYPE_CHECKING:
    from pipeline.config import Config

PRIORITY = ("test", "validation", "train")

Totals = dict[str, dict[str, int]]
Places = npt.NDArray[np.int64]


def seal(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Verify every shard, count, find duplicate texts, and write the card of the data set.

    Raises:
        CorruptInput: A shard is damaged, a split is empty, or too many lines were malformed.
    """
    given = inputs["tokenize.shards"]
    facts = [given.receipts[name].facts for name in sorted(given.receipts)]
    quarantined = sum(f["quarantined"] for f in facts)
    sound = sum(split["documents"] for f in facts for split in f["splits"].values())
    limits = config.tokenize
    if quarantined > min(limits.max_bad_lines, limits.max_bad_share * (quarantined + sound)):
        first = next(f["first_bad"] for f in facts if f["first_bad"])
        raise refusal(quarantined, sound, first, f"{ctx.folder}/*/{QUARANTINE}")
    totals, duplicates = judge(given, ctx)
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
        "quarantined": quarantined,
        "empty": sum(f["empty"] for f in facts),
        "encoder": facts[0]["encoder"],
        "vocabulary": facts[0]["vocabulary"],
    }
    with ctx.commit(item.name) as draft:
        (draft.path / "seal.json").write_text(json.dumps(content, indent=1))
        np.savez(draft.path / "duplicates.npz", **duplicates)  # type: ignore[arg-type]
        draft.facts = {k: content[k] for k in ("splits", "duplicates", "quarantined", "empty")}
    write_card(ctx.folder, content)


def judge(given: Input, ctx: Context) -> tuple[Totals, dict[str, Places]]:
    """Read every shard.

    Returns:
        Documents, tokens and bytes of each split without duplicates; and, by split, the (shard,
        row) of every duplicate, int64, in order.

    Raises:
        CorruptInput: A shard is damaged.
    """
    totals: Totals = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    digests, places = [], []
    for index, shard in enumerate(sorted(given.receipts)):
        ctx.stop.check()
        receipt = given.receipts[shard]
        for rank, split in enumerate(PRIORITY):
            found = hashes(verify(given.folder / shard, f"{split}.parquet", receipt))
            place = np.empty((len(found), 3), dtype=np.int64)
            place[:, 0], place[:, 1], place[:, 2] = rank, index, np.arange(len(found))
            digests.append(found)
            places.append(place)
            for name in totals[split]:
                totals[split][name] += receipt.facts["splits"][split][name]
        ctx.progress(index + 1, len(given.receipts), "shards")
    duplicates = find_duplicates(np.concatenate(digests), np.concatenate(places))
    _drop(given, duplicates, totals)
    return totals, duplicates


def find_duplicates(digests: npt.NDArray[np.void], places: Places) -> dict[str, Places]:
    """Which rows repeat a text.

    Args:
        digests: Text hash of each row, 16 bytes.
        places: Rank of its split in `PRIORITY`, shard, row: (rows, 3).

    Returns:
        (shard, row) by split, for all but the first of each text in the order of `places`.
    """
    halves = digests.view(">u8").reshape(-1, 2)
    order = np.lexsort((places[:, 2], places[:, 1], places[:, 0], halves[:, 1], halves[:, 0]))
    same = np.zeros(len(order), dtype=bool)
    same[1:] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    extra = places[order[same]]
    extra = extra[np.lexsort((extra[:, 2], extra[:, 1]))]
    return {split: extra[extra[:, 0] == rank][:, 1:] for rank, split in enumerate(PRIORITY)}


def _drop(given: Input, duplicates: dict[str, Places], totals: Totals) -> None:
    """Take the duplicates out of the totals."""
    shards = sorted(given.receipts)
    for split, found in duplicates.items():
        for index in np.unique(found[:, 0]).tolist():
            path = given.folder / shards[index] / f"{split}.parquet"
            table = pq.read_table(path, columns=["input_ids", "bytes"])
            table = table.take(found[found[:, 0] == index][:, 1])
            totals[split]["documents"] -= len(table)
            totals[split]["tokens"] -= sum(len(ids) for ids in table["input_ids"])
            totals[split]["bytes"] -= sum(size.as_py() for size in table["bytes"])


def open_sealed(inputs: Inputs, split: str, code: str = "") -> Corpus:
    """One split of a sealed corpus, for the stages after this one.

    Args:
        inputs: With `tokenize.shards` and `tokenize.seal`.
        split: One of `SPLITS`.
        code: Version of the code, for the receipt of the token cache.

    Raises:
        CorruptInput: The seal or a shard is damaged.
    """
    sealed, receipt = inputs["tokenize.seal"].one()
    receipt.verify(sealed)
    content = json.loads((sealed / "seal.json").read_text())
    folder = inputs["tokenize.shards"].folder
    write_card(folder, content)
    return open_corpus(folder, sealed, content, receipt.digest, split, code)


def write_card(folder: Path, content: dict[str, Any]) -> None:
    """Write the README with which `datasets.load_dataset` opens the folder, unless it is there."""
    path = folder / "README.md"
    if not path.exists():
        write_text(path, _card(folder.name, content))


def _card(title: str, content: dict[str, Any]) -> str:
    files = "\n".join(f"  - split: {s}\n    path: chunk-*/{s}.parquet" for s in SPLITS)
    counts = "\n".join(
        f"| {split} | {total['documents']:,} | {total['tokens']:,} |"
        for split, total in content["splits"].items()
    )
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n# {title}\n\n"
        "`datasets.load_dataset(<this folder>)` opens it. Rows hold `input_ids`, nothing added.\n"
        f"Encoded by {content['encoder']}. Without duplicates:\n\n"
        f"| split | documents | tokens |\n|---|---|---|\n{counts}\n"
    )
