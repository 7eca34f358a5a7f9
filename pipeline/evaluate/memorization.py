"""What a model writes after openings of documents, and how much of it is learned by heart.

Openings of held-out documents show what it has become; openings of documents it was trained on show
what it can recite (Carlini et al. 2021 call such text extractable). Greedy and drawn texts are
measured, and searched for spans that stand word for word in the training text. So is the real
continuation: boilerplate is repeated by people, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from pipeline.dataset.subset import hash_order
from pipeline.dataset.token_cache import TokenizedSplit

LONG = 50
"""Tokens from which on a span that stands in the training text counts as recited."""
Ids = Sequence[int]
Write = Callable[[list[list[int]], bool], list[list[int]]]
Copies = Callable[[list[list[int]]], Any]

DEFINITIONS = {
    "distinct": (
        "distinct_n: different n-grams of tokens as a share of all of them, over all texts of a "
        "kind (Li et al. 2016); higher is more varied, and longer texts have less"
    ),
    "repetition": (
        "share of the 4-grams of tokens of a text that stood in it before, mean over texts "
        "(Welleck et al. 2020)"
    ),
    "copied": (
        "longest span of a text, in tokens, that stands word for word in the training text; 0 "
        f"where it is under 13. copied_long: share of the texts with one of {LONG} or more"
    ),
    "recited": (
        "greedy texts after openings of training documents: recited is the share that goes on "
        "exactly as the document does, for all of evaluate.new_tokens; agreement is the mean "
        "number of tokens before the first that differs"
    ),
}
"""The measures in words, as they go into reports."""


def openings(
    corpus: TokenizedSplit, most: int, prompt: int, length: int, whole: bool = False
) -> tuple[list[Any], list[Any]]:
    """Openings of the documents of lowest hash that are longer, and how they go on.

    Args:
        corpus: Of a split.
        most: Documents.
        prompt: Tokens of an opening.
        length: Tokens of what follows, at most.
        whole: Only documents in which so many do follow.
    """
    chosen = hash_order(corpus, prompt + (length if whole else 1))[:most].tolist()
    ids = [corpus.document(index)[: prompt + length].tolist() for index in chosen]
    return [text[:prompt] for text in ids], [text[prompt:] for text in ids]


def measure(texts: Sequence[Ids], copied: Sequence[int]) -> dict[str, Any]:
    """Figures of texts of a kind, as `DEFINITIONS` says.

    Args:
        texts: Token ids of each.
        copied: Longest span of each that stands in the training text.
    """
    return {
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "repetition": repetition(texts),
        "copied_longest": max(map(int, copied), default=0),
        "copied_mean": float(np.mean(copied)) if len(copied) else 0.0,
        "copied_long": sum(span >= LONG for span in copied) / len(copied) if len(copied) else 0.0,
    }


def agreement(texts: Sequence[Ids], references: Sequence[Ids]) -> dict[str, float]:
    """How far texts are their references, token by token, as `DEFINITIONS` says."""
    pairs = list(zip(texts, references, strict=True))
    same = [
        sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(*pair, strict=False)))
        for pair in pairs
    ]
    whole = [n == len(real) for n, (_, real) in zip(same, pairs, strict=True)]
    return {
        "recited": float(np.mean(whole)) if whole else 0.0,
        "agreement": float(np.mean(same)) if same else 0.0,
    }


def distinct(texts: Sequence[Ids], n: int) -> float:
    """Different n-grams as a share of all of them; 0 where there is none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[Ids], n: int = 4) -> float:
    """Share of the n-grams of a text that stood in it before, mean over texts that have any."""
    shares = [1 - len({*grams}) / len(grams) for text in texts if (grams := _grams(text, n))]
    return float(np.mean(shares)) if shares else 0.0


def _grams(text: Ids, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[i:] for i in range(n)), strict=False))


def compose(
    held_out: tuple[list[list[int]], list[list[int]]],
    learned: tuple[list[list[int]], list[list[int]]],
    write: Write,
    copies: Copies,
) -> tuple[dict[str, list[dict[str, list[int]]]], dict[str, Any]]:
    """Have a model go on from openings.

    Args:
        held_out: Openings of held-out documents, and how they go on.
        learned: The same of training documents.
        write: Goes on from openings, greedily or, if told so, by lot.
        copies: The longest span of each text that stands in the training text, in tokens.

    Returns:
        By kind of opening, prompt, reference and texts of each, as token ids; and the figures of
        each kind of text.
    """
    prompts, references = held_out
    kinds = {
        "reference": references,
        "greedy": write(prompts, False) if prompts else [],
        "sampled": write(prompts, True) if prompts else [],
        "learned": write(learned[0], False) if learned[0] else [],
    }
    spans = iter(copies([text for texts in kinds.values() for text in texts]))
    figures = {
        name: measure(texts, [int(next(spans)) for _ in texts]) for name, texts in kinds.items()
    }
    figures["learned"] |= agreement(kinds["learned"], learned[1])
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
    return written, figures
