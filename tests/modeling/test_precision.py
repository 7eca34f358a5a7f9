"""The report names the formats in which weights, layers and loss really are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.modeling.device import autocast, compute_precision
from pipeline.modeling.loading import load_base
from pipeline.modeling.scoring import SlidingWindows, score
from pipeline.report.results import precisions
from tests.dataset.helpers import PREFIX, corpus_of

LENGTHS = [20, 5, 9, 31, 70, 2]


def plain_loop(model: Any, precision: Any) -> tuple[list[float], set[Any], set[Any]]:
    """Losses by a loop over Hugging Face's model; formats that its layers and losses have."""
    import torch

    layers: set[Any] = set()
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda _, __, output: layers.add(output.dtype))
    corpus, losses, formats = corpus_of(LENGTHS), [], set()
    for number in range(len(LENGTHS)):
        ids = torch.tensor([[PREFIX, *corpus.document(number).tolist()]])
        with torch.no_grad(), autocast(torch.device("cpu"), precision):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        losses.append(float(loss))
        formats.add(loss.dtype)
    return losses, layers, formats


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "precision", "compute"),
    [
        ("fp32", "fp32", "fp32"),
        ("fp32", "bf16", "bf16"),
        ("bf16", "fp32", "bf16"),
        ("bf16", "bf16", "bf16"),
        ("int8", "fp32", "fp32"),
        ("int8", "bf16", "bf16"),
    ],
)
def test_formats_are_those_of_a_plain_loop(
    models: Callable[[str], Path], weights: Any, precision: Any, compute: str
) -> None:
    import torch
    import transformers

    cpu, folder = torch.device("cpu"), models("llama")
    assert precisions(weights, precision) == {
        "weights": weights,
        "compute": compute,
        "loss": "fp32",
    }
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32 if weights == "fp32" else torch.bfloat16,
        quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
        if weights == "int8"
        else None,
    )
    if weights == "int8":  # as in training: norms and embeddings in fp32, inputs not quantized
        for parameter in plain.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
        plain.train()
    losses, layers, formats = plain_loop(plain, precision)
    names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    assert {names[each] for each in layers} == {compute}
    assert {names[each] for each in formats} == {"fp32"}

    corpus = corpus_of(LENGTHS)
    texts = [corpus.document(number) for number in range(len(LENGTHS))]
    model = load_base(folder, weights, cpu, attention="sdpa")
    nll, _ = score(model, texts, SlidingWindows(80, 80, PREFIX), cpu, precision)
    assert np.allclose(nll, losses, rtol=1e-6)


def test_weights_in_nf4_compute_in_bf16() -> None:
    assert {compute_precision("nf4", p) for p in ("fp32", "fp16", "bf16")} == {"bf16"}
    assert compute_precision("bf16", "fp16") == compute_precision("int8", "fp16") == "fp16"
