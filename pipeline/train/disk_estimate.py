"""How much this stage will write: token cache, checkpoints, and the trained weights."""

from __future__ import annotations

from pipeline.core.disk import DiskNeed, RunSizes
from pipeline.core.stage import RunConfig

# Bytes of token cache in a byte of JSON lines, measured on 4.9 MB of NIH abstracts with GPT-2's
# tokenizer: 0.380; for vocabularies of up to 65,536 tokens.
CACHE_RATIO = 0.38
# Bytes of a trainable parameter: its fp32 weight, and the optimizer's state.
WEIGHT_BYTES = 4
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "paged_adamw8bit": 2}
CACHE_FILES, FILES_PER_CHECKPOINT, OTHER_FILES = 18, 5, 10


def estimate_training(config: RunConfig, sizes: RunSizes) -> DiskNeed:
    """The token cache, the checkpoints and the best weights."""
    train = config.train
    trainable = trainable_parameters(train.method, train.lora_rank, sizes.parameters)
    weights = WEIGHT_BYTES * trainable
    checkpoint = weights * (1 + STATE_BYTES[train.optimizer] / WEIGHT_BYTES)
    # those kept, the best one, and one that is being written
    checkpoints = train.keep_checkpoints + 2
    return DiskNeed(
        (sizes.text or 0) * CACHE_RATIO + checkpoints * checkpoint + weights,
        CACHE_FILES + checkpoints * FILES_PER_CHECKPOINT + OTHER_FILES,
    )


def trainable_parameters(method: str, lora_rank: int, parameters: float) -> float:
    """How many parameters are trained, of a base model with so many.

    A decoder has P = 12 L d² parameters, with d = 64 L or more (OPT-125m to OPT-6.7b). LoRA of rank
    r on all its linear layers has 18 r d L = 1.5 r P / d: 3.4 M for OPT-125m, which exactly has
    2.7 M.
    """
    if method == "full" or not parameters:
        return parameters
    return 1.5 * lora_rank * parameters / (16 / 3 * parameters) ** (1 / 3)
