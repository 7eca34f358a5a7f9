"""What is measured of written texts: variety, repetition, and what is known by heart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.memorization import (
    agreement,
    cut_prompts,
    distinct,
    generate_and_measure,
    measure_texts,
    repetition,
)


def corpus(*documents: list[int]) -> TokenizedSplit:
    """Documents whose hashes are in reverse order."""
    offsets = np.cumsum([0, *map(len, documents)])
    hashes = [(len(documents) - i).to_bytes(16, "big") for i in range(len(documents))]
    ids = np.array([token for document in documents for token in document], dtype=np.uint16)
    sizes = np.ones(len(documents), dtype=np.int64)
    return TokenizedSplit(ids, offsets, sizes, np.array(hashes, dtype="V16"), "")


def test_distinct_counts_n_grams_over_all_texts() -> None:
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct(texts, 1) == pytest.approx(3 / 7)
    assert distinct(texts, 2) == pytest.approx(3 / 5), "12 21 12, 12 23"
    assert distinct(texts, 4) == 1
    assert distinct([[1, 2]], 3) == 0, "there is none"


def test_repetition_is_a_mean_over_texts_long_enough() -> None:
    looping, varied = [7, 8] * 4, list(range(8))
    assert repetition([looping]) == pytest.approx(1 - 2 / 5)
    assert repetition([looping, varied]) == pytest.approx(0.3)
    assert repetition([looping, [1, 2, 3]]) == pytest.approx(1 - 2 / 5), "the other has no 4-gram"


def test_reciting_is_going_on_to_the_end() -> None:
    real = [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6], [7, 8]]
    written = [[1, 2, 3, 4], [1, 2, 9, 4], [5, 6, 7, 8], []]
    found = agreement(written, real)
    assert found["recited"] == 0.5, (
        "one goes on beyond the end; a text that is empty recites nothing"
    )
    assert found["agreement"] == pytest.approx((4 + 2 + 2 + 0) / 4)
    assert agreement([], []) == {"recited": 0.0, "agreement": 0.0}


def test_copied_spans_are_counted_from_fifty_tokens_on() -> None:
    found = measure_texts([[1]] * 4, [0, 13, 50, 49])
    assert found["copied_longest"] == 50
    assert found["copied_mean"] == 28
    assert found["copied_long"] == 0.25
    assert measure_texts([], [])["copied_long"] == 0


def test_openings_are_of_the_lowest_hashes_that_are_long_enough() -> None:
    given = corpus([1] * 9, [2] * 3, [3] * 5, [4] * 4)
    prompts, rest = cut_prompts(given, 2, 3, 4)
    assert prompts == [[4] * 3, [3] * 3], "the second has nothing to go on with"
    assert rest == [[4], [3, 3]]
    prompts, rest = cut_prompts(given, 2, 3, 2, full=True)
    assert (prompts, rest) == ([[3] * 3, [1] * 3], [[3, 3], [1, 1]])


def test_what_is_written_is_searched_and_told_apart() -> None:
    searched: list[Any] = []

    def write(prompts: list[list[int]], sampled: bool) -> list[list[int]]:
        return [[prompt[0] + (100 if sampled else 10)] * 3 for prompt in prompts]

    def copies(texts: list[list[int]]) -> Any:
        searched.extend(texts)
        return [len(texts) - n for n in range(len(texts))]

    held_out = [[1, 1], [2, 2]], [[3, 4, 5], [6]]
    texts, figures = generate_and_measure(held_out, ([[8, 8]], [[18, 18, 18]]), write, copies)
    assert texts["held_out"][1] == {
        "prompt": [2, 2],
        "reference": [6],
        "greedy": [12] * 3,
        "sampled": [102] * 3,
    }
    assert texts["learned"] == [{"prompt": [8, 8], "reference": [18] * 3, "greedy": [18] * 3}]
    assert searched == [[3, 4, 5], [6], [11] * 3, [12] * 3, [101] * 3, [102] * 3, [18] * 3]
    longest = {kind: figures[kind]["copied_longest"] for kind in figures}
    assert longest == {"reference": 7, "greedy": 5, "sampled": 3, "learned": 1}
    assert figures["learned"]["recited"] == 1
    assert figures["learned"]["agreement"] == 3


def test_without_prompts_nothing_is_written() -> None:
    def refuse(prompts: list[list[int]], sampled: bool) -> list[list[int]]:
        raise AssertionError("there is nothing to go on from")

    texts, figures = generate_and_measure(
        ([], []), ([], []), refuse, lambda texts: [0] * len(texts)
    )
    assert texts == {"held_out": [], "learned": []}
    assert all(found["texts"] == 0 for found in figures.values())
