"""Score held-out documents: the negative log-likelihood of their tokens.

A document is read as `prefix, t0, t1, …`. Every text token is scored once, the first given the
prefix; the end token is not scored. A document that is longer than the context is scored by sliding
windows. Windows of similar length form a batch. Padding is to the right of all real tokens, where a
causal model cannot see it, so neither mask nor position ids are given (OPT would derive its
positions from a mask).

The batches depend on the documents, the windows and `batch_tokens` only. So an interrupted call
resumes at the batch where it stopped, and returns the same values to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.modeling.eval_mode import eval_mode
from pipeline.modeling.loading import body_and_head
from pipeline.modeling.loss import token_losses

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.device import Precision

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

POSITION_BUCKETS = 24
MAX_PADDING_RATIO = 1 / 32  # of a batch's width, for each row
NO_PADDING_DEVICES = ("cpu",)
"""Devices on which a token costs as much in a small batch as in a large one: padding only costs."""


class ScoredBatch(NamedTuple):
    """What a batch adds to the scores.

    `documents`: indices of the documents in it, (n,). `nll`, `tokens`: nats and tokens of each in
    this batch, (n,). `by_position`: nats and tokens by position in the document,
    (POSITION_BUCKETS, 2), float64. Bucket p holds the positions from 2^p − 1 to 2^(p + 1) − 2, the
    last one all that follow, too.
    """

    documents: Ints
    nll: Floats
    tokens: Ints
    by_position: Floats


@dataclass(frozen=True)
class SlidingWindows:
    """How documents are split for scoring.

    Args:
        context: Tokens that the model sees at once, the prefix included; at least 1.
        stride: How far a window moves, 1 to `context`. Each token is scored with at least
            `context - stride` tokens before it, unless the document has fewer. A long document
            goes through the model `context / stride` times.
        prefix_id: The token before each document.
    """

    context: int
    stride: int
    prefix_id: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ValueError(
                f"stride {self.stride} must be between 1 and the context, {self.context}"
            )

    def split(self, tokens: int) -> Iterator[tuple[int, int, int]]:
        """The windows of a document with that many text tokens.

        Input 0 is the prefix and input i + 1 is text token i, so input i predicts text token i.

        Yields:
            (start, first, end). The window reads inputs `start` to `end` - 1 and predicts the text
            tokens of the same numbers. Of these, `first` to `end` - 1 are scored; over all windows
            each text token is scored exactly once. Every window is as long as the context and the
            document allow.
        """
        first = end = 0
        while end < tokens:
            end = min(end + (self.stride if end else self.context), tokens)
            yield max(0, end - self.context), first, end
            first = end


def score(
    model: Any,
    documents: Sequence[npt.NDArray[Any]],
    windows: SlidingWindows,
    device: torch.device,
    precision: Precision,
    *,
    batch_tokens: int = 4096,
    check: Callable[[], None] = lambda: None,
    rank_and_world: tuple[int, int] = (0, 1),
    on_batch: Callable[[ScoredBatch], None] | None = None,
    resumed_batches: Sequence[ScoredBatch] = (),
) -> tuple[Floats, Ints]:
    """Negative log-likelihood of each document.

    Args:
        model: A causal language model, with or without adapters. It is put into evaluation mode
            and restored.
        documents: Text tokens of each, without prefix and end; may be memory-mapped.
        windows: How documents are split.
        device: Where the model is.
        precision: Floating-point format of the computation. Losses are fp32, their sums float64.
        batch_tokens: Tokens of a batch, padding included; a longer window is a batch by itself.
        check: Called before each batch, equally often for every rank; may raise.
        rank_and_world: This rank and the number of ranks, which share the batches. The scores of
            other ranks' batches remain 0.
        on_batch: Called with each batch, in order.
        resumed_batches: What `on_batch` received in an earlier, interrupted call with the same
            arguments; these are not computed again.

    Returns:
        Nats, float64, and number of scored tokens, int64, both (documents,).

    Raises:
        Interrupted: Raised by `check`; what `on_batch` received is complete.
    """
    body, head = body_and_head(model)
    nll = np.zeros(len(documents))
    tokens = np.zeros(len(documents), dtype=np.int64)

    def add(batch: ScoredBatch) -> None:
        nll[batch.documents] += batch.nll
        tokens[batch.documents] += batch.tokens

    for batch in resumed_batches:
        add(batch)
    padding = 0.0 if device.type in NO_PADDING_DEVICES else MAX_PADDING_RATIO
    batches = _make_batches([len(d) for d in documents], windows, batch_tokens, padding)
    rank, world = rank_and_world
    with eval_mode(model, device, precision):
        for start in range(len(resumed_batches), len(batches), world):
            check()
            for rows in batches[start : start + world][rank : rank + 1]:
                result = _score_batch(body, head, rows, documents, windows, device)
                add(result)
                if on_batch:
                    on_batch(result)
    return nll, tokens


_Row = tuple[int, int, int, int]
"""A row of a batch: document, and its window (start, first, end)."""


def _make_batches(
    lengths: Sequence[int], windows: SlidingWindows, batch_tokens: int, padding: float
) -> list[list[_Row]]:
    """All windows in batches, longest first: what does not fit into memory fails at once."""
    rows = [(d, *window) for d, length in enumerate(lengths) for window in windows.split(length)]
    rows.sort(key=lambda row: (row[1] - row[3], row[0], row[1]))
    batches: list[list[_Row]] = []
    width = 0
    for row in rows:
        length = row[3] - row[1]
        fits = batches and (len(batches[-1]) + 1) * width <= batch_tokens
        if fits and width - length <= width * padding:
            batches[-1].append(row)
        else:
            batches.append([row])
            width = length
    return batches


def _score_batch(
    body: Any,
    head: Any,
    rows: list[_Row],
    documents: Sequence[npt.NDArray[Any]],
    windows: SlidingWindows,
    device: torch.device,
) -> ScoredBatch:
    """Score a batch of windows.

    Inputs are (rows, width); a row is one window, padded on the right with the prefix token.
    """
    import torch

    width = max(end - start for _, start, _, end in rows)
    ids = np.full((len(rows), width), windows.prefix_id, dtype=np.int64)
    is_scored = np.zeros((len(rows), width), dtype=bool)
    targets, owners, positions = [], [], []
    for row, (index, start, first, end) in enumerate(rows):
        document = documents[index]
        has_prefix = int(start == 0)  # input i + 1 is text token i
        ids[row, has_prefix : end - start] = document[start - 1 + has_prefix : end - 1]
        is_scored[row, first - start : end - start] = True
        targets.append(document[first:end].astype(np.int64))
        owners.append(np.full(end - first, index))
        positions.append(np.arange(first, end))
    states = body(input_ids=torch.from_numpy(ids).to(device), use_cache=False).last_hidden_state
    states = states[torch.from_numpy(is_scored).to(device)]
    target_ids = torch.from_numpy(np.concatenate(targets)).to(device)
    losses = token_losses(states, head, target_ids).cpu().numpy()
    indices, owner = np.unique(np.concatenate(owners), return_inverse=True)
    buckets = np.log2(np.concatenate(positions) + 1).astype(np.int64)
    buckets = np.minimum(buckets, POSITION_BUCKETS - 1)
    by_position = np.stack(_sums(losses, buckets, POSITION_BUCKETS), axis=1).astype(np.float64)
    return ScoredBatch(indices, *_sums(losses, owner, len(indices)), by_position)


def _sums(losses: npt.NDArray[Any], group: Ints, groups: int) -> tuple[Floats, Ints]:
    """Sum, in float64, and number of the losses of each group."""
    sums = np.bincount(group, losses, groups).astype(np.float64)
    return sums, np.bincount(group, minlength=groups).astype(np.int64)
