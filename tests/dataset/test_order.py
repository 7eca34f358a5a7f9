"""The order of samples: a permutation per epoch, a pure function of seed, epoch and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.order import WindowSampler, permutation, step_seed


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_a_shuffle_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    found = permutation(count, seed, epoch)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(count))
    assert (found == permutation(count, seed, epoch)).all()


def test_the_values_are_pinned() -> None:
    """A different shuffle would silently change the order of runs that resume."""
    assert permutation(10, 0, 0).tolist() == [5, 7, 1, 4, 2, 8, 0, 6, 3, 9]
    assert permutation(10, 0, 1).tolist() == [8, 6, 7, 9, 0, 5, 1, 3, 2, 4]
    assert permutation(10, 1234, 7).tolist() == [4, 2, 5, 1, 0, 9, 3, 7, 8, 6]


def test_epochs_and_seeds_differ() -> None:
    seen = {tuple(permutation(100, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(seen) == 400
    assert tuple(range(100)) not in seen


def test_every_position_is_equally_likely() -> None:
    rounds, count = 4000, 8
    table = np.zeros((count, count))
    for epoch in range(rounds):
        table[np.arange(count), permutation(count, 3, epoch)] += 1
    expected = rounds / count
    statistic = ((table - expected) ** 2 / expected).sum()
    freedom = (count - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom), "chi-squared"


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 5), st.integers(1, 12))
def test_every_epoch_sees_every_window_once_wherever_batches_end(
    count: int, batch: int, seed: int, steps: int
) -> None:
    sampler = WindowSampler(count, batch, seed)
    sequence = [window for step in range(steps) for window in sampler.windows(step)]
    assert len(sequence) == steps * batch
    for start in range(0, len(sequence), count):
        epoch = sequence[start : start + count]
        wanted = permutation(count, seed, start // count).tolist()
        assert epoch == wanted[: len(epoch)]


def test_an_epoch_may_end_within_a_batch() -> None:
    sampler = WindowSampler(count=5, batch_size=3, seed=0)
    first, second = permutation(5, 0, 0).tolist(), permutation(5, 0, 1).tolist()
    assert sampler.windows(1) == [*first[3:], second[0]]
    assert WindowSampler(count=2, batch_size=5, seed=0).windows(0) == [
        *permutation(2, 0, 0), *permutation(2, 0, 1), permutation(2, 0, 2)[0],
    ]  # fmt: skip


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.lists(st.integers(0, 50), max_size=15))
def test_earlier_calls_do_not_matter(count: int, batch: int, steps: list[int]) -> None:
    sampler = WindowSampler(count, batch, 1)
    for step in steps:
        assert sampler.windows(step) == WindowSampler(count, batch, 1).windows(step)


def test_a_late_step_is_as_cheap_as_an_early_one() -> None:
    sampler = WindowSampler(1000, 64, 0)
    late = sampler.windows(10**12)
    epoch, position = divmod(64 * 10**12, 1000)
    assert late[0] == permutation(1000, 0, epoch)[position]


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 10**6))
def test_a_step_shuffles_only_its_own_epochs(count: int, batch: int, step: int) -> None:
    """So resuming at step 10^6 costs as much as at step 10."""
    with pytest.MonkeyPatch.context() as patch:
        epochs: list[int] = []
        patch.setattr(
            "pipeline.dataset.order.permutation",
            lambda n, s, e: epochs.append(e) or permutation(n, s, e),
        )
        WindowSampler(count, batch, 0).windows(step)
    first, last = step * batch // count, ((step + 1) * batch - 1) // count
    assert epochs == list(range(first, last + 1))


def test_every_step_and_rank_has_its_own_seed() -> None:
    seen = {
        step_seed(seed, step, rank) for seed in range(10) for step in range(50) for rank in range(8)
    }
    assert len(seen) == 4000
    assert step_seed(0, 0, 0) == 2558736989570252433, (
        "pinned: it decides the dropout of resumed runs"
    )
    assert 0 <= step_seed(2**63 - 1, 10**9, 1023) < 2**64


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1])
def test_no_seed_overflows(seed: int) -> None:
    with np.errstate(over="raise"):
        permutation(5, seed, 3)
