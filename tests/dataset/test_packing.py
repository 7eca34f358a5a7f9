"""Packing loses no token, leaks nothing across documents, and adds almost no padding."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.packing import Packing, make_batch, pack
from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.modeling.packed_batch import IGNORE_INDEX, PackedBatch
from tests.dataset.helpers import END, PREFIX, corpus_of, offsets_of, sequence
from tests.helpers.examples import examples
from tests.helpers.tiny import FAMILIES

LENGTHS = st.lists(st.integers(0, 60), max_size=60)


def pieces(packing: Packing) -> list[tuple[int, int, int]]:
    return [tuple(piece) for w in range(len(packing)) for piece in packing.pieces_of(w).tolist()]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_every_pair_of_every_document_is_in_one_window_once(
    lengths: list[int], length: int
) -> None:
    packing = pack(offsets_of(lengths), length)
    found = sorted(
        (document, pair)
        for document, first, count in pieces(packing)
        for pair in range(first, first + count)
    )
    assert found == [(d, pair) for d, n in enumerate(lengths) for pair in range(n + 1)]
    assert packing.pairs == len(found)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_no_window_overflows_or_is_empty_and_what_fits_is_not_cut(
    lengths: list[int], length: int
) -> None:
    packing = pack(offsets_of(lengths), length)
    for window in range(len(packing)):
        assert 0 < packing.pieces_of(window)[:, 2].sum() <= length
    parts = pieces(packing)
    for document, count in enumerate(lengths):
        mine = sorted(first for d, first, _ in parts if d == document)
        assert len(mine) == -(-(count + 1) // length), "no more cuts than needed"
        assert mine == list(range(0, count + 1, length))


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_best_fit_equals_a_plain_search(lengths: list[int], length: int) -> None:
    """Largest first, each into the fullest window that has room."""
    packing = pack(offsets_of(lengths), length)
    sizes = sorted((count for _, _, count in pieces(packing)), reverse=True)
    rooms: list[int] = []
    for size in sizes:
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(length - size)
    filled = [int(packing.pieces_of(window)[:, 2].sum()) for window in range(len(packing))]
    assert sorted(filled) == sorted(length - room for room in rooms)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40), st.sampled_from(["best-fit", "pad"]))
def test_packing_is_deterministic(lengths: list[int], length: int, method: Any) -> None:
    one, other = (pack(offsets_of(lengths), length, method) for _ in range(2))
    assert one.pieces.tobytes() == other.pieces.tobytes()
    assert one.window_offsets.tobytes() == other.window_offsets.tobytes()


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_padding_gives_every_document_a_window_and_truncates_it(
    lengths: list[int], length: int
) -> None:
    packing = pack(offsets_of(lengths), length, "pad")
    assert pieces(packing) == [(d, 0, min(n + 1, length)) for d, n in enumerate(lengths)]
    assert len(packing) == len(lengths)


@pytest.mark.parametrize(("mean", "spread"), [(6.0, 1.0), (7.5, 0.8), (5.0, 1.5)])
def test_windows_are_nearly_full_on_realistic_lengths(mean: float, spread: float) -> None:
    lengths = np.random.default_rng(1).lognormal(mean, spread, 20_000).astype(np.int64)
    packing = pack(offsets_of(lengths), 1024)
    fill = packing.pairs / (len(packing) * 1024)
    assert fill >= 0.95, fill
    assert packing.pairs == (lengths + 1).sum()


@pytest.mark.slow
def test_many_documents_are_packed_quickly(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = np.random.default_rng(2).lognormal(6.5, 1.0, 200_000).astype(np.int64)
    started = time.perf_counter()
    packing = pack(offsets_of(lengths), 1024)
    with capsys.disabled():
        print(
            f"\n200,000 documents into {len(packing):,} windows in "
            f"{time.perf_counter() - started:.2f} s, "
            f"{100 * packing.pairs / (len(packing) * 1024):.1f} % full"
        )
    assert packing.pairs == (lengths + 1).sum()


def plainly(corpus: TokenizedSplit, packing: Packing, windows: list[int]) -> list[list[list[int]]]:
    """Inputs, targets, positions and segments, one position at a time."""
    found: list[list[list[int]]] = [[], [], [], []]
    for window in windows:
        rows: list[list[int]] = [[], [], [], []]
        for number, (document, first, count) in enumerate(packing.pieces_of(window).tolist()):
            tokens = sequence(corpus, document)
            for position in range(count):
                pair = tokens[first + position : first + position + 2]
                for row, value in zip(rows, [*pair, position, number], strict=True):
                    row.append(value)
        for row, value in zip(rows, [END, IGNORE_INDEX, 0, -1], strict=True):
            row += [value] * (packing.length - len(row))
        for table, row in zip(found, rows, strict=True):
            table.append(row)
    return found


def tables(batch: PackedBatch) -> list[list[list[int]]]:
    return [t.tolist() for t in (batch.inputs, batch.targets, batch.positions, batch.segments)]


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(60))
@given(LENGTHS.filter(bool), st.integers(1, 40), st.sampled_from(["best-fit", "pad"]), st.data())
def test_a_batch_matches_its_packing(
    lengths: list[int], length: int, method: Any, data: st.DataObject
) -> None:
    corpus = corpus_of(lengths)
    packing = pack(corpus.offsets, length, method)
    windows = data.draw(st.lists(st.integers(0, len(packing) - 1), min_size=1, max_size=5))
    batch = make_batch(corpus, packing, windows, PREFIX, END)
    assert tables(batch) == plainly(corpus, packing, windows)
    import torch

    assert {t.dtype for t in (batch.inputs, batch.targets, batch.positions, batch.segments)} == {
        torch.int64
    }


def test_a_long_document_is_cut_without_losing_a_pair() -> None:
    corpus = corpus_of([7])
    packing = pack(corpus.offsets, 3)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    tokens = sequence(corpus, 0)
    pairs = [
        (a, b)
        for row, wanted in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
        for a, b in zip(row, wanted, strict=True)
        if b != IGNORE_INDEX
    ]
    assert sorted(pairs) == sorted(pairwise(tokens))


def test_an_end_token_within_a_document_is_a_token_like_any_other() -> None:
    """Masks depend on positions: a text may contain the end token's id, or consist of it."""
    corpus = corpus_of([4, 4])
    corpus.ids[:] = END
    batch = make_batch(corpus, pack(corpus.offsets, 10), [0], PREFIX, END)
    assert batch.targets.tolist() == [[END] * 10]
    assert batch.segments.tolist() == [[0] * 5 + [1] * 5]


