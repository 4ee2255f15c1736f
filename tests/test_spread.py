"""Intervals over victims, and differences of paired ones."""

import math

import numpy as np
import pytest

from engine import spread


def test_the_interval_of_three_is_student_s() -> None:
    """The quantile of two degrees of freedom has a closed form: a·√(2 / (1 − a²)) with a = 2p − 1."""
    low, high = spread.interval(spread.summary([1.0, 2.0, 3.0])) or (math.nan, math.nan)
    a = 2 * 0.975 - 1
    t = a * math.sqrt(2 / (1 - a * a))
    assert (low, high) == pytest.approx((2 - t / math.sqrt(3), 2 + t / math.sqrt(3)), rel=1e-12)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Of 4000 samples of three; a false alarm at five standard deviations is one in two million."""
    draws = np.random.default_rng(0).normal(0.3, 0.1, (4000, 3))
    limits = [spread.interval(spread.summary(values)) or (math.nan, math.nan) for values in draws.tolist()]
    covered = np.mean([low <= 0.3 <= high for low, high in limits])
    assert abs(covered - spread.LEVEL) < 5 * math.sqrt(0.95 * 0.05 / 4000)


def test_differences_are_of_paired_victims() -> None:
    one, other = spread.summary([0.5, 0.7, 0.6]), spread.summary([0.1, 0.3, 0.2])
    found = spread.difference(one, other)
    assert found is not None
    assert found["seeds"] == pytest.approx([0.4, 0.4, 0.4])
    assert found["sd"] == pytest.approx(0, abs=1e-12)  # though each arm by itself has a spread
    assert spread.is_above_zero(found)
    assert spread.percent(found) == "40 to 40"


def test_victims_that_only_one_of_two_arms_has_are_left_out() -> None:
    """As while a run goes on, or where a clean victim certified nothing."""
    poisoned = spread.summary([0.5, 0.9]) | {"victims": [0, 2]}
    noise = spread.summary([0.2, 0.3]) | {"victims": [1, 2]}
    found = spread.difference(poisoned, noise)
    assert found is not None
    assert found["seeds"] == pytest.approx([0.6])
    assert spread.difference(poisoned, spread.summary([0.1, 0.2]))["seeds"] == pytest.approx([0.4])  # 0, 1
    assert spread.difference(poisoned, spread.summary([0.1]) | {"victims": [1]}) is None


def test_what_is_not_known_is_not_said() -> None:
    one = spread.summary([0.5])
    assert spread.interval(one) is None
    assert not spread.is_above_zero(one)
    assert spread.percent(one) == spread.percent(None) == "–"
    assert spread.difference(one, None) is None
    empty = {"mean": None, "sd": None, "seeds": []}
    assert spread.difference(empty, empty) is None
    assert spread.interval(empty) is None


def test_several_are_taken_together_over_the_victims_that_all_of_them_have() -> None:
    some = spread.summary([0.4, 0.8]) | {"victims": [0, 2]}
    found = spread.together([spread.summary([0.1, 0.2, 0.3]), some])
    assert found is not None
    assert (found["seeds"], found["victims"]) == (pytest.approx([0.25, 0.55]), [0, 2])
    assert spread.together([]) is None
    assert spread.together([some, spread.summary([0.1]) | {"victims": [1]}]) is None
