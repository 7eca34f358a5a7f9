"""Refuse models whose forward pass we do not reproduce; nothing else would report them.

Training and scoring compute the hidden states of a model's body, then apply its output head. Some
model types scale or cap the logits after the head; without that step, perplexities would be those
of another model. In training only a mask keeps the documents of a window apart. A model that
carries a state from token to token ignores the mask, and a layer with a limited attention span
would look back farther than it should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.registry import NOT_ADAPTABLE_MODULES
from pipeline.modeling.eval_mode import eval_mode
from pipeline.modeling.loading import body_and_head
from pipeline.modeling.packed_batch import PackedBatch

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.device import Precision

PROBE_TOKENS = 16
MAX_LOGIT_ERROR = 1e-3  # relative to the largest logit
MAX_ISOLATION_ERROR = 0.1  # relative norm; int8 and bf16 rounding alone makes a few hundredths
SPAN_FIELDS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer type in a model's configuration → the field that limits how far it looks back."""


def check_head(model: Any, device: torch.device, precision: Precision) -> None:
    """Raise `UserError` if a model's logits are not its output head applied to its states."""
    import torch

    body, head = body_and_head(model)
    ids = torch.arange(PROBE_TOKENS, device=device)[None]
    with eval_mode(model, device, precision):
        expected = model(input_ids=ids, use_cache=False).logits.float()
        computed = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
    if (computed - expected).abs().max() > MAX_LOGIT_ERROR * expected.abs().max():
        raise UserError(
            f"models of type {_model_type(model)} change their logits after the output head, "
            "which is not supported",
            "Use another MODEL",
        )


def adaptable_modules(model: Any) -> list[str]:
    """Names of the modules with a weight matrix, which LoRA can adapt."""
    weights = [(name, getattr(m, "weight", None)) for name, m in model.named_modules()]
    matrices = [name for name, weight in weights if weight is not None and weight.ndim == 2]
    return [name for name in matrices if name.rpartition(".")[2] not in NOT_ADAPTABLE_MODULES]


def check_document_isolation(
    model: Any, device: torch.device, precision: Precision, window_tokens: int
) -> None:
    """Raise `UserError` if documents that share a window would see each other.

    Args:
        model: The base model, with or without adapters.
        device: Where the model is.
        precision: Floating-point format of the computation.
        window_tokens: Length of a training window.
    """
    model_type = _model_type(model)
    if getattr(body_and_head(model)[0], "_is_stateful", False):
        raise UserError(
            f"models of type {model_type} carry a state from token to token, through which the "
            "documents of a window would see each other",
            "Use another MODEL",
        )
    flash = model.config.get_text_config()._attn_implementation == "flash_attention_2"
    span = _attention_span(model)
    if span and window_tokens > span and not flash:
        raise UserError(
            f"windows of {window_tokens} tokens are longer than the attention span of {span} "
            "tokens of some layers of this model, and the training mask does not limit it",
            f"Use train.sequence_length={span}",
        )
    if _isolation_error(model, device, precision, flash) > MAX_ISOLATION_ERROR:
        raise UserError(
            f"models of type {model_type} let documents in the same window see each other",
            "Use another MODEL",
        )


def _attention_span(model: Any) -> int | None:
    """How many tokens the most limited layer looks back; None: all."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"]
    spans = [getattr(config, SPAN_FIELDS[t], None) for t in layer_types if t in SPAN_FIELDS]
    return min((span for span in spans if span), default=None)


def _isolation_error(model: Any, device: torch.device, precision: Precision, flash: bool) -> float:
    """Relative change of a document's hidden states when another one precedes it in the window."""
    import torch

    body, head = body_and_head(model)
    vocabulary = head.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, 2 * PROBE_TOKENS), generator=generator)
    positions = torch.arange(PROBE_TOKENS).repeat(1, 2)
    segments = torch.arange(2).repeat_interleave(PROBE_TOKENS)[None]
    batch = PackedBatch(tokens, tokens, positions, segments).to(device)
    arguments, _ = batch.varlen_inputs() if flash else batch.masked_inputs()
    with eval_mode(model, device, precision):
        packed = body(**arguments, use_cache=False).last_hidden_state[:, PROBE_TOKENS:].float()
        second = batch.inputs[:, PROBE_TOKENS:]
        alone = body(input_ids=second, use_cache=False).last_hidden_state.float()
    return float((packed - alone).norm() / alone.norm())


def _model_type(model: Any) -> str:
    return str(model.config.model_type)
