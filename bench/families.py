"""Which model families can be trained and scored: the check of `download.model`, for all of them.

    python -m bench.families             # writes the table of docs/models.md; three minutes
    python -m bench.families bloom phi   # prints the rows of some

Each causal class of the installed transformers is checked with its default configuration, shrunk
to a small random model. A real model is checked with its own configuration when it is prepared, so
its outcome may differ: where a default leaves out what all real models set, `SETTINGS` adds it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from bench import table

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
DECODER = {"is_decoder": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "xmod": {"default_language": "en_XX"},
}
HEAD = "| family | class | outcome |\n|---|---|---|"
OUTCOMES = {
    "default": "trained and scored with our attention",
    "eager": "trained and scored with eager attention",
}
KINDS = ("not checked", "refused", "with our attention", "with eager attention")
"""What an outcome contains; the first that fits counts."""


def check(name: str) -> tuple[str, str]:
    """The class and the outcome of a family."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    from pipeline.core.errors import UserError
    from pipeline.modeling.family_check import check_config

    config_class = CONFIG_MAPPING[name]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__name__
    try:
        config = config_class(**SETTINGS.get(name, {}))
        if getattr(config, "is_decoder", None) is False:
            config = config_class(**SETTINGS.get(name, {}), **DECODER)
    except Exception as error:  # a configuration's code may raise anything
        return model_class, f"not checked: its default configuration is refused: {_line(error)}"
    try:
        return model_class, OUTCOMES[check_config(config)]
    except UserError as error:
        reason = str(error).partition(". Use another MODEL")[0]
        reason = reason.removeprefix(f"models of type {config.model_type} ")
        return model_class, f"refused: they {reason}".replace(
            "refused: they cannot be checked", "not checked, so refused"
        )


def count_as(outcome: str) -> str:
    """The kind of an outcome; "" if it is none."""
    return next((kind for kind in KINDS if kind in outcome), "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].replace("|", "/")


def rows(names: list[str]) -> str:
    """The table of these families, and how many have each outcome."""
    found, counts = [], dict.fromkeys(KINDS, 0)
    for name in names:
        started = time.monotonic()
        model_class, outcome = check(name)
        print(f"{name}: {outcome} ({time.monotonic() - started:.1f} s)", file=sys.stderr)
        found.append(f"| `{name}` | {model_class} | {outcome} |")
        counts[count_as(outcome)] += 1
    import torch
    import transformers

    parts = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    total = (
        f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}: "
        f"{len(names)} families; {parts}."
    )
    return "\n".join([total, "", HEAD, *found])


def main(names: list[str]) -> None:
    """Write the table into the page, or print that of some families."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if unknown := set(names) - set(known):
        sys.exit(f"no causal model family: {', '.join(sorted(unknown))}")
    if names:
        print(rows(names))
        return
    found = rows(known)
    PAGE.write_text(table.replace(PAGE.read_text(), "families", found))


if __name__ == "__main__":
    main(sys.argv[1:])
