"""Packed windows of tokens, and how a model is given them.

How depends on the attention implementation: a block-diagonal mask, sequence lengths, or a row for
each piece. A token sees its own piece only, in each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100  # the target of a position that is not scored, as in `cross_entropy`

ModelInputs = tuple[dict[str, Any], "torch.Tensor"]
"""Arguments of a transformers model, and the targets of their tokens in one dimension."""


@dataclass(frozen=True)
class PackedBatch:
    """Windows of tokens for the model; each field is int64, (windows, length).

    `inputs`: padded with the end token. `targets`: the next token, `IGNORE_INDEX` in padding.
    `positions`: from 0 in each piece, 0 in padding. `segments`: number of the piece in its window,
    -1 in padding.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive block-diagonal causal mask, (windows, 1, length, length).

        It is float because eager attention reads a boolean mask the wrong way round. It is always
        passed because without it some model families attend across documents.
        """
        import torch

        length = self.segments.shape[1]
        same = self.segments[:, :, None] == self.segments[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        mask = torch.zeros(same.shape, dtype=dtype, device=same.device)
        return mask.masked_fill(~(same & causal), torch.finfo(torch.bfloat16).min)[:, None]

    def inputs_for(self, attention: str) -> list[ModelInputs]:
        """All pieces, in the form that an attention implementation needs; one forward pass each."""
        if attention == "flash_attention_2":
            return [self.varlen_inputs()]
        return self.row_inputs() if attention == "eager" else [self.masked_inputs()]

    def varlen_inputs(self) -> ModelInputs:
        """All pieces in one row without padding, with their offsets, as FlashAttention takes them.

        Returns:
            Arguments of a transformers model, whose `input_ids` and `position_ids` are (1, tokens);
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

    def row_inputs(self) -> list[ModelInputs]:
        """Each piece in a row of its own, for models that take no mask of a window.

        Rows are padded on the right, where a causal model does not see it. Those whose lengths have
        the same power of two above them share a forward pass, so less than half of it is padding.

        Returns:
            For each of them, `input_ids`, (rows, longest piece), and targets, (rows * longest,).
        """
        from torch.nn.utils.rnn import pad_sequence

        real = self.segments >= 0
        starts = (self.positions[real] == 0).nonzero().flatten().tolist()
        lengths = [b - a for a, b in zip(starts, [*starts[1:], int(real.sum())], strict=True)]
        inputs, targets = (t[real].split(lengths) for t in (self.inputs, self.targets))
        passes: dict[int, list[list[torch.Tensor]]] = defaultdict(list)
        for length, *piece in zip(lengths, inputs, targets, strict=True):
            passes[(length - 1).bit_length()].append(piece)
        return [
            (
                {"input_ids": pad_sequence([inputs for inputs, _ in rows], batch_first=True)},
                pad_sequence([targets for _, targets in rows], True, IGNORE_INDEX).flatten(),
            )
            for rows in passes.values()
        ]

    def masked_inputs(self) -> ModelInputs:
        """The windows with an attention mask.

        Returns:
            Arguments of a transformers model, and targets, (windows * length,).
        """
        import torch

        arguments = {
            "input_ids": self.inputs,
            "attention_mask": self.attention_mask(torch.float32),
            "position_ids": self.positions,
        }
        return arguments, self.targets.flatten()

    def to(self, device: Any) -> PackedBatch:
        """The same batch on a device."""
        return PackedBatch(
            *(t.to(device) for t in (self.inputs, self.targets, self.positions, self.segments))
        )


def one_window(documents: Sequence[torch.Tensor]) -> PackedBatch:
    """A window with these documents, each (tokens,), without padding or targets."""
    import torch

    inputs = torch.cat(list(documents))[None]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    lengths = torch.tensor([len(document) for document in documents])
    segments = torch.arange(len(documents)).repeat_interleave(lengths)[None]
    return PackedBatch(inputs, torch.full_like(inputs, IGNORE_INDEX), positions, segments)
