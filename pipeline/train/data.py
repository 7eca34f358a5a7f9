"""The data of training: packed windows of the train split, and validation documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.receipt import Receipt
from pipeline.core.stage import Context, Inputs, RunConfig
from pipeline.dataset.order import WindowSampler
from pipeline.dataset.packing import Packing, make_batch, pack
from pipeline.dataset.sealed import open_sealed
from pipeline.dataset.subset import sample_documents
from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.modeling.packed_batch import PackedBatch


@dataclass(frozen=True)
class TrainingData:
    """The train split with its packing, and the validation documents.

    `sampler`: the windows of each step. `validation_indices`: which documents of `validation`
    are scored. `prefix_id`, `end_id`: the tokens before and after a document.
    """

    train: TokenizedSplit
    packing: Packing
    sampler: WindowSampler
    validation: TokenizedSplit
    validation_indices: list[int]
    prefix_id: int
    end_id: int

    def batches(self, windows: list[int], micro_batch_size: int) -> Iterator[PackedBatch]:
        """These windows as micro-batches of at most that many windows."""
        for start in range(0, len(windows), micro_batch_size):
            part = windows[start : start + micro_batch_size]
            yield make_batch(self.train, self.packing, part, self.prefix_id, self.end_id)

    def validation_documents(self) -> list[npt.NDArray[np.int64]]:
        """The text tokens of the validation documents: one int64 array (tokens,) for each."""
        return [self.validation.document(index) for index in self.validation_indices]


def load_data(config: RunConfig, inputs: Inputs, base: Receipt, ctx: Context) -> TrainingData:
    """Open both splits and pack the train split.

    Args:
        config: Configuration of the run.
        inputs: Inputs of the step `train.train`.
        base: Receipt of the base model.
        ctx: Its stop is checked while the token caches are built.

    Raises:
        UserError: The settings do not fit the context of the model.
        CorruptInput: A shard is damaged.
    """
    settings = config.train
    train = open_sealed(inputs, "train", ctx)
    validation = open_sealed(inputs, "validation", ctx)
    window_tokens = settings.window_tokens(base.facts["context"])
    # raises now what evaluation would raise after training
    config.evaluate.check_context(base.facts["context"])
    packing = pack(train.offsets, window_tokens, settings.packing)
    return TrainingData(
        train=train,
        packing=packing,
        sampler=WindowSampler(len(packing), settings.batch_size, settings.seed),
        validation=validation,
        validation_indices=sample_documents(
            validation, settings.validation_documents, settings.validation_tokens
        ),
        prefix_id=base.facts["prefix_id"],
        end_id=base.facts["end_id"],
    )
