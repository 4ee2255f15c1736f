"""Certificates: exact answers on half-spaces, the exact coverage of the bound, and which draws are used for what."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from torch import Tensor

from engine.certification import ABSTAIN, certified_radius, lower_confidence_bound
from engine.certification import radius_cap as cap
from engine.streams import stream
from engine.votes import count_votes

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)
alphas = st.floats(1e-6, 0.49)


def certify(classifier, image: Tensor, *, sigma: float, n0: int, n: int, alpha: float, block: int = 100, **settings):
    """(Class of the smoothed classifier at this image [C, H, W], its radius), as runs find it, or (ABSTAIN, 0)."""
    groups = [(torch.zeros(1, dtype=torch.int64), settings.pop("generator"))]
    drawn = dict(sigma=sigma, n0=n0, n=n, block=block, groups=groups)
    *_, votes = count_votes(classifier, image.unsqueeze(0), **drawn, **settings)
    radius = float(certified_radius(int(votes.n_top), n=n, sigma=sigma, alpha=alpha))
    return (int(votes.selected_class), radius) if radius > 0 else (ABSTAIN, 0.0)


def half_space(weights: Tensor, offset: float):
    """f = 1[w.x + offset > 0] as logits of two classes."""

    def classifier(images: Tensor) -> Tensor:
        side = images.flatten(1) @ weights + offset
        return torch.stack([-side, side], dim=1)

    return classifier


@pytest.mark.parametrize(("sigma", "pixels"), [(0.25, 16), (0.5, 64), (1.0, 16)])
@pytest.mark.parametrize("side", [-1, 1])
def test_certificates_of_a_half_space_hold_and_are_not_uselessly_small(sigma, pixels, side):
    """The exact radius is |w.x + b| / |w|, whatever sigma."""
    shape = (1, 4, pixels // 4)
    weights = torch.randn(pixels, generator=stream(0, "weights", pixels))
    image = torch.rand(shape, generator=stream(0, "image", pixels))
    exact = 0.8 * sigma
    offset = float(side * exact * weights.norm() - image.flatten() @ weights)
    found = [
        certify(
            half_space(weights, offset),
            image,
            sigma=sigma,
            n0=50,
            n=500,
            alpha=0.01,
            num_classes=2,
            block=500,
            generator=stream(0, f"half-space {side} {sigma}", index),
        )
        for index in range(400)
    ]
    radii = np.array([radius for _, radius in found])
    assert {answer for answer, _ in found} <= {int(side > 0), ABSTAIN}
    # Binomial(400, 0.01) exceeds 12 with probability 2.5e-4, in each of the six cases
    assert (radii > exact).sum() <= 12
    assert 0.75 * exact < radii.mean() < exact


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_with_endless_draws_the_radius_of_a_half_space_becomes_exact(sigma):
    for distance in (0.01, 0.3, 1.5):
        n = 10**10
        n_top = round(n * norm.cdf(distance / sigma))
        if n_top < n:
            radius = float(certified_radius(n_top, n=n, sigma=sigma, alpha=0.001))
            assert distance - 2e-3 * sigma * (1 + math.exp(0.5 * (distance / sigma) ** 2)) < radius < distance


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.4])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 400])
def test_the_bound_is_too_large_with_probability_at_most_alpha_computed_over_the_whole_binomial(n, alpha):
    bounds = lower_confidence_bound(np.arange(n + 1), n=n, alpha=alpha)
    # just below each bound is where coverage is worst
    grid = np.concatenate([np.linspace(0.0005, 0.9995, 501), np.nextafter(bounds[1:], 0), bounds[1:] * (1 - 1e-9)])
    outcomes = binom.pmf(np.arange(n + 1)[:, None], n, grid[None, :])
    too_large = (outcomes * (bounds[:, None] > grid[None, :])).sum(axis=0)
    assert too_large.max() <= alpha * (1 + 1e-9)
    # and no larger bound would do: at the bound itself, that many votes or more have probability alpha
    assert binom.sf(np.arange(n), n, bounds[1:]) == pytest.approx(alpha, rel=1e-7)


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.01), (100, 0.001), (100, 0.2), (1000, 0.05)])
def test_the_bound_is_scipys_exact_interval(n, alpha):
    votes = np.unique(np.linspace(0, n, 60).astype(int))
    expected = [binomtest(int(k), n).proportion_ci(1 - 2 * alpha, "exact").low for k in votes]
    assert lower_confidence_bound(votes, n=n, alpha=alpha) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(("n", "expected"), [(100, 1.5004750), (1000, 2.4632626), (100_000, 3.8114566)])
def test_the_largest_radius_that_draws_can_certify_is_as_published(n, expected):
    assert cap(n=n, sigma=1.0, alpha=0.001) == pytest.approx(expected, abs=5e-8)
    assert cap(n=n, sigma=0.5, alpha=0.001) == pytest.approx(0.5 * norm.ppf(0.001 ** (1 / n)), rel=1e-9)


def test_the_cap_is_zero_where_even_unanimity_certifies_nothing():
    assert cap(n=9, sigma=0.5, alpha=0.001) == 0
    assert cap(n=10, sigma=0.5, alpha=0.001) > 0


@quickly
@given(st.integers(1, 3000), st.data(), alphas, alphas, st.floats(0.01, 4))
def test_radii_are_proportional_to_sigma_and_grow_with_votes_and_with_alpha(n, data, alpha, other, sigma):
    votes = data.draw(st.integers(0, n))
    small, large = sorted((alpha, other))
    assume(small < large)

    def radius(k: int, alpha: float, sigma: float) -> float:
        return float(certified_radius(k, n=n, sigma=sigma, alpha=alpha))

    assert radius(votes, alpha, sigma) == pytest.approx(sigma * radius(votes, alpha, 1.0), rel=1e-12)
    assert radius(votes, small, sigma) <= radius(votes, large, sigma)
    assert radius(votes, alpha, sigma) <= radius(min(votes + 1, n), alpha, sigma) <= cap(n=n, sigma=sigma, alpha=alpha)
    if 2 * votes <= n:
        assert radius(votes, alpha, sigma) == 0  # no majority


def test_more_votes_and_a_larger_alpha_give_strictly_larger_radii_where_there_is_a_radius():
    by_votes = certified_radius(np.arange(80, 101), n=100, sigma=0.5, alpha=0.001)
    assert (np.diff(by_votes) > 0).all()
    by_alpha = [float(certified_radius(90, n=100, sigma=0.5, alpha=alpha)) for alpha in (1e-5, 1e-3, 0.1)]
    assert by_alpha == sorted(set(by_alpha))


def test_bounds_and_radii_keep_the_shape_of_the_votes_and_are_float64():
    votes = np.array([[0, 50, 100], [70, 80, 90]])
    for found in (
        lower_confidence_bound(votes, n=100, alpha=0.01),
        certified_radius(votes, n=100, sigma=1, alpha=0.01),
    ):
        assert found.shape == votes.shape
        assert found.dtype == np.float64
    assert (
        float(certified_radius(80, n=100, sigma=1, alpha=0.01))
        == certified_radius(votes, n=100, sigma=1, alpha=0.01)[1, 1]
    )


@pytest.mark.parametrize(("n_top", "n"), [(-1, 10), (11, 10), (0, 0), (np.array([3, 11]), 10)])
def test_impossible_votes_are_rejected(n_top, n):
    with pytest.raises(ValueError, match=r"n_top must be in \[0, n\] and n at least 1"):
        certified_radius(n_top, n=n, sigma=0.5, alpha=0.01)


@pytest.mark.parametrize("alpha", [0, -0.1, 0.5, 1, math.nan])
def test_an_alpha_outside_its_range_is_rejected(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 0.5\)"):
        lower_confidence_bound(5, n=10, alpha=alpha)


SETTINGS = dict(sigma=0.5, n0=20, n=200, alpha=0.01)


def constant(winner: int, num_classes: int = 3):
    return lambda images: torch.eye(num_classes)[winner].expand(len(images), num_classes)


def test_a_constant_classifier_is_certified_up_to_the_cap():
    found = certify(constant(2), torch.zeros(1, 4, 4), **SETTINGS, num_classes=3, generator=stream(0, "test"))
    assert found == (2, cap(n=200, sigma=0.5, alpha=0.01))


def test_a_classifier_that_is_pure_chance_abstains():
    # p = 1/2 exactly: each certifies with probability at most alpha = 0.01, more than 7 of 100 with probability 2e-5
    classifier = half_space(torch.full((16,), 0.25), 0.0)
    found = [
        certify(classifier, torch.zeros(1, 4, 4), **SETTINGS, num_classes=2, generator=stream(0, "chance", index))
        for index in range(100)
    ]
    assert found.count((ABSTAIN, 0.0)) >= 93
    assert all(radius > 0 for answer, radius in found if answer != ABSTAIN)


def test_the_estimation_draws_do_not_choose_the_class():
    """Selection says 1, estimation 0 throughout: no certificate for either."""
    calls = []

    def turncoat(images: Tensor) -> Tensor:
        calls.append(len(images))
        return constant(1 if len(calls) == 1 else 0)(images)

    found = certify(turncoat, torch.zeros(1, 4, 4), **SETTINGS, num_classes=3, block=20, generator=stream(0, "test"))
    assert calls == [20] * 11
    assert found == (ABSTAIN, 0.0)
