"""Documents for the tests of packing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit

PREFIX, END = 0, 1


def offsets_of(lengths: list[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def corpus_of(lengths: list[int], words: int = 512) -> TokenizedSplit:
    """Documents of the given lengths, without special tokens."""
    ids = np.random.default_rng(0).integers(3, words, sum(lengths)).astype(np.uint16)
    count = len(lengths)
    return TokenizedSplit(
        ids, offsets_of(lengths), np.zeros(count, np.int64), np.zeros(count, "V16"), "digest"
    )


def sequence(corpus: TokenizedSplit, document: int) -> list[int]:
    """The tokens of a document as the model must see them."""
    return [PREFIX, *corpus.document(document).tolist(), END]
