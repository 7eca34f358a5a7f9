"""Open the splits of a sealed corpus."""

from __future__ import annotations

import json

from pipeline.core.stage import Context, Inputs
from pipeline.dataset.token_cache import Corpus, open_corpus
from pipeline.tokenize.dataset_card import write_card


def open_sealed(inputs: Inputs, split: str, ctx: Context) -> Corpus:
    """One split of a sealed corpus, for the stages after this one.

    Args:
        inputs: With `tokenize.shards` and `tokenize.seal`.
        split: One of `SPLITS`.
        ctx: Of the step that reads it.

    Raises:
        CorruptInput: The seal or a shard is damaged.
    """
    sealed, receipt = inputs["tokenize.seal"].one()
    receipt.verify(sealed)
    content = json.loads((sealed / "seal.json").read_text())
    folder = inputs["tokenize.shards"].folder
    write_card(folder, content)
    return open_corpus(
        folder,
        sealed,
        content,
        receipt.digest,
        split,
        code=ctx.code,
        workers=ctx.cpus,
        check=ctx.stop.check,
        label=ctx.label,
        gone=ctx.gone,
    )
