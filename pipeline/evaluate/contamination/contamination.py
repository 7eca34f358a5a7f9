"""Whether the documents that a model is scored on occur in its training data."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.stage import Context, Inputs, Item, RunConfig
from pipeline.dataset.sealed import open_sealed
from pipeline.dataset.subset import sample_documents
from pipeline.evaluate.contamination.ngrams import NGRAM_TOKENS
from pipeline.evaluate.contamination.overlap import (
    NEAR_JACCARD,
    QUOTED_SHARE,
    Overlap,
    find_overlap,
)
from pipeline.evaluate.contamination.similarity import SHINGLE_TOKENS
from pipeline.evaluate.facts import SplitOverlap
from pipeline.tokenize.facts import HELD_OUT_SPLITS


def measure_overlap(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Commit a table for each held-out split, one row a scored document, and the totals.

    Raises:
        Interrupted: A stop was requested.
        CorruptInput: The corpus is damaged.
    """
    started = time.monotonic()
    settings = config.evaluate
    corpora = {split: open_sealed(inputs, split, ctx) for split in HELD_OUT_SPLITS}
    chosen = {
        split: sample_documents(corpus, settings.max_documents, settings.max_tokens)
        for split, corpus in corpora.items()
    }
    train = open_sealed(inputs, "train", ctx)
    overlap = find_overlap(
        [corpora[split].document(index) for split in HELD_OUT_SPLITS for index in chosen[split]],
        train,
        check=ctx.stop.check,
        progress=lambda done, total: ctx.progress(done, total, "tokens"),
    )
    facts: dict[str, Any] = {}
    with ctx.commit(item.name) as draft:
        begin = 0
        for split, corpus in corpora.items():
            rows = slice(begin, begin + len(chosen[split]))
            begin = rows.stop
            columns = {
                "document": pa.array(chosen[split], pa.int64()),
                "hash": pa.array(
                    [corpus.hashes[i].tobytes().hex() for i in chosen[split]], pa.string()
                ),
                "tokens": np.diff(corpus.offsets)[chosen[split]],
                "covered": overlap.covered[rows],
                "near": overlap.near[rows],
                "jaccard": overlap.jaccard[rows],
                "nearest": overlap.nearest[rows],
            }
            path = draft.path / f"{split}.parquet"
            pq.write_table(pa.table(columns), path, compression="zstd")
            facts[split] = _sums(overlap, rows, columns["tokens"])
        draft.facts = {
            **facts,
            "n": NGRAM_TOKENS,
            "shingle": SHINGLE_TOKENS,
            "threshold": NEAR_JACCARD,
            "quoted": QUOTED_SHARE,
            "train_documents": len(train),
            "train_tokens": len(train.ids),
            "cpus": ctx.cpus,
            "gpus": ctx.gpus,
            "seconds": round(time.monotonic() - started, 3),
        }


def _sums(overlap: Overlap, rows: slice, tokens: Any) -> SplitOverlap:
    covered = overlap.covered[rows]
    return {
        "documents": len(covered),
        "near_duplicates": int(overlap.near[rows].sum()),
        "any_overlap": int((covered > 0).sum()),
        "covered_share": float(covered.sum() / max(1, tokens.sum())),
        "too_short": int(overlap.short[rows].sum()),
    }
