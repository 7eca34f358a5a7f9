"""What a model generates after the start of a document, and how much of it is memorized.

Prompts from held-out documents show what the model has become. Prompts from training documents show
what it has memorized (Carlini et al. 2021 call such text extractable). Texts from greedy decoding
and from sampling are measured and searched for spans that occur verbatim in the training data. So
are the real continuations, for comparison: people repeat boilerplate, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from pipeline.dataset.subset import hash_order
from pipeline.dataset.token_cache import TokenizedSplit

LONG_COPY_TOKENS = 50
"""Minimum length of a verbatim span that counts as recited."""
Ids = Sequence[int]
Generate = Callable[[list[list[int]], bool], list[list[int]]]
LongestSpans = Callable[[list[list[int]]], Any]

DEFINITIONS = {
    "distinct": (
        "distinct_n: distinct n-grams of tokens as a share of all n-grams, over all texts of a "
        "kind (Li et al. 2016); higher is more varied; longer texts score lower"
    ),
    "repetition": (
        "share of the 4-grams of tokens that occurred before in the same text, mean over texts "
        "(Welleck et al. 2020)"
    ),
    "copied": (
        "length in tokens of the longest span of a text that occurs verbatim in the training "
        "data; 0 if it is under 13. copied_long: share of texts with a span of "
        f"{LONG_COPY_TOKENS} or more"
    ),
    "recited": (
        "texts from greedy decoding after the start of training documents. recited: share of "
        "texts equal to the document for all of evaluate.new_tokens; agreement: mean number of "
        "tokens before the first that differs"
    ),
}
"""Definitions for reports."""


def cut_prompts(
    corpus: TokenizedSplit, count: int, prompt: int, length: int, full: bool = False
) -> tuple[list[Any], list[Any]]:
    """Prompts from documents, and the real continuations.

    The documents with the lowest text hashes are taken, among those long enough.

    Args:
        corpus: A split.
        count: Number of documents.
        prompt: Tokens of a prompt.
        length: Tokens of a continuation, at most.
        full: Take only documents with a continuation of the full length.
    """
    chosen = hash_order(corpus, prompt + (length if full else 1))[:count].tolist()
    ids = [corpus.document(index)[: prompt + length].tolist() for index in chosen]
    return [text[:prompt] for text in ids], [text[prompt:] for text in ids]


def measure_texts(texts: Sequence[Ids], copied: Sequence[int]) -> dict[str, Any]:
    """Metrics of texts of one kind, as `DEFINITIONS` says.

    Args:
        texts: Token ids of each text.
        copied: Length of the longest span of each text that occurs in the training data, in tokens.
    """
    return {
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "repetition": repetition(texts),
        "copied_longest": max(map(int, copied), default=0),
        "copied_mean": float(np.mean(copied)) if len(copied) else 0.0,
        "copied_long": sum(span >= LONG_COPY_TOKENS for span in copied) / len(copied)
        if len(copied)
        else 0.0,
    }


def agreement(texts: Sequence[Ids], references: Sequence[Ids]) -> dict[str, float]:
    """How far texts agree with their references, token by token, as `DEFINITIONS` says."""
    pairs = list(zip(texts, references, strict=True))
    same = [
        sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(*pair, strict=False)))
        for pair in pairs
    ]
    recited = [n == len(real) for n, (_, real) in zip(same, pairs, strict=True)]
    return {
        "recited": float(np.mean(recited)) if recited else 0.0,
        "agreement": float(np.mean(same)) if same else 0.0,
    }


def distinct(texts: Sequence[Ids], n: int) -> float:
    """Distinct n-grams as a share of all n-grams; 0 if there are none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[Ids], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same text, mean over texts that have any."""
    shares = [1 - len({*grams}) / len(grams) for text in texts if (grams := _grams(text, n))]
    return float(np.mean(shares)) if shares else 0.0


def _grams(text: Ids, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[i:] for i in range(n)), strict=False))


def generate_and_measure(
    held_out: tuple[list[list[int]], list[list[int]]],
    learned: tuple[list[list[int]], list[list[int]]],
    generate: Generate,
    longest_spans: LongestSpans,
) -> tuple[dict[str, list[dict[str, list[int]]]], dict[str, Any]]:
    """Let a model continue prompts, and measure the texts.

    Args:
        held_out: Prompts from held-out documents, and the real continuations.
        learned: The same from training documents.
        generate: Continues prompts; its second argument is whether to sample.
        longest_spans: Length in tokens of the longest span of each text that occurs in the
            training data.

    Returns:
        For each kind of prompt, a row per prompt with the prompt, the reference and the texts as
        token ids; and the metrics of each kind of text.
    """
    prompts, references = held_out
    kinds = {
        "reference": references,
        "greedy": generate(prompts, False) if prompts else [],
        "sampled": generate(prompts, True) if prompts else [],
        "learned": generate(learned[0], False) if learned[0] else [],
    }
    spans = iter(longest_spans([text for texts in kinds.values() for text in texts]))
    metrics = {
        name: measure_texts(texts, [int(next(spans)) for _ in texts])
        for name, texts in kinds.items()
    }
    metrics["learned"] |= agreement(kinds["learned"], learned[1])
    written = {
        "held_out": [
            {"prompt": p, "reference": r, "greedy": g, "sampled": s}
            for p, r, g, s in zip(
                prompts, references, kinds["greedy"], kinds["sampled"], strict=True
            )
        ],
        "learned": [
            {"prompt": p, "reference": r, "greedy": g}
            for p, r, g in zip(*learned, kinds["learned"], strict=True)
        ],
    }
    return written, metrics
