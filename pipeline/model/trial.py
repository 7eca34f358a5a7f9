"""A trial of a loaded model: whether what we compute of it is what it computes itself.

Training and scoring take hidden states from the body and lay the output head on them, and several
documents share a window. A model that caps or scales its logits after the head (Gemma 2, Granite,
Cohere) would learn and be judged by other numbers than its own; one whose layers pass state along a
window, whatever the mask says, would read one document into the next. Both would pass in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.data.packing import Batch
from pipeline.errors import UserError
from pipeline.model.load import Precision, backbone
from pipeline.model.score import judging

if TYPE_CHECKING:
    import torch

PIECE = 24
NEAR = 0.02  # of its size; what rounding makes of logits in bf16 is a tenth of that
APART = 0.1  # int8 and bf16 round what stands beside other text by some hundredths
KNOWN = "use a model of the families OPT, GPT-2, Llama, SmolLM, Qwen 2 or 3, or Mistral"


def try_out(model: Any, device: torch.device, precision: Precision, packed: int = 0) -> None:
    """Compare a few numbers.

    Args:
        model: A causal language model as it was loaded, without adapters.
        device: Where it is.
        precision: Of its arithmetic.
        packed: Slots of a window in which documents will stand side by side; 0 if none will.

    Raises:
        UserError: The model cannot be trained or scored in the way that this is done here.
    """
    import torch

    body, head = backbone(model)
    words = head.weight.shape[0]
    drawn = torch.randint(words, (1, 2 * PIECE), generator=torch.Generator().manual_seed(0))
    ids = drawn.to(device)
    with judging(model, device, precision):
        alone = body(input_ids=ids[:, PIECE:], use_cache=False).last_hidden_state
        wanted = model(input_ids=ids[:, PIECE:], use_cache=False).logits
        if _off(head(alone), wanted) > NEAR:
            raise UserError(
                f"a {model.config.model_type} model changes its logits after the output head, and "
                "its losses would be computed without that",
                KNOWN,
            )
        if packed:
            _try_beside(model, ids, alone, packed)


def _try_beside(model: Any, ids: Any, alone: Any, packed: int) -> None:
    """Compare the second of two documents that share a window with what it is `alone`."""
    import torch

    body, _ = backbone(model)
    kind, config = f"{model.config.model_type} model", model.config
    place = torch.arange(PIECE).repeat(1, 2).to(ids.device)
    piece = torch.arange(2).repeat_interleave(PIECE)[None].to(ids.device)
    batch = Batch(ids, ids, place, piece)
    flash = config._attn_implementation == "flash_attention_2"
    arguments, _ = batch.by_length() if flash else batch.by_mask()
    try:
        beside = body(**arguments, use_cache=False).last_hidden_state[:, PIECE:]
    except (RuntimeError, TypeError, ValueError) as error:
        what = f"a {kind} cannot be told where documents end in a window: {error}"
        raise UserError(what.partition("\n")[0], KNOWN) from None
    if _off(beside, alone) > APART:
        raise UserError(
            f"a {kind} reads one document into the next where they share a window", KNOWN
        )
    sees = getattr(config, "sliding_window", None)
    if sees and getattr(config, "use_sliding_window", True) and packed > sees:
        raise UserError(
            f"this {kind} sees {sees} tokens back, and train.length is {packed}",
            f"use train.length={sees}",
        )


def _off(found: Any, wanted: Any) -> float:
    """By how much of its size one differs from the other."""
    found, wanted = found.float(), wanted.float()
    return float((found - wanted).norm() / wanted.norm())
