"""The bilevel problem in the plane: an exact hypergradient, exact radii, an attack that works."""

import statistics
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from engine import toy
from tests.bilevel import exact
from tests.game import SETTINGS, attacked, begun, clean, on_its_way, same

# --- exact answers ---


def test_a_radius_is_the_distance_to_the_boundary_and_0_where_wrong() -> None:
    state = replace(begun(), held_out=torch.tensor([[3.0, 4.0], [0.0, 0.0], [-3.0, 1.0]], dtype=torch.float64))
    weights = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
    assert toy.radii(state, weights).tolist() == pytest.approx([6.0, 1.0, 0.0])
    assert toy.radii(state, 7 * weights).tolist() == pytest.approx([6.0, 1.0, 0.0])
    assert toy.mean_radius(state, weights) == pytest.approx(7 / 3)


def test_the_loss_is_the_expected_logistic_loss_under_noise() -> None:
    state = begun(sigma=0.8)
    weights = torch.tensor([2.0, -1.5, 0.3], dtype=torch.float64)
    noise = 0.8 * torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1.0] * toy.TARGET_POINTS + [-1.0] * toy.OTHER_POINTS, dtype=torch.float64)
    margins = labels * ((state.training + noise) @ weights[:2] + weights[2])
    draws = torch.nn.functional.softplus(-margins).mean(dim=1) + 0.01 / 2 * weights[:2].square().sum()
    found = float(toy.lower_loss(state)(weights, state.poison))
    assert abs(found - float(draws.mean())) < 4 * float(draws.std()) / 20_000**0.5  # false alarm: 6e-5


def test_the_hypergradient_is_the_exact_one() -> None:
    state = on_its_way()
    expected = exact(toy.lower_loss(state), toy.upper_loss(state), state.weights, state.poison)
    found = toy.hypergradient(state)
    assert found.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert state.residual < 1e-9


@pytest.mark.parametrize("index", [0, 7, 19])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_hypergradient_is_what_a_victim_trained_anew_does(index: int, axis: int) -> None:
    state, size = on_its_way(), 1e-5

    def upper(change: float) -> float:
        poison = state.poison.clone()
        poison[index, axis] += change
        moved = replace(state, poison=poison)
        return toy.mean_radius(moved, toy.trained(moved, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)))

    found = (upper(size) - upper(-size)) / (2 * size)
    assert float(toy.hypergradient(state)[index, axis]) == pytest.approx(found, rel=1e-4, abs=1e-7)


def test_many_lower_steps_arrive_where_newton_does() -> None:
    state = toy.start(replace(SETTINGS, regularisation=0.1), 0)
    for _ in range(400):
        state = toy.lower_step(state)
    torch.testing.assert_close(state.weights, state.clean, rtol=0, atol=1e-6)
    assert all(after < before for before, after in pairwise(state.losses[:50]))
    assert len(state.losses) == 400


# --- the levels ---


def test_each_step_moves_its_own_level_alone() -> None:
    state = toy.upper_step(begun())
    lower, solved, upper = toy.lower_step(state), toy.solve_linear(state), toy.upper_step(state)
    assert not torch.equal(lower.weights, state.weights)
    assert not torch.equal(solved.p, toy.solve_linear(lower).p)
    assert not torch.equal(upper.poison, state.poison)
    assert all(torch.equal(other.poison, state.poison) for other in (lower, solved))
    assert all(torch.equal(other.weights, state.weights) for other in (solved, upper))
    assert all(torch.equal(other.p, state.p) for other in (lower, upper))
    assert [other.level for other in (lower, solved, upper)] == [1, 2, 3]


def test_a_whole_step_is_its_parts() -> None:
    state = begun()
    by_hand = state
    for _ in range(toy.INNER_STEPS):
        by_hand = toy.lower_step(by_hand)
    assert same(toy.whole_step(state), toy.upper_step(toy.solve_linear(by_hand)))


def test_the_same_seed_gives_the_same_game_and_another_another() -> None:
    first, again = (toy.whole_step(toy.settled(toy.start(SETTINGS, 5))) for _ in range(2))
    assert same(first, again)
    assert not torch.equal(first.training, begun().training)


@settings(max_examples=30)
@given(epsilon=some.floats(0, 0.6), size=some.floats(0, 100))
def test_poison_stays_in_its_box_and_nothing_else_moves(epsilon: float, size: float) -> None:
    state = replace(begun(), settings=replace(SETTINGS, epsilon=epsilon), poison=clean(begun()))
    after = toy.upper_step(replace(state, p=size * state.p))
    assert (after.poison - clean(after)).abs().max() <= epsilon + 1e-12
    assert torch.equal(after.training, state.training)
    assert torch.equal(after.held_out, state.held_out)


# --- the attack ---


@pytest.mark.parametrize("seed", [0, 2])
def test_the_attack_takes_a_third_of_the_radius_and_random_moves_hardly_any(seed: int) -> None:
    state = attacked() if seed == 0 else toy.settled(toy.start(SETTINGS, seed))
    while not state.done:
        state = toy.whole_step(state)
    before, after = toy.mean_radius(state, state.clean), toy.mean_radius(state, state.retrained)
    assert 1 - after / before > 0.3
    assert abs(1 - statistics.mean(state.control) / before) < 0.1
    assert min(state.control) > after  # none of the draws does as much
    assert (state.poison - clean(state)).abs().max() <= SETTINGS.epsilon + 1e-12
    assert state.upper_steps < toy.MOST_STEPS
    assert [step.upper_steps for step in state.history] == list(range(state.upper_steps + 1))


def test_more_noise_in_training_leaves_more_of_the_radius() -> None:
    def left(state: toy.State) -> float:
        return toy.mean_radius(state, state.retrained) / toy.mean_radius(state, state.clean)

    state = begun(sigma=0.8)
    while not state.done:
        state = toy.whole_step(state)
    assert left(state) > left(attacked()) + 0.1


def test_without_budget_or_points_nothing_happens() -> None:
    for state in (begun(epsilon=0.0), begun(poison_points=0)):
        after = toy.whole_step(state)
        assert after.done
        assert torch.equal(after.poison, clean(after))


# --- by hand, and refusals ---


def test_a_point_moved_by_hand_is_there_and_the_victim_follows_when_settled() -> None:
    state = begun()
    x, y = state.poison[4].tolist()
    moved = toy.move_point(state, 4, (x + 0.3, y - 0.3))
    assert moved.poison[4].tolist() == pytest.approx([x + 0.3, y - 0.3])
    assert torch.equal(moved.weights, state.weights)
    assert not torch.equal(toy.settled(moved).weights, state.weights)
    assert moved.history[-1].retrained != state.history[-1].retrained
    assert torch.equal(state.poison, clean(state))  # the state that was given is as it was


@pytest.mark.parametrize(
    ("index", "move", "told"), [(4, (0.5, 0), "x must be"), (4, (0, float("nan")), "y must be"), (20, (0, 0), "index")]
)
def test_a_move_out_of_the_box_is_refused(index: int, move: tuple[float, float], told: str) -> None:
    state = begun()
    x, y = state.poison[min(index, 19)].tolist()
    with pytest.raises(ValueError, match=told):
        toy.move_point(state, index, (x + move[0], y + move[1]))


@pytest.mark.parametrize(
    "changes", [dict(epsilon=0.7), dict(sigma=0.0), dict(regularisation=float("nan")), dict(poison_points=21)]
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} must be in \["):
        replace(SETTINGS, **changes)
