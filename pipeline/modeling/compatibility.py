"""Families of models that mean more than is computed here are refused: nothing else would complain.

Training and scoring take the hidden states of a model's body, and its output head after them. Some
families scale or cap what comes out of the head; computed without that, perplexities are those of
another model. In training a mask alone keeps documents of a window apart: a model that carries a
state from token to token does not look at it, and a layer that looks back only so far would look
back farther under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.registry import UNFIT
from pipeline.dataset.packing import Batch
from pipeline.modeling.loading import backbone
from pipeline.modeling.scoring import judging

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.loading import Precision

PROBE = 16
NEAR = 1e-3
APART = 0.1  # of its size; int8 and bf16 round what stands beside other text by some hundredths
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


def matrices(model: Any) -> list[str]:
    """Names of the modules that hold a matrix which adapters can go beside."""
    found = [(name, getattr(m, "weight", None)) for name, m in model.named_modules()]
    matrix = [name for name, weight in found if weight is not None and weight.ndim == 2]
    return [name for name in matrix if name.rpartition(".")[2] not in UNFIT]


def check_windows(model: Any, device: torch.device, precision: Precision, length: int) -> None:
    """Raise `UserError` if documents that share windows would not be read as they are alone.

    Args:
        model: The base, with adapters or without.
        device: Where it is.
        precision: Of its arithmetic.
        length: Slots of a window.
    """
    told = f"models of the family {_family(model)}"
    if getattr(backbone(model)[0], "_is_stateful", False):
        raise UserError(
            f"{told} carry a state from token to token, by which documents of a window would see "
            "each other",
            "take another MODEL",
        )
    config = model.config.get_text_config()
    flash = config._attn_implementation == "flash_attention_2"
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    reaches = (getattr(config, REACHES[kind], None) for kind in kinds if kind in REACHES)
    reach = min((reach for reach in reaches if reach), default=length)
    if length > reach and not flash:
        raise UserError(
            f"windows of {length} slots are longer than the {reach} tokens that layers of this "
            "model look back, which the mask of a training does not know of",
            f"use train.sequence_length={reach}",
        )
    if _beside(model, device, precision, flash) > APART:
        raise UserError(
            f"{told} read one document into the next where they share a window",
            "take another MODEL",
        )


def _beside(model: Any, device: torch.device, precision: Precision, flash: bool) -> float:
    """By how much a document's states differ where another one is before it in the window."""
    import torch

    body, head = backbone(model)
    words = head.weight.shape[0]
    drawn = torch.randint(words, (1, 2 * PROBE), generator=torch.Generator().manual_seed(0))
    place = torch.arange(PROBE).repeat(1, 2)
    piece = torch.arange(2).repeat_interleave(PROBE)[None]
    batch = Batch(drawn, drawn, place, piece).to(device)
    arguments, _ = batch.by_length() if flash else batch.by_mask()
    with judging(model, device, precision):
        second = body(**arguments, use_cache=False).last_hidden_state[:, PROBE:].float()
        alone = body(input_ids=batch.inputs[:, PROBE:], use_cache=False).last_hidden_state.float()
    return float((second - alone).norm() / alone.norm())


def _family(model: Any) -> str:
    return str(model.config.model_type)
