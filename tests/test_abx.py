"""The ABX test's arithmetic against exact enumeration."""

from collections import Counter
from math import comb

import pytest

from engine import abx


def probability(hits: int, count: int, rate: float) -> float:
    return comb(count, hits) * rate**hits * (1 - rate) ** (count - hits)


@pytest.mark.parametrize("count", [1, 5, 10, 23])
def test_the_interval_covers_every_hit_rate_at_least_as_often_as_it_says(count: int) -> None:
    intervals = [abx.hit_rate_interval(hits, count) for hits in range(count + 1)]
    for rate in (k / 400 for k in range(401)):
        covered = sum(probability(h, count, rate) for h, (low, high) in enumerate(intervals) if low <= rate <= high)
        assert covered >= 0.95 - 1e-12


def test_the_ends_of_the_interval_solve_their_equations() -> None:
    low, high = abx.hit_rate_interval(7, 10)
    assert sum(probability(h, 10, low) for h in range(7, 11)) == pytest.approx(0.025)
    assert sum(probability(h, 10, high) for h in range(8)) == pytest.approx(0.025)
    assert abx.hit_rate_interval(10, 10)[1] == 1
    assert abx.hit_rate_interval(0, 10)[0] == 0
    assert abx.hit_rate_interval(10, 10)[0] == pytest.approx(0.025**0.1)


@pytest.mark.parametrize("count", [1, 10, 17])
def test_the_p_value_is_the_tail_of_guessing(count: int) -> None:
    for hits in range(count + 1):
        assert abx.p_value(hits, count) == pytest.approx(sum(comb(count, h) for h in range(hits, count + 1)) / 2**count)


def test_guessers_pass_no_more_often_than_the_level() -> None:
    assert [abx.hits_needed(count) for count in (4, 5, 8, 10, 20)] == [None, 5, 7, 9, 15]
    for count in range(5, 60):
        needed = abx.hits_needed(count)
        assert needed is not None
        assert abx.p_value(needed, count) <= 0.05 < abx.p_value(needed - 1, count)


@pytest.mark.parametrize("rate", [0.7, 0.8, 0.95, 1.0])
def test_from_so_many_trials_on_the_test_has_its_power(rate: float) -> None:
    def passes(count: int) -> float:
        needed = abx.hits_needed(count)
        return 0.0 if needed is None else sum(probability(h, count, rate) for h in range(needed, count + 1))

    least = abx.trials_needed(rate)
    assert all(passes(count) >= 0.8 for count in range(least, least + 60))
    assert passes(least - 1) < 0.8


def test_trials_are_the_seeds_own_and_show_every_pair_before_one_comes_again() -> None:
    found = abx.trials(3, count=40, images=8)
    assert found == abx.trials(3, count=40, images=8)
    assert found[:10] == abx.trials(3, count=10, images=8)
    assert found != abx.trials(4, count=40, images=8)
    for start in range(0, 40, 8):
        assert sorted(trial.image for trial in found[start : start + 8]) == list(range(8))
    poisoned = Counter(trial.x_is_poisoned for trial in abx.trials(0, count=10_000, images=5))
    assert abs(poisoned[True] - 5_000) < 250  # five standard deviations: a false alarm in 1.7 million seeds


@pytest.mark.parametrize(("hits", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_scores_are_refused(hits: int, count: int) -> None:
    with pytest.raises(ValueError, match="hits must be in"):
        abx.p_value(hits, count)
    with pytest.raises(ValueError, match="hits must be in"):
        abx.hit_rate_interval(hits, count)


@pytest.mark.parametrize("rate", [0.5, 0.2, 1.2, float("nan"), 0.5001])
def test_hit_rates_that_nothing_tells_from_guessing_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="hit_rate"):
        abx.trials_needed(rate)
