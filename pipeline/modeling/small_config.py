"""A small copy of a model's configuration: two layers, few heads, few words.

The width of a head, rotary and ALiBi parameters, norms, soft caps and factors of the logits stay as
they are. So a random model of the copy computes what the real one computes, in a fraction of a
second.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

WORDS = 256
SPECIAL_IDS = 8
"""Ids below this one may stand for special tokens in a small model."""
HEADS = 4
LAYERS = 2
MAX_LAYERS = 4
INNER_WIDTH = 128
EXPERT_WIDTH = 32

LAYER_FIELD = re.compile(r"(^|_)layers?$|^num_blocks$|^depth$")
HEAD_FIELD = re.compile(r"(^|_)heads?$|^num_query_groups$")
INNER_FIELD = re.compile(r"intermediate_size|ffn_dim|^dim_ff$|^dff$|^d_inner$|^n_inner$|ffn_hidden")
ID_FIELD = re.compile(r"_token_(id|index)$|_token_ids$")


def shrink(config: Any, width: bool = True) -> Any:
    """A copy of a configuration of transformers with fewer layers and words.

    Args:
        config: Left as it is.
        width: Also use fewer heads and narrower feed-forward layers.
    """
    small = copy.deepcopy(config)
    for part in config_parts(small):
        _shrink_layers(part)
        _shrink_vocabulary(part)
        if width:
            _shrink_width(part)
    return small


def config_parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it, such as of a vision tower."""
    from transformers import PreTrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from config_parts(value)


def word_ids(config: Any) -> list[int]:
    """Ids of a small configuration that stand for no special token."""
    special = {
        number
        for part in config_parts(config)
        for name, value in _fields(part)
        if ID_FIELD.search(name)
        for number in (value if isinstance(value, list) else [value])
    }
    words = min(config.get_text_config().vocab_size, WORDS)
    return [number for number in range(SPECIAL_IDS, words) if number not in special]


def _fields(config: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(config).items() if not name.startswith("_")]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count(config: Any, name: str) -> int:
    """A field that holds a number; 0 if it does not."""
    value = getattr(config, name, None)
    return value if _is_count(value) else 0


def _shrink_layers(config: Any) -> None:
    """Keep a layer of each kind, at least two; lists with an entry per layer lose the others."""
    layers = _count(config, "num_hidden_layers")
    if not layers:
        return
    lists = {n: v for n, v in _fields(config) if isinstance(v, list) and len(v) == layers}
    kinds = [v for v in lists.values() if all(isinstance(each, str) for each in v)]
    first: dict[tuple[str, ...], int] = {}
    for number in range(layers):
        first.setdefault(tuple(kind[number] for kind in kinds), number)
    kept = sorted(first.values())[:MAX_LAYERS]
    others = [number for number in range(layers) if number not in kept]
    kept = sorted(kept + others[: max(0, LAYERS - len(kept))])
    for name, value in lists.items():
        setattr(config, name, [value[number] for number in kept])
    for name, value in _fields(config):
        if LAYER_FIELD.search(name) and _is_count(value) and value > len(kept):
            setattr(config, name, 0 if "shared" in name else len(kept))
    if hasattr(config, "attention_types"):  # GPT-Neo's, from which it computes `attention_layers`
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]


def _shrink_vocabulary(config: Any) -> None:
    """Use few words; ids of special tokens that are none of them become small ones."""
    for name, value in _fields(config):
        if "vocab" in name and _is_count(value):
            setattr(config, name, min(value, WORDS))
        elif "jitter" in name:  # noise of routers, which would hide what is compared
            setattr(config, name, 0.0)
        elif ID_FIELD.search(name):
            if isinstance(value, list):
                setattr(config, name, [number % SPECIAL_IDS for number in value])
            elif _is_count(value) and value >= WORDS:
                setattr(config, name, value % SPECIAL_IDS)


def _shrink_width(config: Any) -> None:
    """Use few heads, as wide as they are, and narrow feed-forward layers."""
    width, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    for name, value in _fields(config):
        if INNER_FIELD.search(name) and _is_count(value):
            limit = EXPERT_WIDTH if "moe" in name or "expert" in name else INNER_WIDTH
            setattr(config, name, min(value, limit))
    if not width or heads <= HEADS:
        return
    narrow = width // heads * HEADS
    for name, value in _fields(config):
        if not _is_count(value):
            continue
        if HEAD_FIELD.search(name):
            setattr(config, name, max(1, value * HEADS // heads))
        elif value == width:
            setattr(config, name, narrow)
