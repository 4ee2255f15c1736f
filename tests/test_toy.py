"""The bilevel problem in the plane: an exact hypergradient, exact radii, an attack that works, and the page."""

import statistics
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from streamlit.testing.v1 import AppTest

from engine import toy
from engine.figures import toy as toy_figures
from engine.figures.style import alt
from tests.app import button, words
from tests.bilevel import exact

SETTINGS = toy.Settings(epsilon=0.4, sigma=0.2, regularisation=0.01, poison_points=20)


@cache
def begun(**changes: Any) -> toy.State:
    return toy.settled(toy.start(replace(SETTINGS, **changes), 0))


@cache
def on_its_way() -> toy.State:
    """After some upper steps, the victim trained to the end."""
    state = begun()
    for _ in range(3):
        state = toy.whole_step(state)
    return toy.settled(state)


@cache
def attacked() -> toy.State:
    state = begun()
    while not state.done:
        state = toy.whole_step(state)
    return state


def clean(state: toy.State) -> torch.Tensor:
    return state.training[: len(state.poison)]


def same(one: toy.State, other: toy.State) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in toy.State.__dataclass_fields__]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else repr(a) == repr(b) for a, b in pairs)


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


# --- figures ---


def test_the_plane_shows_what_the_state_holds() -> None:
    state = attacked()
    figure = toy_figures.plane(state, chosen=3)
    traces = {trace.name: trace for trace in figure.data}
    assert traces["poison point"].x == pytest.approx(state.poison[:, 0].numpy())
    assert traces["chosen"].x == pytest.approx(state.poison[3:4, 0].numpy())
    disc = next(iter(toy_figures.shown(state)))
    ring = torch.tensor(np.stack([traces["radius now"].x[:49], traces["radius now"].y[:49]], axis=1))
    sizes = (ring - state.held_out[disc]).norm(dim=1)
    torch.testing.assert_close(sizes, toy.radii(state, state.weights)[disc].expand(49))
    told = alt(figure)
    assert f"{toy.mean_radius(state, state.weights):.3f} now" in told
    assert f"{toy.mean_radius(state, state.clean):.3f} with" in told
    ranges = [toy_figures.plane(other).layout.xaxis.range for other in (begun(), state)]
    assert ranges[0] == ranges[1]


def test_arrows_are_the_step_that_comes_next() -> None:
    state = toy.solve_linear(begun())
    drawn = next(trace for trace in toy_figures.plane(state).data if trace.name == f"next step × {toy_figures.ARROW}")
    tips = np.stack([drawn.x[1::3], drawn.y[1::3]], axis=1)
    moved = (toy.upper_step(state).poison - state.poison).numpy()
    some_way = np.abs(moved).max(axis=1) > 1e-6
    np.testing.assert_allclose(tips, (state.poison.numpy() + toy_figures.ARROW * moved)[some_way], atol=1e-6)


