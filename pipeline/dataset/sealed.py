"""Open the splits of a sealed corpus."""

from __future__ import annotations

from pipeline.core.stage import Context, Inputs
from pipeline.dataset.token_cache import SealedShards, TokenizedSplit, open_token_cache
from pipeline.tokenize.dataset_card import write_card


def open_sealed(inputs: Inputs, split: str, ctx: Context) -> TokenizedSplit:
    """Open one split of a sealed corpus; builds its token cache where there is none.

    Args:
        inputs: Must hold `tokenize.shards` and `tokenize.seal`.
        split: One of `SPLITS`.
        ctx: Context of the step that reads the split.

    Raises:
        CorruptInput: The seal or a shard is damaged.
    """
    unit, receipt = inputs["tokenize.seal"].one()
    receipt.verify(unit)
    sealed = SealedShards.load(inputs["tokenize.shards"].folder, unit, receipt.digest)
    write_card(sealed.folder, sealed.content)
    return open_token_cache(sealed, split, ctx)
