"""The marker of a corpus whose ids the fast encoder gets wrong.

Each chunk compares a sample of its documents with the reference encoder. If one chunk finds other
ids, the ids of documents that were not compared are in doubt in all chunks. The seal then commits
this marker beside the shards. It is among the inputs of the chunks from then on, so that shards of
the fast encoder are no longer valid, and the reference encoder makes them again.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import load_intact
from pipeline.core.stage import Context, Input
from pipeline.tokenize.facts import shard_facts

MARKER = "reference-encoder"
FAST_ENCODER = "fastokens"


def needs_reference(corpus: Path, tokenizer: str) -> bool:
    """Whether a corpus is marked.

    Args:
        corpus: The folder of the dataset, with its folders of shards.
        tokenizer: sha256 of tokenizer.json.
    """
    receipts = map(load_intact, sorted(corpus.glob(f"shards-*/{MARKER}")))
    return any(receipt and receipt.facts.get("tokenizer") == tokenizer for receipt in receipts)


def check_encoders(shards: Input, ctx: Context) -> None:
    """Mark the corpus if a chunk found wrong ids and the fast encoder made other shards.

    Raises:
        CorruptInput: It was marked. The shards have to be made again.
    """
    facts = [shard_facts(receipt) for receipt in shards.receipts.values()]
    reason = next((found for f in facts if (found := f.get("mismatch"))), None)
    fast = sum(f["encoder"].startswith(FAST_ENCODER) for f in facts)
    if not reason or not fast:
        return
    tokenizer = next(iter(shards.receipts.values())).inputs["tokenizer"]
    with ctx.commit(MARKER) as draft:
        draft.facts = {"tokenizer": tokenizer, "reason": reason}
    raise CorruptInput(
        f"{reason}: {fast} of {len(facts)} shards were made by it and are no longer used",
        "Run the same command again: the model's own library then makes all shards",
    )
