"""Held-out scoring: the negative log-likelihood of documents.

A document is read as `prefix, t0, t1, …`; every text token is scored once, the first given the
prefix, the end token not at all. What is longer than the context is scored by sliding windows, each
token with the longest context there is. Windows of like length go through the model together; a
padded position stands to the right of all real ones, where a causal model cannot see it, so neither
mask nor position ids are given (under OPT a mask would decide the positions).

The batches follow from documents, windows and `batch_tokens` alone, so a call that was interrupted
goes on at the batch where it stood and ends with the same digits.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.metrics import Floats, Ints

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.loading import Precision

PLACES = 24
Part = tuple[Ints, Floats, Ints, Floats]
"""What a batch brings: document indices (n,), their nats (n,) and tokens (n,) in this batch; and
nats and tokens by place in the document, (PLACES, 2), float64: place p has the tokens that 2^p − 1
and more stand before, and less than 2^(p + 1) − 1, but the last, which has all that follow."""


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
    check: Callable[[], None] = lambda: None,
    share: tuple[int, int] = (0, 1),
    done: Callable[[Ints, Floats, Ints, Floats], None] | None = None,
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
        check: Called before each batch, and as often for any share of them; may raise.
        share: Rank and number of those who share the batches; what others do stays 0.
        done: Called with what each batch brings, in order, to keep it: `done(*part)`.
        parts: What `done` was given in an earlier call with the same arguments that was
            interrupted; those batches are not computed again.

    Returns:
        Nats, float64, and number of scored tokens, int64, both (documents,).

    Raises:
        Interrupted: By `check`; what `done` got is whole.
    """
    from pipeline.modeling.loading import backbone

    body, head = backbone(model)
    nll = np.zeros(len(documents))
    tokens = np.zeros(len(documents), dtype=np.int64)
    for indices, nats, counts, _ in parts:
        nll[indices] += nats
        tokens[indices] += counts
    padding = 0.0 if device.type in UNPADDED else PADDING
    every = _batches([len(document) for document in documents], windows, batch_tokens, padding)
    with judging(model, device, precision):
        rank, world = share
        for start in range(len(parts), len(every), world):
            check()
            for batch in every[start : start + world][rank : rank + 1]:
                part = _score_batch(body, head, batch, documents, windows, device)
                indices, nats, counts, _ = part
                nll[indices] += nats
                tokens[indices] += counts
                if done:
                    done(*part)
    return nll, tokens


@contextmanager
def judging(model: Any, device: torch.device, precision: Precision) -> Iterator[None]:
    """The model in evaluation mode, under a precision, without gradients; afterwards as before."""
    import torch

    from pipeline.modeling.loading import autocast, keep_arithmetic

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    keep_arithmetic(model, device)
    try:
        # not inference_mode: its tensors stay behind in int8 layers and break a later backward
        with torch.no_grad(), autocast(device, precision):
            yield
    finally:
        for module, training in modes:
            module.training = training


PADDING = 1 / 32
"""Of a batch's width, by which a row is padded at most."""
UNPADDED = ("cpu",)
"""Devices on which a slot costs the same in a large batch and in a small one: padding is lost."""
_Window = tuple[int, int, int, int]
"""Document, start, first, end."""


def _batches(
    lengths: Sequence[int], windows: Windows, batch_tokens: int, padding: float
) -> list[list[_Window]]:
    """All windows in batches, longest first: what does not fit in memory fails at once."""
    every = [(d, *window) for d, length in enumerate(lengths) for window in windows.cut(length)]
    every.sort(key=lambda w: (w[1] - w[3], w[0], w[1]))
    batches: list[list[_Window]] = []
    width = 0
    for window in every:
        length = window[3] - window[1]
        fits = batches and (len(batches[-1]) + 1) * width <= batch_tokens
        if fits and width - length <= width * padding:
            batches[-1].append(window)
        else:
            batches.append([window])
            width = length
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

    from pipeline.modeling.loss import token_losses

    width = max(end - start for _, start, _, end in batch)
    ids = np.full((len(batch), width), windows.prefix_id, dtype=np.int64)
    counted = np.zeros((len(batch), width), dtype=bool)
    targets, owners, positions = [], [], []
    for row, (index, start, first, end) in enumerate(batch):
        document = documents[index]
        lead = int(start == 0)  # the prefix stands before token 0 and so at position 0
        ids[row, lead : end - start] = document[start - 1 + lead : end - 1]
        counted[row, first - start : end - start] = True
        targets.append(document[first:end].astype(np.int64))
        owners.append(np.full(end - first, index))
        positions.append(np.arange(first, end))
    states = body(input_ids=torch.from_numpy(ids).to(device), use_cache=False).last_hidden_state
    wanted = torch.from_numpy(np.concatenate(targets)).to(device)
    losses = token_losses(states[torch.from_numpy(counted).to(device)], head, wanted).cpu().numpy()
    indices, owner = np.unique(np.concatenate(owners), return_inverse=True)
    nats, counts = _sums(losses, owner, len(indices))
    place = np.minimum(np.log2(np.concatenate(positions) + 1).astype(np.int64), PLACES - 1)
    return indices, nats, counts, np.stack(_sums(losses, place, PLACES), axis=1)


def _sums(losses: npt.NDArray[Any], owner: Ints, count: int) -> tuple[Floats, Ints]:
    """Losses, added up in float64, and their number by owner."""
    sums = np.bincount(owner, losses, count).astype(np.float64)
    return sums, np.bincount(owner, minlength=count).astype(np.int64)


FIELDS = ("documents", "nll", "tokens", "places")


class Kept:
    """The batches that a long scoring is through with, on disk. Use as a context manager.

    JSON lines, numbered, under a first line that says how they were scored. Once it is entered,
    `parts` are those that an interrupted attempt left, if it scored in the same way, and `seconds`
    what it took over them.

    Args:
        folder: Where the file goes.
        how: What the scores depend on, besides what the folder stands for.
    """

    def __init__(self, folder: Path, how: dict[str, Any]) -> None:
        self._path = folder / "batches.jsonl"
        self._head = json.dumps(how).encode() + b"\n"
        self.parts: list[Part] = []
        self.seconds = 0.0

    def _read(self) -> None:
        """Take what an earlier attempt left, or begin anew."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        head = self._head
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if lines[:1] != [head]:
            self._path.write_bytes(head)
            return
        size = len(head)
        # a kill may have torn a line; from there on all is scored again
        while len(self.parts) + 1 < len(lines) and self._take(lines[len(self.parts) + 1]):
            size += len(lines[len(self.parts)])
        os.truncate(self._path, size)

    def _take(self, line: bytes) -> bool:
        try:
            row = json.loads(line) if line.endswith(b"\n") else {}
            if row["batch"] != len(self.parts):
                return False
            part = tuple(np.array(row[name]) for name in FIELDS)
            self.seconds += row["seconds"]
        except (ValueError, TypeError, KeyError):
            return False
        self.parts.append(cast(Part, part))
        return True

    def __enter__(self) -> Kept:
        self._read()
        self._file = self._path.open("ab", buffering=0)
        self._batch, self._since = len(self.parts), time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add(self, *part: Any) -> None:
        """Keep one more batch: what `score` gives to `done`.

        Raises:
            OSError: There is no room; it names the file.
        """
        row = dict(zip(FIELDS, (p.tolist() for p in part), strict=True))
        now = time.monotonic()
        row |= {"batch": self._batch, "seconds": round(now - self._since, 3)}
        self._batch, self._since = self._batch + 1, now
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):  # a disk that is nearly full takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