def test_a_token_attends_to_its_own_segment_and_the_past() -> None:
    import torch

    corpus = corpus_of([2, 3, 8, 1])
    packing = pack(corpus.offsets, 10)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    mask = batch.attention_mask(torch.float32)
    assert mask.shape == (len(packing), 1, 10, 10)
    assert mask.dtype == torch.float32, "eager attention reads a boolean mask the wrong way round"
    assert torch.isfinite(mask).all(), "a row of -inf would become NaN"
    for window in range(len(packing)):
        segments = batch.segments[window].tolist()
        for query in range(10):
            for key in range(10):
                sees = segments[query] == segments[key] and key <= query
                assert (mask[window, 0, query, key] == 0) == sees
                assert sees or mask[window, 0, query, key] < -1e30


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["evaluation", "training"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_document_gives_the_logits_it_gives_alone(
    models: Callable[[str], Path], family: str, mode: str
) -> None:
    """Compared with Hugging Face's own model; in training, attention is computed by document."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.modeling.loading import body_and_head, load_base

    model = load_base(models(family), "fp32", torch.device("cpu")).train(mode == "training")
    plain = AutoModelForCausalLM.from_pretrained(models(family), dtype=torch.float32)
    for each in (model, plain.eval()):
        with torch.no_grad():  # larger weights make a leak visible
            for parameter in each.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)
    corpus = corpus_of([20, 5, 9, 0, 31, 70, 1])
    packing = pack(corpus.offsets, 40)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    arguments, _ = batch.masked_inputs()
    body, head = body_and_head(model)
    with torch.no_grad():
        together = head(body(**arguments, use_cache=False).last_hidden_state)
    assert torch.isfinite(together).all(), "including padding"
    compared, shared = 0, 0
    for window in range(len(packing)):
        position = 0
        for document, first, count in packing.pieces_of(window).tolist():
            tokens = sequence(corpus, document)[first : first + count]
            with torch.no_grad():
                alone = plain(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            difference = (together[window, position : position + count] - alone).abs().max()
            assert difference < 1e-4, f"document {document} of window {window}"
            assert alone.std() > 0.1, "the logits vary, so the check is sharp"
            position += count
            compared += count
            shared += position > count
    assert compared == packing.pairs
    assert shared >= 3, "documents must share windows"
