"""Held-out scoring: the negative log-likelihood of documents, and how sure one can be of its mean.

A document is read as `prefix, t0, t1, …`; every text token is scored once, the first given the
prefix, the end token not at all. What is longer than the context is scored by sliding windows, each
token with the longest context there is. Windows of like length go through the model together; a
padded position stands to the right of all real ones, where a causal model cannot see it, so neither
mask nor position ids are given (under OPT a mask would decide the positions).

The batches follow from documents, windows and `batch_tokens` alone, so a call that was interrupted
goes on at the batch where it stood and ends with the same digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.stop import Stop

if TYPE_CHECKING:
    import torch

    from pipeline.model.load import Precision

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Part = tuple[Ints, Floats, Ints]
"""What a batch brings: document indices (n,), their nats (n,) and tokens (n,) in this batch."""


@dataclass(frozen=True)
class Windows:
    """How documents are cut for scoring.

    Args:
        context: Tokens that the model sees at once, the prefix included; at least 1.
        stride: How far a window moves, 1 to `context`. A token is scored with at least
            `context - stride` tokens before it, as far as the document has them; the price is that
            a long document goes through the model `context / stride` times.
        prefix_id: The token before each document.
    """

    context: int
    stride: int
    prefix_id: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ValueError(
                f"stride {self.stride} must lie between 1 and the context, {self.context}"
            )

    def cut(self, tokens: int) -> Iterator[tuple[int, int, int]]:
        """The windows of a document of that many tokens, as (start, first, end).

        A window sees prefix and text from position `start` and predicts the tokens up to `end`
        (exclusive), of which those from `first` on count: they tile the document. The last window
        ends where the document does and is as full as can be.
        """
        first = end = 0
        while end < tokens:
            end = min(end + (self.stride if end else self.context), tokens)
            yield max(0, end - self.context), first, end
            first = end


def score(
    model: Any,
    documents: Sequence[npt.NDArray[Any]],
    windows: Windows,
    device: torch.device,
    precision: Precision,
    *,
    batch_tokens: int = 4096,
    stop: Stop | None = None,
    done: Callable[[Ints, Floats, Ints], None] | None = None,
    parts: Sequence[Part] = (),
) -> tuple[Floats, Ints]:
    """Negative log-likelihood of each document.

    Args:
        model: A causal language model, with or without adapters. It is put into evaluation mode and
            back.
        documents: Text tokens of each, nothing added; a memory-mapped sequence will do.
        windows: How they are cut.
        device: Where the model is.
        precision: Of its arithmetic; the losses themselves are fp32 and summed in float64.
        batch_tokens: Tokens in a batch, padding included; a longer window makes a batch of its own.
        stop: Looked at before each batch.
        done: Called with what each batch brings, in order, to keep it: `done(*part)`.
        parts: What `done` was given in an earlier call with the same arguments that was
            interrupted; those batches are not computed again.

    Returns:
        Nats, float64, and number of scored tokens, int64, both (documents,).

    Raises:
        Interrupted: A stop was asked for; what `done` got is whole.
    """
    import torch

    from pipeline.model.load import autocast, backbone

    body, head = backbone(model)
    nll = np.zeros(len(documents))
    tokens = np.zeros(len(documents), dtype=np.int64)
    for indices, nats, counts in parts:
        nll[indices] += nats
        tokens[indices] += counts
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # not inference_mode: its tensors stay behind in int8 layers and break a later backward
        with torch.no_grad(), autocast(device, precision):
            for batch in _batches([len(d) for d in documents], windows, batch_tokens)[len(parts) :]:
                if stop:
                    stop.check()
                part = _score_batch(body, head, batch, documents, windows, device)
                indices, nats, counts = part
                nll[indices] += nats
                tokens[indices] += counts
                if done:
                    done(*part)
    finally:
        for module, training in modes:
            module.training = training
    return nll, tokens


_Window = tuple[int, int, int, int]
"""Document, start, first, end."""


def _batches(lengths: Sequence[int], windows: Windows, batch_tokens: int) -> list[list[_Window]]:
    """All windows in batches, longest first: what does not fit in memory fails at once."""
    every = [(d, *window) for d, length in enumerate(lengths) for window in windows.cut(length)]
    every.sort(key=lambda w: (w[1] - w[3], w[0], w[1]))
    batches: list[list[_Window]] = []
    for window in every:
        if batches:
            _, start, _, end = batches[-1][0]
            if (len(batches[-1]) + 1) * (end - start) <= batch_tokens:
                batches[-1].append(window)
                continue
        batches.append([window])
    return batches


def _score_batch(
    body: Any,
    head: Any,
    batch: list[_Window],
    documents: Sequence[npt.NDArray[Any]],
    windows: Windows,
    device: torch.device,
) -> Part:
    import torch

    from pipeline.model.loss import token_losses

    width = max(end - start for _, start, _, end in batch)
    ids = np.full((len(batch), width), windows.prefix_id, dtype=np.int64)
    counted = np.zeros((len(batch), width), dtype=bool)
    targets, owners = [], []
    for row, (index, start, first, end) in enumerate(batch):
        document = documents[index]
        lead = int(start == 0)  # the prefix stands before token 0 and so at position 0
        ids[row, lead : end - start] = document[start - 1 + lead : end - 1]
        counted[row, first - start : end - start] = True
        targets.append(document[first:end].astype(np.int64))
        owners.append(np.full(end - first, index))
    states = body(input_ids=torch.from_numpy(ids).to(device), use_cache=False).last_hidden_state
    wanted = torch.from_numpy(np.concatenate(targets)).to(device)
    losses = token_losses(states[torch.from_numpy(counted).to(device)], head, wanted)
    indices, place = np.unique(np.concatenate(owners), return_inverse=True)
    nats = np.zeros(len(indices))
    np.add.at(nats, place, losses.cpu().numpy())  # sums in float64
    return indices, nats, np.bincount(place).astype(np.int64)


@dataclass(frozen=True)
class Change:
    """By how much one model differs from another on the same documents, with 95 % intervals.

    `difference`, `ci95`: nats a token, negative is better. `percent`, `ci95_percent`: perplexity.
    """

    difference: float
    ci95: tuple[float, float]
    percent: float
    ci95_percent: tuple[float, float]


def perplexity(nll: Floats, tokens: Ints) -> float:
    """Of a token: exp of the mean negative log-likelihood."""
    return float(np.exp(nll.sum() / tokens.sum()))


def bits_per_byte(nll: Floats, size: Ints) -> float:
    """Bits that the model needs for a byte of UTF-8 text."""
    return float(nll.sum() / np.log(2) / size.sum())


def interval(nll: Floats, tokens: Ints, resamples: int) -> tuple[float, float]:
    """95 % interval of `perplexity`, by bootstrap over documents."""
    low, high = np.exp(_bootstrap(nll, tokens, resamples))
    return float(low), float(high)


def change(base: Floats, tuned: Floats, tokens: Ints, resamples: int) -> Change:
    """The paired difference of two models' nats on the same documents, all (documents,).

    Pairing takes out that some documents are hard for both, which is most of the spread.
    """
    low, high = (float(v) for v in _bootstrap(tuned - base, tokens, resamples))
    mean = float((tuned - base).sum() / tokens.sum())
    percent = [100 * float(np.expm1(v)) for v in (mean, low, high)]
    return Change(mean, (low, high), percent[0], (percent[1], percent[2]))


def _bootstrap(values: Floats, tokens: Ints, resamples: int, seed: int = 0) -> Floats:
    """2.5 % and 97.5 % points of sum(values) / sum(tokens) over resampled documents.

    The percentile bootstrap of a ratio (Efron & Tibshirani 1993, §13.3); documents, not tokens, are
    what is independent of one another.
    """
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, len(values), len(values))
        ratios[i] = values[drawn].sum() / tokens[drawn].sum()
    return np.quantile(ratios, [0.025, 0.975])
