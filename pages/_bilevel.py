"""The bilevel problem in the plane, live: `one_level()` is a victim that trains, `two_levels()` an attacker above it.

The game is one value of engine.toy in the session's state. torch comes with the first call, not with the import.
While it plays, a fragment runs by itself and does several steps before it draws.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import streamlit as st

from engine.report import sentences
from pages import _bilevel_game, _bilevel_point

if TYPE_CHECKING:
    from engine.toy import State

SPEEDS = {"Part by part": 0, "Normal": 15, "Fast": 45}  # whole steps a second; 0: a part of one for each drawing
EVERY_PART = 0.8  # seconds between two drawings that show one part each
INNER_SPEED = 10  # steps of the victim a second, where there is one level
INNER_MOST, INNER_STILL = 300, 2e-3  # it stops by itself after so many, or where the slope |g_w| is this small


def one_level() -> None:
    """Gradient descent of a victim, with nobody who attacks."""
    every = _bilevel_game.EVERY if st.session_state.get("toy one playing") else None
    st.fragment(_one_level, run_every=every)(every is not None)


def two_levels() -> None:
    """The same victim, and above it an attacker who moves training points."""
    every = _every_two()
    st.fragment(_two_levels, run_every=every)(every)


def _every_two() -> float | None:
    """Seconds between two drawings, or None while it does not play."""
    if not st.session_state.get("toy two playing"):
        return None
    return _bilevel_game.EVERY if _speed() else EVERY_PART


def _speed() -> int:
    return SPEEDS[st.session_state.get("toy two speed") or "Normal"]


# --- one level ---


def _one_level(drawn_as_playing: bool) -> None:
    from engine import toy
    from engine.figures import toy as toy_figures

    buttons, plane, beside, below, settings = _bilevel_game.parts()
    with settings:
        sigma = _bilevel_game.noise_of("one")
        with st.expander("More settings"):
            regularisation, seed = _bilevel_game.regularisation_of("one"), _bilevel_game.seed_of("one")
    chosen = dict(sigma=sigma, regularisation=regularisation, epsilon=0.0, poison_points=0)
    state = _bilevel_game.state_of("one", chosen, seed)
    if state is None:
        return
    if st.session_state.get("toy one playing"):
        state = _descended(state, _bilevel_game.steps_due("one", INNER_SPEED))
        done = state.slope < INNER_STILL or len(state.losses) >= INNER_MOST
        st.session_state.update({"toy one state": state, "toy one playing": not done})
    playing = bool(st.session_state.get("toy one playing"))
    if playing != drawn_as_playing:
        st.rerun()
    with buttons, st.container(horizontal=True, vertical_alignment="center"):
        _bilevel_game.play_button("one", playing)
        _bilevel_game.reset_button("one")
        _bilevel_game.step_button("one", "One step", ":material/step:", toy.lower_step, disabled=playing)
        _bilevel_game.step_button(
            "one", "Ten steps", ":material/keyboard_double_arrow_right:", _ten_lower, disabled=playing
        )
    with plane:
        _bilevel_game.plot(toy_figures.plane(state, attacker=False), "toy one plane")
    with below:
        st.caption(
            "Each step lowers the training loss: the mean over all filled points, each seen under Gaussian noise. A "
            "disc is a certificate of a held-out point (L2). The boundary is a line, so each disc just touches it; "
            f"points on the wrong side have none. To keep the picture clear {toy_figures.DISCS} of the {toy.HELD_OUT} "
            "held-out points show theirs; the mean is over all."
        )
    with beside:
        now, full = toy.mean_radius(state, state.weights), toy.mean_radius(state, state.clean)
        st.markdown(
            f"After **{len(state.losses)}** steps of gradient descent the mean certified radius of held-out points is "
            f"**{now:.3f}** (L2, units of the plane); when fully trained, {full:.3f}."
        )
        _bilevel_game.plot(toy_figures.training(state), "toy one losses")


def _descended(state: State, steps: int) -> State:
    from engine import toy

    for _ in range(steps):
        state = toy.lower_step(state)
    return state


def _ten_lower(state: State) -> State:
    return _descended(state, 10)


# --- two levels ---


def _two_levels(drawn_every: float | None) -> None:
    from engine.figures import toy as toy_figures

    buttons, plane, beside, below, settings = _bilevel_game.parts()
    with settings:
        state = _bilevel_game.state_of("two", *_two_levels_settings())
    if state is None:
        return
    if drawn_every and drawn_every == _every_two():
        state = _played(state)
        st.session_state.update({"toy two state": state, "toy two playing": not state.done})
    if drawn_every != _every_two():
        st.rerun()
    playing = drawn_every is not None
    with buttons, st.container(horizontal=True, vertical_alignment="center"):
        _buttons(playing, state)
    with plane:
        figure = toy_figures.plane(state, chosen=_bilevel_point.chosen(state))
        _bilevel_game.plot(figure, "toy two plane", on_select=_bilevel_point.clicked, selection_mode="points")
    with beside, st.container(gap="xsmall"):
        _captions(state, playing)
    with below:
        _bilevel_game.plot(toy_figures.measured(state), "toy two measured")
    _bilevel_point.by_hand(state, playing)
    _bilevel_point.formula(state)


def _two_levels_settings() -> tuple[dict[str, Any], int]:
    from engine import toy

    epsilon = st.slider(
        "Budget ε (L∞, units of the plane)",
        *toy.EPSILONS,
        0.4,
        0.05,
        key="toy two epsilon",
        help="How far each poison point may move in each coordinate. Any change of these settings starts over.",
    )
    sigma = _bilevel_game.noise_of("two")
    with st.expander("More settings"):
        regularisation = _bilevel_game.regularisation_of("two")
        count = st.slider(
            "Poison points",
            1,
            toy.TARGET_POINTS,
            toy.TARGET_POINTS,
            key="toy two count",
            help=f"How many of the {toy.TARGET_POINTS} training points of the target class the attacker may move. "
            "Labels stay as they are.",
        )
        seed = _bilevel_game.seed_of("two")
    return dict(epsilon=epsilon, sigma=sigma, regularisation=regularisation, poison_points=count), seed


def _played(state: State) -> State:
    """Several whole steps, or the next part of one."""
    from engine import toy

    if not _speed():
        return {1: toy.solve_linear, 2: toy.upper_step}.get(state.level, _ten_lower)(state)
    for _ in range(_bilevel_game.steps_due("two", _speed())):
        if not state.done:
            state = toy.whole_step(state)
    return state


def _buttons(playing: bool, state: State) -> None:
    from engine import toy

    ended = playing or state.upper_steps >= toy.MOST_STEPS
    _bilevel_game.play_button("two", playing, disabled=state.done)
    _bilevel_game.reset_button("two")
    st.segmented_control(
        "Speed", list(SPEEDS), default="Normal", required=True, key="toy two speed", label_visibility="collapsed"
    )
    with st.container(horizontal=True, width="content"):
        _bilevel_game.step_button("two", "Train", ":material/looks_one:", toy.lower_step, disabled=playing)
        _bilevel_game.step_button("two", "Ask", ":material/looks_two:", toy.solve_linear, disabled=playing)
        _bilevel_game.step_button("two", "Move", ":material/looks_3:", toy.upper_step, disabled=ended)
        _bilevel_game.step_button("two", "All three", ":material/step:", toy.whole_step, disabled=ended)


def _captions(state: State, playing: bool) -> None:
    """The four parts of an upper step, with their numbers; those that run, or ran last, are marked."""
    from engine import toy

    marked = {1, 2, 3, 4} if playing and _speed() else {3, 4} if state.level == 3 else {state.level}
    word = "runs now" if playing else "ran last"
    loss = float(toy.lower_loss(state)(state.weights, state.poison))
    clean = toy.mean_radius(state, state.clean)
    last, control = state.history[-1].retrained, statistics.mean(state.control)
    moved = "" if state.moved == float("inf") else f"; the last one moved points by at most {state.moved:.4f}"
    parts = (
        ("The victim learns on the poisoned points.", f"Training loss {loss:.4f}, {len(state.losses)} lower steps"),
        (
            "The attacker asks how the trained line would move.",
            f"One linear system gives the hypergradient; solved with residual {state.residual:.0e}",
        ),
        (
            "Poison points move against the hypergradient, inside their boxes of ε.",
            f"{sentences.several(state.upper_steps, 'upper step')}{moved}",
        ),
        (
            "The radii of held-out points are measured.",
            f"Mean {last:.3f} when fully trained, clean {clean:.3f}: {_drop(last, clean)}; random moves: "
            f"{_drop(control, clean)}",
        ),
    )
    for number, (text, numbers) in enumerate(parts, start=1):
        now = number in marked
        icon = ":material/play_arrow:" if now else ":material/radio_button_unchecked:"
        st.markdown(f"{icon} **{number}** {text}{f' **({word})**' if now else ''}  \n:small[{numbers}]")
    if not state.done:
        st.caption(f"It ends when the poison points stop moving, or after {toy.MOST_STEPS} upper steps.")
    else:
        why = "the poison points stopped moving" if state.moved < toy.STILL else f"{toy.MOST_STEPS} upper steps done"
        st.caption(f":material/check_circle: Finished: {why}.")


def _drop(value: float, clean: float) -> str:
    change = 1 - value / clean
    return f"radius {sentences.of_hundred(abs(change))} {'smaller' if change >= 0 else 'larger'}"
