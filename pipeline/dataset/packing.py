"""Documents to windows: packed without padding to speak of, without leakage, without loss.

A document of n text tokens is the sequence prefix, text, end: n + 1 (input, target) pairs. Longer
ones than a window are cut into pieces, each pair in exactly one; pieces then share windows by best
fit. A batch carries the segment of every slot, and the mask lets a token see its own segment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import Corpus

if TYPE_CHECKING:
    import torch

How = Literal["best-fit", "pad"]

IGNORE_INDEX = -100  # the target of a position that is not scored, as in `cross_entropy`


@dataclass(frozen=True)
class Packing:
    """Which pieces stand in which window.

    `pieces`: (P, 3) int32 of document, first pair, pairs. Window w holds
    `pieces[windows[w]:windows[w + 1]]`. `length`: slots of a window.
    """

    pieces: npt.NDArray[np.int32]
    windows: npt.NDArray[np.int64]
    length: int

    def __len__(self) -> int:
        return len(self.windows) - 1

    @property
    def pairs(self) -> int:
        """(input, target) pairs in all windows."""
        return int(self.pieces[:, 2].sum())

    def of(self, window: int) -> npt.NDArray[np.int32]:
        """The pieces of a window, (pieces, 3)."""
        return self.pieces[self.windows[window] : self.windows[window + 1]]


def pack(offsets: npt.NDArray[np.int64], length: int, how: How = "best-fit") -> Packing:
    """Cut documents into pieces of at most `length` pairs and lay them into windows.

    Args:
        offsets: Document d has `offsets[d + 1] - offsets[d]` text tokens; int64, documents + 1.
        length: Slots of a window.
        how: `best-fit`, or `pad`: a window a document, cut off at `length`.
    """
    pairs = np.diff(offsets) + 1
    if how == "pad":
        count = len(pairs)
        pieces = np.stack([np.arange(count), np.zeros(count), np.minimum(pairs, length)], axis=1)
        return Packing(pieces.astype(np.int32), np.arange(count + 1, dtype=np.int64), length)
    pieces = _cut(pairs, length)
    order = np.argsort(-pieces[:, 2], kind="stable")
    window = _best_fit(pieces[order, 2], length)
    by_window = np.argsort(window, kind="stable")
    counts = np.bincount(window, minlength=int(window.max(initial=-1)) + 1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Packing(pieces[order[by_window]], starts, length)


def _cut(pairs: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int32]:
    counts = -(-pairs // length)
    document = np.repeat(np.arange(len(pairs)), counts)
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    start = (np.arange(len(document)) - np.repeat(first, counts)) * length
    size = np.minimum(length, pairs[document] - start)
    return np.stack([document, start, size], axis=1).astype(np.int32)


def _best_fit(sizes: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int64]:
    """Best-fit decreasing: the window of each size, in the order given (largest first)."""
    window = np.empty(len(sizes), dtype=np.int64)
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r is set while a window has room r
    opened = 0
    for index, size in enumerate(sizes.tolist()):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = length, opened
            opened += 1
        window[index] = chosen
        if room > size:
            by_room[room - size].append(chosen)
            rooms |= 1 << (room - size)
    return window


@dataclass(frozen=True)
class Batch:
    """Windows ready for the model; all (windows, length), int64.

    `segments` numbers the pieces of a window; slots beyond the last piece have segments of -1.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive block-diagonal causal mask, (windows, 1, length, length).

        It is float because a boolean one is taken the wrong way round by eager attention, and it
        is always given because without it some families attend across documents.
        """
        import torch

        length = self.segments.shape[1]
        same = self.segments[:, :, None] == self.segments[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        mask = torch.zeros(same.shape, dtype=dtype, device=same.device)
        return mask.masked_fill(~(same & causal), torch.finfo(torch.bfloat16).min)[:, None]

    def by_length(self) -> tuple[dict[str, Any], torch.Tensor]:
        """All pieces in one row without padding, told apart by length: what FlashAttention takes.

        Returns:
            Arguments of a transformers model, `input_ids` and `position_ids` of them (1, tokens);
            and targets, (tokens,).
        """
        import torch

        real = self.segments >= 0
        positions = self.positions[real]
        starts = (positions == 0).nonzero().flatten()
        ends = torch.cat([starts, starts.new_tensor([len(positions)])]).to(torch.int32)
        longest = int(ends.diff().max())
        arguments = {
            "input_ids": self.inputs[real][None],
            "position_ids": positions[None],
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        return arguments, self.targets[real]

    def by_mask(self) -> tuple[dict[str, Any], torch.Tensor]:
        """Windows and their mask: arguments of a transformers model; and targets, (slots,)."""
        import torch

        arguments = {
            "input_ids": self.inputs,
            "attention_mask": self.mask(torch.float32),
            "position_ids": self.positions,
        }
        return arguments, self.targets.flatten()

    def to(self, device: Any) -> Batch:
        """The same batch on a device."""
        return Batch(
            *(t.to(device) for t in (self.inputs, self.targets, self.positions, self.segments))
        )


def make_batch(
    corpus: Corpus, packing: Packing, windows: Sequence[int], prefix: int, end: int
) -> Batch:
    """Fill windows with tokens.

    Args:
        corpus: The documents that were packed.
        packing: Their packing.
        windows: Which windows.
        prefix: Token id before each document.
        end: Token id after it.
    """
    import torch

    shape = (len(windows), packing.length)
    inputs = np.full(shape, end, dtype=np.int64)
    targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    for row, window in enumerate(windows):
        slot = 0
        for number, (document, start, size) in enumerate(packing.of(window).tolist()):
            tokens = _sequence(corpus, document, start, size, prefix, end)
            stop = slot + size
            inputs[row, slot:stop] = tokens[:-1]
            targets[row, slot:stop] = tokens[1:]
            positions[row, slot:stop] = np.arange(size)
            segments[row, slot:stop] = number
            slot = stop
    return Batch(*(torch.from_numpy(a) for a in (inputs, targets, positions, segments)))


def _sequence(
    corpus: Corpus, document: int, start: int, size: int, prefix: int, end: int
) -> npt.NDArray[np.int64]:
    """Tokens `start` to `start + size`, inclusive, of prefix + text + end."""
    first, last = corpus.offsets[document], corpus.offsets[document + 1]
    text = corpus.ids[first + max(0, start - 1) : min(last, first + start + size)].astype(np.int64)
    before = [prefix] if start == 0 else []
    after = [end] if start + size == last - first + 1 else []
    return np.concatenate([before, text, after]).astype(np.int64)