def test_the_boundary_is_drawn_where_the_victim_is_undecided() -> None:
    state = attacked()
    line = next(trace for trace in toy_figures.plane(state).data if trace.name == "boundary now")
    points = torch.tensor(np.stack([line.x, line.y], axis=1))
    torch.testing.assert_close(toy.signed_distance(state.weights, points), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_a_line_has_its_name_on_it_and_in_sight(seed: int) -> None:
    state = toy.start(SETTINGS, seed)  # untrained: the boundary lies anyhow
    names = {trace.name: trace for trace in toy_figures.plane(state).data if trace.mode == "text"}
    for name, weights in (("victim now", state.weights), ("clean victim", state.clean)):
        (x,), (y,) = names[name].x, names[name].y
        assert abs(x) <= toy_figures.WIDTH + 1e-9
        assert abs(y) <= toy_figures.HEIGHT
        place = torch.tensor([[x, y]], dtype=torch.float64)
        assert float(toy.signed_distance(weights, place)) == pytest.approx(0, abs=1e-9)


def test_curves_are_the_history() -> None:
    state = attacked()
    retrained = next(trace for trace in toy_figures.measured(state).data if trace.name == "trained to the end")
    assert list(retrained.y) == [step.retrained for step in state.history]
    assert f"{state.history[-1].retrained:.3f}" in alt(toy_figures.measured(state))


# --- the page's two parts ---


def one() -> None:
    from pages import _bilevel

    _bilevel.one_level()


def two() -> None:
    from pages import _bilevel

    _bilevel.two_levels()


def opened(part: Any) -> AppTest:
    test = AppTest.from_function(part, default_timeout=60).run()
    assert not test.exception
    return test


def game(test: AppTest, which: str = "two") -> toy.State:
    return test.session_state[f"toy {which} state"]


def press(test: AppTest, label: str) -> AppTest:
    button(test, label).click().run()
    assert not test.exception
    return test


def test_levels_are_stepped_separately_and_the_last_part_is_marked() -> None:
    test = opened(two)
    first = game(test)
    assert "ran last" not in words(test)
    lower = game(press(test, "Lower step"))
    assert (len(lower.losses), lower.upper_steps) == (1, 0)
    assert "**1** The victim learns on the poisoned points. **(ran last)**" in words(test)
    assert game(press(test, "Linear system")).level == 2
    assert "how the trained line would move. **(ran last)**" in words(test)
    upper = game(press(test, "Upper step"))
    assert (len(upper.losses), upper.upper_steps) == (1, 1)
    assert words(test).count("(ran last)") == 2  # the step, and what was measured after it
    assert game(press(test, "Whole step")).upper_steps == 2
    assert len(test.get("plotly_chart")) == 2
    assert same(game(press(test, "Reset")), first)


def test_it_plays_until_it_is_paused() -> None:
    test = opened(two)
    press(test, "Play")
    assert game(test).upper_steps > 0
    assert words(test).count("runs now") == 4
    assert button(test, "Lower step").disabled
    before = game(test).upper_steps
    assert game(test.run()).upper_steps > before
    press(test, "Pause")
    before = game(test)
    assert same(game(test.run()), before)
    assert "runs now" not in words(test)


def test_part_by_part_marks_one_part_after_the_other() -> None:
    test = opened(two)
    test.segmented_control[0].set_value("Part by part").run()
    press(test, "Play")
    levels = [game(test).level, *(game(test.run()).level for _ in range(3))]
    assert levels == [1, 2, 3, 1]


def test_it_stops_by_itself_at_the_end() -> None:
    test = opened(two)
    test.session_state["toy two state"] = attacked()
    test.run()
    assert button(test, "Play").disabled
    assert "Finished: the poison points stopped moving" in words(test)
    test.session_state["toy two playing"] = True
    test.run()
    assert game(test) is attacked()
    assert not test.session_state["toy two playing"]


def test_a_point_is_moved_by_buttons_and_by_numbers_and_not_out_of_its_box() -> None:
    test = opened(two)
    first = game(test)
    test.number_input(key="toy two point").set_value(3).run()
    press(test, "Down")
    moved = game(test)
    x, y = first.poison[3].tolist()
    assert moved.poison[3].tolist() == pytest.approx([x, y - 0.05])
    assert not torch.equal(moved.weights, first.weights)
    test.number_input(key="toy two x").set_value(x + 0.3)
    press(test, "Move point")
    assert game(test).poison[3].tolist() == pytest.approx([x + 0.3, y - 0.05])
    test.number_input(key="toy two x").set_value(x + 0.9)
    press(test, "Move point")
    assert [error.value.split(":")[0] for error in test.error] == ["Poison point 3 was not moved"]
    assert "x must be in [" in test.error[0].value
    assert game(test).poison[3].tolist() == pytest.approx([x + 0.3, y - 0.05])
    for _ in range(3):
        button(test, "Right").click().run() if not button(test, "Right").disabled else None
    assert button(test, "Right").disabled  # at the edge
    assert game(test).poison[3].tolist() == pytest.approx([x + 0.4, y - 0.05])


def test_other_settings_begin_anew() -> None:
    test = press(opened(two), "Whole step")
    test.slider(key="toy two epsilon").set_value(0.2).run()
    assert game(test).upper_steps == 0
    assert game(test).settings == replace(SETTINGS, epsilon=0.2)
    test.slider(key="toy two count").set_value(5).run()
    assert len(game(test).poison) == 5
    assert not test.exception


def test_the_formula_has_the_numbers_of_the_chosen_point() -> None:
    test = opened(two)
    assert "dfrac" not in words(test)
    test.session_state["toy two formula"] = True
    test.run()
    shown = words(test)
    for value in [*game(test).p.tolist(), *toy.hypergradient(game(test))[0].tolist()]:
        assert f"{value:.4f}" in shown


def test_one_level_trains_a_victim_until_it_stands_still() -> None:
    test = opened(one)
    assert game(press(test, "One step"), "one").level == 1
    assert len(game(press(test, "Ten steps"), "one").losses) == 11
    press(test, "Play")
    assert len(game(test, "one").losses) > 11
    test.select_slider(key="toy one regularisation").set_value(0.3).run()
    assert game(test, "one").losses == ()
    assert not test.session_state["toy one playing"]
    press(test, "Play")
    for _ in range(200):
        if not test.session_state["toy one playing"]:
            break
        test.run()
    state = game(test, "one")
    torch.testing.assert_close(state.weights, state.clean, rtol=0, atol=0.05)
    assert "poison" not in words(test)
