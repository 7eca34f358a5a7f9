"""Families of models that mean more than is computed here are refused: nothing else would complain.

Training and scoring take the hidden states of a model's body, and its output head after them. Some
families scale or cap what comes out of the head; computed without that, perplexities are those of
another model. In training a mask alone keeps documents of a window apart: a model that carries a
state from token to token does not look at it, and a layer that looks back only so far would look
back farther under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.model.load import backbone
from pipeline.model.score import judging

if TYPE_CHECKING:
    import torch

    from pipeline.model.load import Precision

PROBE = 8
NEAR = 1e-3
REACHES = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def check_head(model: Any, device: torch.device, precision: Precision) -> None:
    """Raise `UserError` if a model's logits are not those of its head on its body's states."""
    import torch

    body, head = backbone(model)
    ids = torch.arange(PROBE, device=device)[None]
    with judging(model, device, precision):
        meant = model(input_ids=ids, use_cache=False).logits.float()
        found = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
    if (found - meant).abs().max() > NEAR * meant.abs().max():
        raise UserError(
            f"models of the family {_family(model)} change their logits after the output head, "
            "which is not computed here",
            "take another MODEL",
        )


def check_windows(model: Any, length: int, masked: bool) -> None:
    """Raise `UserError` if documents that share windows would not be read as they are alone.

    Args:
        model: The base.
        length: Slots of a window.
        masked: Whether a mask keeps documents apart, and not their lengths.
    """
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"models of the family {_family(model)} carry a state from token to token, by which "
            "documents of a window would see each other",
            "take another MODEL",
        )
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    reaches = (getattr(config, REACHES[kind], None) for kind in kinds if kind in REACHES)
    reach = min((reach for reach in reaches if reach), default=length)
    if masked and length > reach:
        raise UserError(
            f"windows of {length} slots are longer than the {reach} tokens that layers of this "
            "model look back, which the mask of a training does not know of",
            f"use train.length={reach}",
        )


def _family(model: Any) -> str:
    return str(model.config.model_type)
