"""Refuse models whose forward pass we do not reproduce; nothing else would report them.

Training and scoring compute the hidden states of a model's body, then apply its output head. Some
model types scale or cap the logits, or transform the states first; without that, perplexities
would be those of another model. In training only a mask keeps the documents of a window apart, and
a layer with a limited attention span would look back farther than it should. `family_check` decides
by a small random model; the checks here see the weights, the precision and the length of the
windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.registry import NOT_ADAPTABLE_MODULES
from pipeline.modeling.eval_mode import eval_mode
from pipeline.modeling.loading import attention_of, body_and_head
from pipeline.modeling.packed_batch import one_window

if TYPE_CHECKING:
    import torch

    from pipeline.modeling.device import Precision

ANOTHER_MODEL = "Use another MODEL; docs/models.md lists the supported families"
PROBE_TOKENS = 16
MAX_LOGIT_ERROR = 1e-3  # relative to the largest logit
MAX_ISOLATION_ERROR = 0.1  # relative norm; int8 and bf16 rounding alone makes a few hundredths
SPAN_FIELDS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer type in a model's configuration → the field that limits how far it looks back."""


def check_head(model: Any, device: torch.device, precision: Precision) -> None:
    """Raise `UserError` if a model's logits are not its output head applied to its states."""
    import torch

    with eval_mode(model, device, precision):
        check_logits(model, torch.arange(PROBE_TOKENS, device=device)[None])


def check_logits(model: Any, ids: torch.Tensor) -> None:
    """As `check_head`, for a model in evaluation mode and token ids, (rows, tokens)."""
    import torch

    body, head = body_and_head(model)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.float()
        states = body(input_ids=ids, use_cache=False).last_hidden_state
        fits = head is not None and head.weight.shape == (expected.shape[-1], states.shape[-1])
        error = (head(states).float() - expected).abs().max() if fits else float("inf")
    if error > MAX_LOGIT_ERROR * expected.abs().max():
        raise UserError(
            f"models of type {_model_type(model)} do not compute their logits by the output head "
            "alone, which is not supported",
            ANOTHER_MODEL,
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
    attention = attention_of(model)
    if attention == "eager":
        return  # a row for each document
    span = _attention_span(model)
    if span and window_tokens > span and attention != "flash_attention_2":
        raise UserError(
            f"windows of {window_tokens} tokens are longer than the attention span of {span} "
            "tokens of some layers of this model, and the training mask does not limit it",
            f"Use train.sequence_length={span}",
        )
    if _isolation_error(model, device, precision, attention) > MAX_ISOLATION_ERROR:
        raise UserError(
            f"models of type {_model_type(model)} let documents in the same window see each other",
            ANOTHER_MODEL,
        )


def _attention_span(model: Any) -> int | None:
    """How many tokens the most limited layer looks back; None: all."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"]
    spans = [getattr(config, SPAN_FIELDS[t], None) for t in layer_types if t in SPAN_FIELDS]
    return min((span for span in spans if span), default=None)


def _isolation_error(
    model: Any, device: torch.device, precision: Precision, attention: str
) -> float:
    """Relative change of a document's hidden states when another one precedes it in the window."""
    import torch

    body, head = body_and_head(model)
    vocabulary = head.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(vocabulary, (2, PROBE_TOKENS), generator=generator)
    ((arguments, _),) = one_window(list(documents)).to(device).inputs_for(attention)
    with eval_mode(model, device, precision):
        packed = body(**arguments, use_cache=False).last_hidden_state[:, PROBE_TOKENS:].float()
        second = documents[1:].to(device)
        alone = body(input_ids=second, use_cache=False).last_hidden_state.float()
    return float((packed - alone).norm() / alone.norm())


def _model_type(model: Any) -> str:
    return str(model.config.model_type)
