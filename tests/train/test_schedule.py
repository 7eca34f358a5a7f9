"""Learning rates: start, end, and monotony in between."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train.schedule import ScheduleName, learning_rate

KINDS: tuple[ScheduleName, ...] = (
    "cosine",
    "linear",
    "constant",
)  # those that never rise after the warm-up
SHAPES = st.tuples(
    st.integers(1, 400), st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 0.9)
)


def curve(total: int, peak: float, floor: float, warmup: int, kind: ScheduleName) -> list[float]:
    return [learning_rate(step, total, peak, floor, warmup, kind) for step in range(total)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_endpoints(kind: ScheduleName) -> None:
    rates = curve(100, 2e-4, 0.1, 10, kind)
    assert rates[0] == pytest.approx(2e-5), "not zero: the first step learns"
    assert rates[9] == pytest.approx(2e-4)
    assert rates[10] == pytest.approx(2e-4)
    assert rates[99] == pytest.approx(2e-4 if kind == "constant" else 2e-5)
    assert max(rates) == pytest.approx(2e-4)


def test_half_way() -> None:
    assert learning_rate(50, 101, 1.0, 0.0, 0, "cosine") == pytest.approx(0.5)
    assert learning_rate(25, 101, 1.0, 0.0, 0, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert learning_rate(25, 101, 1.0, 0.2, 0, "linear") == pytest.approx(0.8)


def test_a_short_warm_up_and_a_minimum_of_a_tenth() -> None:
    rates = curve(1000, 5e-4, 0.1, 3, "cosine")
    assert rates[2] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(5e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(SHAPES)
def test_it_rises_through_the_warm_up_and_never_after(
    kind: ScheduleName, shape: tuple[int, float, float, float]
) -> None:
    total, peak, floor, share = shape
    warmup = math.ceil(share * total)
    rates = curve(total, peak, floor, warmup, kind)
    tiny = 1e-12 * peak
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b - tiny for a, b in pairwise(rates[warmup:]))
    assert all(0 < value <= peak + tiny for value in rates[:warmup])
    assert all(floor * peak - tiny <= value <= peak + tiny for value in rates[warmup:])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@given(SHAPES, st.integers(0, 1000))
def test_beyond_the_end_it_stays_at_the_floor(
    kind: ScheduleName, shape: tuple[int, float, float, float], beyond: int
) -> None:
    total, peak, floor, share = shape
    warmup = math.ceil(share * (total - 1))
    last = learning_rate(total + beyond, total, peak, floor, warmup, kind)
    assert last == pytest.approx(floor * peak, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 1, 2, 3])
def test_the_shortest_trainings_have_a_rate(kind: ScheduleName, total: int, warmup: int) -> None:
    for value in curve(total, 1.0, 0.1, warmup, kind):
        assert 0.1 <= value <= 1.0


def test_a_cyclic_rate_falls_and_rises_in_equal_lines_and_ends_low() -> None:
    rates = [learning_rate(step, 36, 1.0, 0.2, 6, "cyclic", 3) for step in range(36)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]), "the first rise"
    line = (36 - 1 - 6) / 5
    for number in range(6):
        low = number % 2 == 1
        assert rate_at(6 + number * line) == pytest.approx(0.2 if low else 1.0)
    assert rates[-1] == pytest.approx(0.2)
    slopes = [b > a for a, b in pairwise(rates[6:])]
    assert sum(a != b for a, b in pairwise(slopes)) == 4, "down, up, down, up, down"


def rate_at(place: float) -> float:
    """The cyclic rate between two steps."""
    return learning_rate(place, 36, 1.0, 0.2, 6, "cyclic", 3)  # type: ignore[arg-type]


@given(SHAPES, st.integers(1, 9), st.integers(0, 1000))
def test_a_cyclic_rate_keeps_within_its_bounds_and_once_is_linear(
    shape: tuple[int, float, float, float], cycles: int, beyond: int
) -> None:
    total, peak, floor, share = shape
    warmup = math.ceil(share * (total - 1))
    tiny = 1e-9 * peak
    rates = [
        learning_rate(step, total, peak, floor, warmup, "cyclic", cycles) for step in range(total)
    ]
    assert all(floor * peak - tiny <= value <= peak + tiny for value in rates[warmup:])
    last = learning_rate(total + beyond, total, peak, floor, warmup, "cyclic", cycles)
    assert last == pytest.approx(floor * peak, abs=tiny)
    once = [learning_rate(step, total, peak, floor, warmup, "cyclic", 1) for step in range(total)]
    assert once == pytest.approx(curve(total, peak, floor, warmup, "linear"))
