"""Certificates that stop early: their exact error probabilities by enumeration, and that they stop early."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom, norm

from benchmarks.sequential import follow, mixture
from engine import certification, sequential
from engine.certification import ABSTAIN, lower_confidence_bound, radius_cap
from engine.sequential import (
    DOUBT,
    FOR_UNANIMOUS,
    certified_radius,
    chance_of_so_few,
    decided,
    looks,
    looks_for,
    lower_bound,
    settled,
)
from engine.streams import stream
from tests.test_votes import counted, network, some_images

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)
levels = pytest.mark.parametrize(("n", "alpha"), [(100, 0.01), (400, 0.001), (400, 0.05), (1000, 0.001)])


def independent(p: float) -> Callable:
    """Votes that each fall to the selected class with probability p."""
    return lambda going, fresh, left: np.convolve(going, binom.pmf(np.arange(fresh + 1), fresh, p))


def in_random_order(total: int) -> Callable:
    """Votes of which `total` of n fall to the selected class, all orders equally likely."""

    def advance(going: np.ndarray, fresh: int, left: int) -> np.ndarray:
        before, more = np.arange(len(going))[:, None], np.arange(fresh + 1)
        chances = going[:, None] * np.nan_to_num(hypergeom.pmf(more, left, total - before, fresh))
        return np.bincount((before + more).ravel(), chances.ravel())

    return advance


def stops(advance: Callable, stop: Callable, *, plan: sequential.Looks) -> Iterator[tuple[int, np.ndarray]]:
    """(look, probability [look + 1] that an image stops there with so many votes), exactly."""
    going, before = np.ones(1), 0
    for look in map(int, plan.draws):
        going = advance(going, look - before, plan.n - before)
        stopping = stop(np.arange(look + 1), draws=look) != 0
        yield look, np.where(stopping, going, 0)
        going, before = np.where(stopping, 0, going), look


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, [1]), (100, [100]), (119, [119]), (400, [100, 200, 300, 400]), (700, [*range(100, 501, 100), 700])],
)
def test_the_looks_at_few_draws(n, expected):
    plan = looks(n)
    assert plan.draws.tolist() == expected
    assert plan.share == pytest.approx(np.diff(expected, prepend=0) / n)


@quickly
@given(st.integers(120, 10**7))
def test_looks_are_few_and_their_last_is_n(n):
    schedule = looks(n).draws
    assert schedule[0] == 100
    assert schedule[-1] == n
    assert (schedule[1:] >= 1.2 * schedule[:-1]).all()
    assert (schedule[:-1] % 100 == 0).all()
    assert len(schedule) <= 1 + np.log(n / 100) / np.log(1.2)


@quickly
@given(st.integers(1, 10**6), st.floats(1e-5, 0.1), st.floats(0.01, 0.5))
@example(n=125, alpha=0.006, precision=0.0625)  # all evenly spent looks have a large share
def test_looks_for_a_precision_spend_what_there_is_and_one_is_where_unanimous_votes_have_it(n, alpha, precision):
    plan, evenly, cap = looks_for(precision, n=n, alpha=alpha), looks(n), radius_cap(n=n, sigma=1.0, alpha=alpha)
    assert plan.n == n
    assert (np.diff(plan.draws) > 0).all()
    assert (plan.share > 0).all()
    assert plan.share.sum() == pytest.approx(1)
    assert set(evenly.draws) <= set(plan.draws)
    assert len(plan.draws) <= len(evenly.draws) + 1
    extra = plan.share - (1 - FOR_UNANIMOUS) * np.diff(plan.draws, prepend=0) / n
    assert extra.max() == pytest.approx(FOR_UNANIMOUS)
    own = int(plan.draws[extra.argmax()])
    radius = certified_radius(own, draws=own, plan=plan, sigma=1.0, alpha=alpha)
    assert radius >= (1 - precision) * cap or own == n


@pytest.mark.parametrize("n", [37, 100])
def test_with_one_look_the_bound_is_that_of_fixed_draws(n):
    votes = np.arange(n + 1)
    assert (
        lower_bound(votes, draws=n, plan=looks(n), alpha=0.001) == lower_confidence_bound(votes, n=n, alpha=0.001)
    ).all()


def test_unanimous_votes_have_the_bound_of_their_looks_share_of_alpha():
    plan = looks(100_000)
    schedule, gaps = plan.draws, np.diff(plan.draws, prepend=0)
    assert gaps.sum() == 100_000
    expected = (0.001 * gaps / 100_000) ** (1 / schedule)
    assert lower_bound(schedule, draws=schedule, plan=plan, alpha=0.001) == pytest.approx(expected, rel=1e-12)
    assert certified_radius(schedule, draws=schedule, plan=plan, sigma=0.5, alpha=0.001) == pytest.approx(
        0.5 * np.maximum(norm.ppf(expected), 0)
    )


@pytest.mark.parametrize(("precision", "draws"), [(0.02, 83_500), (0.05, 53_300), (0.1, 26_000)])
def test_unanimous_votes_stop_once_they_certify_nearly_the_cap(precision, draws):
    """No certificate at alpha can have 95 % of the cap before 47 050 draws."""
    n, cap, plan = 100_000, radius_cap(n=100_000, sigma=1.0, alpha=0.001), looks_for(precision, n=100_000, alpha=0.001)
    for look in map(int, plan.draws):
        enough = certified_radius(look, draws=look, plan=plan, sigma=1.0, alpha=0.001) >= (1 - precision) * cap
        assert settled(look, draws=look, plan=plan, alpha=0.001, precision=precision) == (enough or look == n)
        if enough:
            break
    assert look == draws


@levels
@pytest.mark.parametrize("precision", [None, 0.05, 0.2])
def test_a_bound_at_any_look_is_too_large_with_probability_at_most_alpha(n, alpha, precision):
    plan = looks(n) if precision is None else looks_for(precision, n=n, alpha=alpha)
    bounds = {t: lower_bound(np.arange(t + 1), draws=t, plan=plan, alpha=alpha) for t in plan.draws.tolist()}
    found = np.concatenate(list(bounds.values()))
    # just below a bound is where coverage is worst
    grid = np.concatenate([np.linspace(0.005, 0.995, 50), np.unique(found[found > 0])[::17] * (1 - 1e-9)])
    errors = []
    for p in grid:
        too_large = partial(lambda n_top, draws, p: bounds[draws][n_top] > p, p=p)
        errors.append(sum(stopped.sum() for _, stopped in stops(independent(p), too_large, plan=plan)))
    assert 0.4 * alpha < max(errors) <= alpha * (1 + 1e-9)


@levels
@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 2.0])
def test_a_certificate_at_a_radius_is_false_as_rarely_as_stated(n, alpha, radius):
    plan = looks(n)
    decide = partial(decided, plan=plan, alpha=alpha, radius=radius, sigma=1.0)
    false = 0.0
    for look, stopped in stops(independent(norm.cdf(radius) - 1e-12), decide, plan=plan):
        false += stopped[decide(np.arange(look + 1), draws=look) == 1].sum()
    assert false <= alpha


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0])
def test_a_radius_that_all_draws_certify_is_refused_before_as_rarely_as_stated(radius):
    n, alpha, plan = 500, 0.01, looks(500)
    decide = partial(decided, plan=plan, alpha=alpha, radius=radius, sigma=1.0)
    barely = int(sequential.votes_needed(norm.cdf(radius), n=n, alpha=alpha))
    refused = 0.0
    for look, stopped in stops(in_random_order(barely), decide, plan=plan):
        refused += stopped[decide(np.arange(look + 1), draws=look) == -1].sum() if look < n else 0
    assert 0.2 * DOUBT < refused <= DOUBT


def test_a_radius_misses_its_precision_before_all_draws_as_rarely_as_stated():
    n, alpha, precision = 500, 0.01, 0.2
    plan = looks_for(precision, n=n, alpha=alpha)
    settle = partial(settled, plan=plan, alpha=alpha, precision=precision)
    misses = []
    for total in range(250, 501, 10):
        fixed = certification.certified_radius(total, n=n, sigma=1.0, alpha=alpha)
        missed = 0.0
        for look, stopped in stops(in_random_order(total), settle, plan=plan):
            now = certified_radius(np.arange(look + 1), draws=look, plan=plan, sigma=1.0, alpha=alpha)
            missed += stopped[now < (1 - precision) * fixed].sum() if look < n else 0
        misses.append(missed)
    assert 0.2 * DOUBT < max(misses) <= DOUBT


@pytest.mark.parametrize("total", [0, 3, 500, 700, 999, 1000])
def test_the_chance_of_so_few_votes_is_hypergeometric_and_close_where_small(total):
    votes = np.arange(401)
    bound, exact = chance_of_so_few(votes, draws=400, total=total, n=1000), hypergeom.cdf(votes, 1000, total, 400)
    assert (bound >= exact * (1 - 1e-9)).all()
    small = exact < 0.01
    assert (bound[small] <= 1.1 * exact[small]).all()


@quickly
@given(st.integers(1, 3000), st.floats(0.01, 0.99), st.floats(1e-6, 0.4))
def test_the_votes_needed_are_the_fewest_that_reach_the_bound(n, p, alpha):
    enough = lower_confidence_bound(np.arange(n + 1), n=n, alpha=alpha) >= p
    assert sequential.votes_needed(p, n=n, alpha=alpha) == (enough.argmax() if enough.any() else n + 1)


def test_the_votes_needed_for_a_bound_do_not_depend_on_what_else_is_asked():
    together = sequential.votes_needed(np.array([1e-9, 0.5, 0.9]), n=100, alpha=1e-3)
    assert together.tolist() == [int(sequential.votes_needed(p, n=100, alpha=1e-3)) for p in (1e-9, 0.5, 0.9)]


@quickly
@given(st.integers(1, 5000), st.data(), st.floats(1e-5, 0.4), st.floats(0.05, 3), st.floats(0.1, 2))
def test_more_votes_never_certify_less_and_at_n_nothing_is_open(n, data, alpha, radius, sigma):
    plan = data.draw(st.sampled_from([looks(n), looks_for(0.05, n=n, alpha=alpha)]))
    look = int(data.draw(st.sampled_from(plan.draws.tolist())))
    votes = np.arange(look + 1)
    radii = certified_radius(votes, draws=look, plan=plan, sigma=sigma, alpha=alpha)
    answers = decided(votes, draws=look, plan=plan, alpha=alpha, radius=radius, sigma=sigma)
    assert (np.diff(radii) >= 0).all()
    assert (np.diff(answers) >= 0).all()
    assert ((answers == 1) == (radii >= radius)).all()
    assert (radii <= certification.certified_radius(votes, n=look, sigma=sigma, alpha=alpha)).all()
    assert look < n or (answers != 0).all()
    assert look < n or settled(votes, draws=look, plan=plan, alpha=alpha, precision=0.05).all()


def test_a_saved_table_of_counts_gives_every_radius_again():
    draws = np.array([[100, 400], [1000, 100_000]])
    n_top = np.array([[99, 380], [612, 99_990]])
    again = [
        certified_radius(k, draws=t, plan=looks(100_000), sigma=0.5, alpha=0.001)
        for k, t in zip(n_top.flat, draws.flat, strict=True)
    ]
    assert certified_radius(n_top, draws=draws, plan=looks(100_000), sigma=0.5, alpha=0.001).flatten().tolist() == again


def test_false_certificates_at_the_boundary_are_as_rare_as_stated():
    false, plan = 0, looks(100_000)
    for seed, radius in enumerate((0.25, 1.0, 2.0, 3.0)):
        stop = partial(decided, plan=plan, alpha=0.001, radius=radius, sigma=1.0)
        _, radii, _ = follow(np.full(2500, norm.cdf(radius) - 1e-12), plan, stop, np.random.default_rng(seed))
        false += (radii >= radius).sum()
    # Binomial(10 000, 0.001) exceeds 23 with probability 1.2e-4
    assert false <= 23


def test_few_draws_decide_what_many_would():
    p, plan = mixture(np.random.default_rng(0)), looks_for(0.05, n=100_000, alpha=0.001)
    stop = partial(settled, plan=plan, alpha=0.001, precision=0.05)
    draws, radii, fixed = follow(p, plan, stop, np.random.default_rng(1))
    assert draws.mean() < 100_000 / 2
    assert 0.95 * fixed.mean() < radii.mean() < fixed.mean()
    for radius in (0.25, 1.0, 2.0, 3.0):
        plan = looks(100_000)
        stop = partial(decided, plan=plan, alpha=0.001, radius=radius, sigma=1.0)
        draws, radii, fixed = follow(p, plan, stop, np.random.default_rng(1))
        assert draws.mean() < 100_000 / 10
        assert abs((radii >= radius).mean() - (fixed >= radius).mean()) < 0.01


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: looks(0), "n must be"),
        (lambda: lower_bound(5, draws=150, plan=looks(1000), alpha=0.01), "draws must be those of a look"),
        (lambda: lower_bound(101, draws=100, plan=looks(1000), alpha=0.01), "n_top must be"),
        (lambda: lower_bound(5, draws=100, plan=looks(1000), alpha=0.9), "alpha must be"),
        (lambda: settled(5, draws=100, plan=looks(1000), alpha=0.01, precision=float("nan")), "precision must be"),
        (lambda: looks_for(1.0, n=1000, alpha=0.01), "precision must be"),
        (lambda: decided(5, draws=100, plan=looks(1000), alpha=0.01, radius=0.0, sigma=0.5), "radius must be"),
    ],
)
def test_mistakes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_sequential_certificates_of_half_spaces_hold_within_the_precision_and_save_draws():
    """f = 1[w.x + b > 0]: the exact radius is |w.x + b| / |w|, whatever sigma; one of them, 0, is on the boundary."""
    exact = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])

    def half_space(images: torch.Tensor) -> torch.Tensor:  # w = 1/4 in all 16 pixels, |w| = 1
        side = 0.25 * images.flatten(1).sum(dim=1)
        return torch.stack([-side, side], dim=1)

    found = [
        sequential.certify(
            half_space,
            (exact / 4)[:, None, None, None].expand(-1, 1, 4, 4),
            sigma=0.5,
            n0=50,
            n=5000,
            alpha=0.001,
            precision=0.1,
            num_classes=2,
            block=1000,
            generator=stream(0, "test", index),
        )
        for index in range(50)
    ]
    radii, draws = (np.array([getattr(one, name) for one in found]) for name in ("radius", "draws"))
    wrong = (radii > exact.numpy()).any(axis=1)  # for each call, whose six images share noise and so fail together
    assert wrong.sum() <= 3  # Binomial(50, 6 · 0.001), the union bound, exceeds 3 with probability 2.4e-4
    assert all((one.prediction == np.where(one.radius > 0, 1, ABSTAIN))[1:].all() for one in found)
    assert (radii[:, 0] == 0).mean() > 0.9
    expected = np.round(5000 * norm.cdf(exact.numpy() / 0.5)).astype(int)
    fixed = certification.certified_radius(expected, n=5000, sigma=0.5, alpha=0.001)
    assert (radii.mean(axis=0)[2:] > 0.85 * fixed[2:]).all()
    assert draws.mean() < 0.65 * 5000
    assert draws.max() <= 5000


def test_without_a_reason_to_stop_it_is_certify_with_all_draws() -> None:
    model, images = network(), some_images(3)
    found = sequential.certify(
        model, images, sigma=0.5, n0=10, n=60, alpha=0.01, num_classes=10, generator=stream(0, "votes", 0)
    )
    n_top = counted(model, images, 60).n_top.numpy()
    assert (found.radius == certification.certified_radius(n_top, n=60, sigma=0.5, alpha=0.01)).all()
    assert found.draws.tolist() == [60] * 3
