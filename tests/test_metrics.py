"""Summaries of certificate tables, against tables worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, hypergeom

from engine import metrics
from engine.certification import ABSTAIN, certified_radius, lower_confidence_bound

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)
ROUNDING = 1e-12


@pytest.fixture
def table() -> pd.DataFrame:
    """Right, wrong, abstaining, right: what counts is 0.1 · 1.0 + 0.5 · 0.25 = 0.225."""
    return pd.DataFrame(
        {
            "label": [8, 8, 8, 1],
            "weight": [0.1, 0.1, 0.3, 0.5],
            "prediction": [8, 3, ABSTAIN, 1],
            "radius": [1.0, 0.7, 0.0, 0.25],
        }
    )


def test_the_summaries_of_a_table_are_those_worked_out_by_hand(table):
    assert metrics.is_correct(table).tolist() == [True, False, False, True]
    assert metrics.correct_radius(table).tolist() == [1.0, 0.0, 0.0, 0.25]
    assert metrics.average_certified_radius(table) == pytest.approx(0.225)
    assert metrics.accuracy(table) == pytest.approx(0.6)
    assert metrics.abstention_rate(table) == pytest.approx(0.3)


def test_certificates_are_the_votes_for_the_class_that_the_selection_chose():
    selection, estimation = (
        np.array([[1, 5, 4], [3, 3, 4], [2, 2, 0]]),
        np.array([[1, 99, 0], [2, 50, 48], [100, 0, 0]]),
    )
    found = metrics.certificates(selection, estimation, sigma=0.5, alpha=0.01)
    assert found[["selected_class", "n_top", "n"]].to_numpy().tolist() == [[1, 99, 100], [2, 48, 100], [0, 100, 100]]
    assert found["prediction"].tolist() == [1, ABSTAIN, 0]
    assert found["p_lower"].tolist() == lower_confidence_bound(np.array([99, 48, 100]), n=100, alpha=0.01).tolist()
    assert found["radius"].tolist() == certified_radius(np.array([99, 48, 100]), n=100, sigma=0.5, alpha=0.01).tolist()


def test_the_average_certified_radius_is_over_all_points_not_over_the_correct_ones(table):
    of_class = table[table["label"] == 8].assign(weight=1.0)
    assert metrics.average_certified_radius(of_class) == pytest.approx(1.0 / 3)


def test_certified_accuracy_counts_radii_of_exactly_r(table):
    radii = [0, 0.25, math.nextafter(0.25, 1), 1.0, math.nextafter(1.0, 2), 9]
    assert metrics.certified_accuracy(table, np.array(radii)) == pytest.approx([0.6, 0.6, 0.1, 0.1, 0, 0])


def test_a_wrong_answer_certifies_nothing_however_large_its_radius(table):
    wrong = table.assign(prediction=[0, 0, 0, 0], radius=9.0)
    assert metrics.average_certified_radius(wrong) == 0
    assert metrics.certified_accuracy(wrong, np.array([0.0])).tolist() == [0.0]


tables = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-1, 2), st.floats(0, 3), st.floats(0.01, 1)), min_size=1, max_size=20
).map(lambda rows: pd.DataFrame(rows, columns=["label", "prediction", "radius", "weight"]))


@quickly
@given(tables, st.floats(0.1, 1000))
def test_summaries_depend_on_the_ratios_of_weights_only_and_the_area_under_the_curve_is_the_average(table, factor):
    radii = np.linspace(0, 3, 3001)
    curve = metrics.certified_accuracy(table, radii)
    average = metrics.average_certified_radius(table)
    scaled = table.assign(weight=factor * table["weight"])
    assert metrics.average_certified_radius(scaled) == pytest.approx(average, abs=1e-12)
    assert metrics.accuracy(scaled) == pytest.approx(metrics.accuracy(table))
    assert (np.diff(curve) <= 1e-12).all()
    assert curve[0] == pytest.approx(metrics.accuracy(table))
    assert np.trapezoid(curve, radii) == pytest.approx(average, abs=2e-3)


def certificates(n_top: np.ndarray, n: int, selected: int = 8) -> pd.DataFrame:
    return pd.DataFrame({"label": 8, "weight": 1.0, "selected_class": selected, "n_top": n_top, "n": n})


def test_at_the_recorded_draws_recertifying_changes_no_vote():
    votes = np.array([0, 50, 51, 90, 99, 100])
    table = certificates(votes, 100)
    for n in (None, 100):
        found = metrics.recertify(table, sigma=0.5, alpha=0.001, n=n, seed=1)
        assert found["n_top"].tolist() == votes.tolist()
        assert found["n"].tolist() == [100] * 6
        assert found["p_lower"].to_numpy() == pytest.approx(lower_confidence_bound(votes, n=100, alpha=0.001))
        assert found["radius"].to_numpy() == pytest.approx(certified_radius(votes, n=100, sigma=0.5, alpha=0.001))
        assert found["prediction"].tolist() == [ABSTAIN, ABSTAIN, ABSTAIN, 8, 8, 8]
        assert metrics.recertify(found, sigma=0.5, alpha=0.001).equals(found)
    assert list(table.columns) == ["label", "weight", "selected_class", "n_top", "n"]


def test_another_alpha_needs_no_new_votes():
    table = metrics.recertify(certificates(np.array([80, 95]), 100), sigma=0.5, alpha=0.001)
    bolder = metrics.recertify(table, sigma=0.5, alpha=0.1)
    assert bolder["n_top"].tolist() == [80, 95]
    assert (bolder["radius"] > table["radius"]).all()


def test_votes_among_fewer_draws_are_hypergeometric():
    recorded, n_top, n, rows = 1000, 700, 100, 5000
    found = metrics.recertify(certificates(np.full(rows, n_top), recorded), sigma=0.5, alpha=0.001, n=n, seed=3)
    votes = found["n_top"].to_numpy()
    law = hypergeom(recorded, n_top, n)
    # 5 standard errors of mean and of variance, and of each of three tail shares: false alarm 5.7e-7 each
    assert abs(votes.mean() - law.mean()) < 5 * law.std() / math.sqrt(rows)
    kurtosis = float(law.stats("k")) + 3
    assert abs(votes.var() - law.var()) < 5 * law.var() * math.sqrt((kurtosis - 1) / rows)
    for k in (65, 70, 75):
        share = law.cdf(k)
        assert abs((votes <= k).mean() - share) < 5 * math.sqrt(share * (1 - share) / rows)


def test_fewer_draws_than_recorded_are_distributed_as_if_only_they_had_been_drawn():
    recorded, n, p, rows = 400, 100, 0.8, 20_000
    drawn = np.random.default_rng(0).binomial(recorded, p, rows)
    votes = metrics.recertify(certificates(drawn, recorded), sigma=0.5, alpha=0.001, n=n, seed=1)["n_top"].to_numpy()
    # 5 standard errors at each of five points of the distribution function: false alarm 5.7e-7 each
    for k in (72, 76, 80, 84, 88):
        share = binom.cdf(k, n, p)
        assert abs((votes <= k).mean() - share) < 5 * math.sqrt(share * (1 - share) / rows)


@quickly
@given(st.lists(st.integers(0, 60), min_size=1, max_size=10), st.integers(1, 60), st.integers(0, 10**6))
def test_votes_among_fewer_draws_are_possible_ones_and_repeat_with_their_seed(votes, n, seed):
    table = certificates(np.array(votes), 60)
    found = metrics.recertify(table, sigma=0.5, alpha=0.01, n=n, seed=seed)
    assert (found["n_top"] <= np.minimum(votes, n)).all()
    assert (found["n_top"] >= np.maximum(0, n - (60 - np.array(votes)))).all()
    assert (found["n"] == n).all()
    assert metrics.recertify(table, sigma=0.5, alpha=0.01, n=n, seed=seed).equals(found)


@pytest.mark.parametrize("n", [0, -1, 101])
def test_draws_that_were_not_recorded_cannot_be_had(n):
    with pytest.raises(ValueError, match=rf"n must be in \[1, 100\], the draws recorded, got {n}"):
        metrics.recertify(certificates(np.array([90]), 100), sigma=0.5, alpha=0.001, n=n)


def test_relative_drops_are_paired_by_victim():
    found = metrics.relative_drop(np.array([1.0, 0.5, 0.0, np.nan, 0.4]), np.array([0.7, 0.6, 0.3, 0.2, 0.0]))
    assert found == pytest.approx([0.3, -0.2, np.nan, np.nan, 1.0], nan_ok=True)


def test_the_mean_of_equal_drops_is_not_the_drop_of_the_means():
    clean, other = np.array([1.0, 0.1]), np.array([0.5, 0.1])
    assert metrics.relative_drop(clean, other).mean() == pytest.approx(0.25)
    assert metrics.relative_drop(clean, other).mean() != pytest.approx(1 - other.mean() / clean.mean())


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (8, 10), (10, 10), (417, 1000)])
def test_the_interval_of_a_share_is_wilsons(successes, count):
    found = metrics.interval_of_share(successes / count, count)
    expected = binomtest(successes, count).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@quickly
@given(st.floats(0, 1), st.floats(0.5, 1e7))
def test_the_interval_of_a_share_stays_within_0_and_1_and_holds_the_share(share, count):
    found = metrics.interval_of_share(share, count)
    assert found.value == share
    assert 0 <= found.low <= share + ROUNDING
    assert share - ROUNDING <= found.high <= 1


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.array([0.0, 1.0, 2.0, 5.0])
    found = metrics.interval_of_mean(values, np.ones(4))
    half = 1.959963984540054 * values.std() / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


@quickly
@given(tables)
def test_the_interval_of_a_mean_holds_the_mean_and_stays_within_the_values(table):
    found = metrics.interval_of_mean(table["radius"], table["weight"])
    assert found.low - ROUNDING <= found.value <= found.high + ROUNDING
    assert table["radius"].min() <= found.low
    assert found.high <= table["radius"].max()


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [metrics.interval_of_mean(rng.random(100), np.ones(100)) for _ in range(2000)]
    covered = sum(one.low <= 0.5 <= one.high for one in found) / 2000
    # 0.95 ± 5 standard errors, and 0.01 for the normal approximation: false alarm 5.7e-7
    assert abs(covered - 0.95) < 0.01 + 5 * math.sqrt(0.05 * 0.95 / 2000)


def test_weights_that_are_equal_count_fully_and_a_lone_one_counts_once():
    assert metrics.effective_count(np.full(7, 0.3)) == pytest.approx(7)
    assert metrics.effective_count(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert metrics.effective_count(np.array([3.0, 1.0])) == pytest.approx(16 / 10)


def test_a_drop_that_is_the_same_at_every_image_is_known_without_doubt():
    clean = np.array([[1.0, 2.0, 0.0], [3.0, 1.0, 2.0]])
    found = metrics.interval_of_drop(clean, 0.25 * clean, np.array([1, 1, 3]))
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    assert metrics.interval_of_drop(clean, clean, np.ones(3)).value == pytest.approx(0)


def test_a_drop_is_the_mean_over_victims_that_have_something_to_lose():
    clean, other = np.array([[1.0, 1.0], [2.0, 4.0], [0.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 3.0], [1.0, 1.0]])
    assert metrics.interval_of_drop(clean, other, np.ones(2)).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no clean victim"):
        metrics.interval_of_drop(clean[2:], other[2:], np.ones(2))


def test_the_interval_of_a_drop_over_images_covers_the_truth_as_often_as_it_says():
    """Victims share what is hard about an image. If 95 % cover, under 92 or over 98 % of 500 do 2 times in 1000."""
    generator, covered = np.random.default_rng(0), 0
    truth = np.mean([1 - 0.4 * 0.7 / 0.9, 1 - 0.6 * 0.7 / 0.9])  # of the two victims below
    for _ in range(500):
        easy = generator.uniform(0, 1, 150)
        kept = (generator.uniform(size=(2, 150)) < 0.9) * (0.5 + easy)
        left = (generator.uniform(size=(2, 150)) < 0.7) * (0.5 + easy) * np.array([[0.4], [0.6]])
        found = metrics.interval_of_drop(kept, left, np.ones(150))
        covered += found.low <= truth <= found.high
    assert 0.92 * 500 <= covered <= 0.98 * 500


def test_fewer_votes_are_a_subset_of_all_and_agree_with_their_certificate() -> None:
    votes = np.array([[3, 80, 17], [50, 26, 24]])
    table = metrics.certificates(votes, votes, sigma=0.5, alpha=0.001)
    fewer = metrics.recertify(table, sigma=0.5, alpha=0.001, n=20)
    found = metrics.with_fewer_votes(table, fewer)
    drawn = np.stack(found["estimation_votes"])
    assert (drawn <= votes).all()
    assert (drawn.sum(axis=1) == 20).all()
    assert drawn[[0, 1], table["selected_class"]].tolist() == fewer["n_top"].tolist()
    same = metrics.with_fewer_votes(table, table)
    assert (np.stack(same["estimation_votes"]) == votes).all()
