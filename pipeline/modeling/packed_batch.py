"""Packed windows of tokens, and how a model is given them.

How depends on the attention implementation: a block-diagonal mask, or sequence lengths. A token
sees its own piece only, in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100  # the target of a position that is not scored, as in `cross_entropy`


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

    def varlen_inputs(self) -> tuple[dict[str, Any], torch.Tensor]:
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

    def masked_inputs(self) -> tuple[dict[str, Any], torch.Tensor]:
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
