"""Decide whether models of a family can be trained and scored, before anything is tokenized.

A random model of two layers and the same configuration class takes a second, and needs none of the
weights. What its eager attention computes for one document at a time, in fp32, is the reference.
Training gives a model several documents at once, and scoring gives it padded rows. Both have to
give the same hidden states: with our attention, or else with eager attention. Many model classes
ignore the attention that they are loaded with, and some then attend to later tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.modeling import cpu_attention
from pipeline.modeling.attention import AttentionSupport
from pipeline.modeling.compatibility import ANOTHER_MODEL, check_logits
from pipeline.modeling.loading import body_and_head, set_dropout, silence_libraries
from pipeline.modeling.packed_batch import one_window
from pipeline.modeling.small_config import shrink, word_ids

if TYPE_CHECKING:
    import torch

DOCUMENT_TOKENS = (29, 19)
"""Lengths in rows of one forward pass, see `PackedBatch.row_inputs`."""
CHANGED_TOKENS = 5
MAX_PARAMETERS = 120_000_000
MAX_ERROR = 1e-4
"""Relative norm of a difference. Rounding makes 1e-6, one visible token more makes 1e-2."""
OUR_ATTENTION = (cpu_attention.IMPLEMENTATION, "sdpa")


@dataclass(frozen=True)
class _Reference:
    """A random model with eager attention, and what it computes for each document.

    `documents`: token ids, (tokens,). `states`: hidden states, (tokens, width).
    """

    config: Any
    model: Any
    documents: Sequence[torch.Tensor]
    states: Sequence[torch.Tensor]


def check_family(folder: Path) -> AttentionSupport:
    """Find the attention that a base model can be trained and scored with.

    Args:
        folder: Contains the model's configuration; weights are not read.

    Raises:
        UserError: The model cannot be trained and scored, with the reason.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return check_config(config)


def check_config(config: Any) -> AttentionSupport:
    """As `check_family`, for a configuration of transformers."""
    import torch

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _check_state(config)
        reference = _make_reference(config)
        _check_causality(reference)
        check_logits(reference.model, reference.documents[0][None])
        if all(_agrees(reference, attention) for attention in OUR_ATTENTION):
            return "default"
        if _agrees(reference, "eager"):
            return "eager"
    raise UserError(
        f"models of type {config.model_type} compute other hidden states for several documents at "
        "once than for each alone, with our attention and with their own",
        ANOTHER_MODEL,
    )


def _check_state(config: Any) -> None:
    """Raise `UserError` if the class carries a state; such models are not built."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(model_class, "_is_stateful", False):
        raise UserError(
            f"models of type {config.model_type} carry a state from token to token, which is not "
            "supported",
            ANOTHER_MODEL,
        )


def _make_reference(config: Any) -> _Reference:
    """Build the smallest random model that computes anything.

    Raises:
        UserError: There is none.
    """
    import torch

    problem = ""
    for width in (True, False):
        try:
            small = shrink(config, width)
            set_dropout(small, 0.0)
            with torch.device("meta"):
                parameters = _build(small, "eager").num_parameters()
            if parameters > MAX_PARAMETERS:
                raise ValueError(f"a small one has {parameters:,} parameters")
            model = _build(small, "eager")
            _fill_zero_matrices(model)
            words = torch.tensor(word_ids(small))
            documents = [words[torch.randint(len(words), (n,))] for n in DOCUMENT_TOKENS]
            states = [_states(model, input_ids=document[None])[0] for document in documents]
            model(input_ids=documents[0][None], use_cache=False)  # with its output head
            return _Reference(small, model, documents, states)
        except Exception as error:  # a model's code may raise anything
            sentence = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            problem = problem or f"{type(error).__name__}: {sentence[:200]}"
    raise UserError(
        f"models of type {config.model_type} cannot be checked: {problem}",
        ANOTHER_MODEL,
    )


def _build(config: Any, attention: str) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False
    ).eval()


def _fill_zero_matrices(model: Any) -> None:
    """Some families begin with layers that do nothing, in which no error would show."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)


def _states(model: Any, **arguments: Any) -> torch.Tensor:
    """Last hidden states, (rows, tokens, width)."""
    import torch

    with torch.no_grad():
        states: torch.Tensor = body_and_head(model)[0](
            **arguments, use_cache=False
        ).last_hidden_state
    return states


def _check_causality(reference: _Reference) -> None:
    """Raise `UserError` if a later token changes the state of an earlier one."""
    document = reference.documents[0].clone()
    before = len(document) - CHANGED_TOKENS
    document[before:] = document[:CHANGED_TOKENS]
    states = _states(reference.model, input_ids=document[None])[0]
    if not _equal(states[:before], reference.states[0][:before]):
        raise UserError(
            f"models of type {reference.config.model_type} let tokens attend to later ones, so "
            "their loss on the next token means nothing",
            ANOTHER_MODEL,
        )


def _agrees(reference: _Reference, attention: str) -> bool:
    """Whether the same model with another attention has the states of the reference.

    Documents are padded as in scoring, and packed as in training.
    """
    from torch.nn.utils.rnn import pad_sequence

    padded = pad_sequence(list(reference.documents), batch_first=True)
    ((arguments, _),) = one_window(reference.documents).inputs_for(attention)
    lengths = [len(document) for document in reference.documents]
    cpu_attention.register()
    try:
        model = _build(reference.config, attention)
        model.load_state_dict(reference.model.state_dict())
        rows = _states(model, input_ids=padded)
        packed = _states(model.train(), **arguments)
    except Exception:  # a model's code may raise anything
        return False
    # packed: one window, or a row for each document
    pieces = packed[0].split(lengths) if len(packed) == 1 else _unpad(packed, lengths)
    return all(map(_equal, [*_unpad(rows, lengths), *pieces], [*reference.states] * 2))


def _unpad(rows: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= MAX_ERROR * other.norm())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: what it warns of concerns the small model."""
    from transformers.utils import logging

    silence_libraries()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
