"""Generate the continuation of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.stop import Stop
from pipeline.modeling.eval_mode import eval_mode

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.device import Precision

TOP_K, TOP_P = 50, 0.95


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    prefix_id: int,
    end_id: int,
    device: torch.device,
    precision: Precision,
    *,
    sampled: bool = False,
    seed: int = 0,
    stop: Stop | None = None,
) -> list[list[int]]:
    """Continue prompts of equal length, greedily or by sampling.

    Args:
        model: A causal language model, with or without adapters.
        prompts: Text tokens, (texts, tokens).
        max_new_tokens: Tokens to generate at most.
        prefix_id: The token before each prompt.
        end_id: The token that ends a text.
        device: Where the model is.
        precision: Floating-point format of the computation.
        sampled: Sample with temperature 1, top-k 50 and top-p 0.95; otherwise take the most likely
            token.
        seed: Seed of the sampling.
        stop: Checked before each token.

    Returns:
        The tokens generated after each prompt, without the end token.

    Raises:
        Interrupted: A stop was requested.
    """
    import torch

    ids = torch.tensor([[prefix_id, *prompt] for prompt in prompts], device=device)

    def check_stop(*_: Any) -> torch.Tensor:
        if stop:
            stop.check()
        return torch.zeros(len(ids), dtype=torch.bool, device=device)

    sampling = {"temperature": 1.0, "top_k": TOP_K, "top_p": TOP_P} if sampled else {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), eval_mode(model, device, precision):
        torch.manual_seed(seed)
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=sampled,
            use_cache=True,
            eos_token_id=end_id,
            pad_token_id=end_id,
            stopping_criteria=[check_stop],
            **sampling,
        )
    texts = generated[:, ids.shape[1] :].tolist()
    return [text[: text.index(end_id)] if end_id in text else text for text in texts]
