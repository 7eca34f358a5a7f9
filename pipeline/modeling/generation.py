"""What a model writes after the opening of a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.stop import Stop
from pipeline.modeling.scoring import judging

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.loading import Precision

TOP_K, TOP_P = 50, 0.95


def write(
    model: Any,
    openings: Sequence[Sequence[int]],
    length: int,
    prefix: int,
    end: int,
    device: torch.device,
    precision: Precision,
    *,
    sampled: bool = False,
    seed: int = 0,
    stop: Stop | None = None,
) -> list[list[int]]:
    """Go on from openings of equal length, the most likely token each time or drawn by lot.

    Args:
        model: A causal language model, with or without adapters.
        openings: Text tokens, (texts, tokens).
        length: Tokens to write at most.
        prefix: The token before each opening.
        end: The token that ends a text.
        device: Where the model is.
        precision: Of its arithmetic.
        sampled: Draw from the 50 likeliest tokens and the likeliest 95 % (temperature 1).
        seed: Of the lot.
        stop: Looked at before each token.

    Returns:
        The tokens written after each opening, without the end token.

    Raises:
        Interrupted: A stop was asked for.
    """
    import torch

    ids = torch.tensor([[prefix, *opening] for opening in openings], device=device)

    def look(*_: Any) -> torch.Tensor:
        if stop:
            stop.check()
        return torch.zeros(len(ids), dtype=torch.bool, device=device)

    how = {"temperature": 1.0, "top_k": TOP_K, "top_p": TOP_P} if sampled else {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), judging(model, device, precision):
        torch.manual_seed(seed)
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=sampled,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
            stopping_criteria=[look],
            **how,
        )
    rows = written[:, ids.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
