"""The bilevel problem in the plane as the lesson shows it: its figures, and its page driven as a person would."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from engine import toy
from engine.figures import toy as toy_figures
from engine.figures.style import alt
from tests.app import button, words
from tests.game import SETTINGS, attacked, begun, same

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


def test_a_role_looks_alike_in_both_figures_and_like_nothing_else_in_their_legends() -> None:
    plane, measured = toy_figures.plane(attacked(), chosen=3), toy_figures.measured(attacked())
    board, curves = ({trace.name: trace.line for trace in figure.data} for figure in (plane, measured))
    looks = {name: (line.color, line.dash) for name, line in {**board, **curves}.items()}
    assert looks["victim now"] == looks["radius now"] == looks["boundary now"]
    assert looks["clean victim"] == looks["radius, clean victim"] == looks["boundary beside"]
    roles = [looks[name] for name in ("victim now", "clean victim", "random moves of size ε", "trained to the end")]
    assert [len(set(each)) for each in zip(*roles, strict=True)] == [4, 4]
    for figure in (plane, measured):
        shown = [trace for trace in figure.data if trace.showlegend is not False]
        marks = {(t.mode, t.line.color, t.line.dash, t.marker.color, str(t.marker.symbol)) for t in shown}
        assert len(marks) == len(shown)


def test_training_shows_loss_and_mean_radius_over_all_steps() -> None:
    state = toy.lower_step(toy.lower_step(begun()))
    loss, _, radius, _ = toy_figures.training(state).data
    assert list(loss.y[:2]) == list(state.losses)
    assert list(radius.y) == [*state.reached, toy.mean_radius(state, state.weights)]
    assert len(set(radius.y)) == 3


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
    lower = game(press(test, "Train"))
    assert (len(lower.losses), lower.upper_steps) == (1, 0)
    assert "**1** The victim learns on the poisoned points. **(ran last)**" in words(test)
    assert game(press(test, "Ask")).level == 2
    assert "how the trained line would move. **(ran last)**" in words(test)
    upper = game(press(test, "Move"))
    assert (len(upper.losses), upper.upper_steps) == (1, 1)
    assert words(test).count("(ran last)") == 2  # the step, and what was measured after it
    assert game(press(test, "All three")).upper_steps == 2
    assert len(test.get("plotly_chart")) == 2
    assert same(game(press(test, "Reset")), first)


def test_it_plays_until_it_is_paused() -> None:
    test = opened(two)
    press(test, "Play")
    assert game(test).upper_steps > 0
    assert words(test).count("runs now") == 4
    assert button(test, "Train").disabled
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
    assert f"You: **{moved.history[-1].retrained:.3f}**; before: **{first.history[-1].retrained:.3f}**" in words(test)
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
    test = press(opened(two), "All three")
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
