"""The bilevel problem in the plane, live: `one_level()` is a victim that trains, `two_levels()` an attacker above it.

The game is one value of engine.toy in the session's state. torch comes with the first call, not with the import.
While it plays, a fragment runs by itself and does several steps before it draws.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import streamlit as st

from engine.figures import style
from engine.report import sentences
from pages import _bilevel_game, _bilevel_point

if TYPE_CHECKING:
    from engine.toy import State

SPEEDS = {"Part by part": 0, "Normal": 15, "Fast": 45}  # whole steps a second; 0: a part of one for each drawing
EVERY_PART = 0.8  # seconds between two drawings that show one part each
INNER_SPEED = 10  # steps of the victim a second, where there is one level
INNER_MOST, INNER_STILL = 300, 2e-3  # it stops by itself after so many, or where the slope |g_w| is this small
PLOT = {"displayModeBar": False}


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

    columns = st.columns(3)
    chosen = _bilevel_game.noise_and_regularisation("one", columns)
    with columns[2]:
        seed = _bilevel_game.seed_of("one")
    state = _bilevel_game.state_of("one", chosen | dict(epsilon=0.0, poison_points=0), seed)
    if state is None:
        return
    if st.session_state.get("toy one playing"):
        state = _descended(state, _bilevel_game.steps_due("one", INNER_SPEED))
        done = state.slope < INNER_STILL or len(state.losses) >= INNER_MOST
        st.session_state.update({"toy one state": state, "toy one playing": not done})
    playing = bool(st.session_state.get("toy one playing"))
    if playing != drawn_as_playing:
        st.rerun()
    with st.container(horizontal=True):
        _bilevel_game.play_button("one", playing)
        _bilevel_game.step_button("one", "One step", ":material/step:", _one_lower, disabled=playing)
        _bilevel_game.step_button(
            "one", "Ten steps", ":material/keyboard_double_arrow_right:", _ten_lower, disabled=playing
        )
        _bilevel_game.reset_button("one")
    left, right = st.columns([2, 1])
    with left:
        figure = toy_figures.plane(state, attacker=False)
        with _bilevel_game.place_of(figure):
            st.plotly_chart(figure, alt=style.alt(figure), config=PLOT, key="toy one plane")
    with right:
        now, full = toy.mean_radius(state, state.weights), toy.mean_radius(state, state.clean)
        st.markdown(
            f"After **{len(state.losses)}** steps of gradient descent the mean certified radius of held-out points is "
            f"**{now:.3f}** (L2, units of the plane); fully trained it will be {full:.3f}."
        )
        loss = float(toy.lower_loss(state)(state.weights, state.poison))
        figure = toy_figures.training(state.losses, loss)
        with _bilevel_game.place_of(figure):
            st.plotly_chart(figure, alt=style.alt(figure), config=PLOT, key="toy one losses")
        st.caption(
            "Each step moves the boundary downhill on the training loss: the mean over all filled points, each seen "
            "under Gaussian noise. A disc is a certificate: as far as that (L2) its point may move, and the smoothed "
            "victim's answer stays. The boundary is a line, so the disc just touches it. A point on the wrong side has "
            "no disc."
        )


def _descended(state: State, steps: int) -> State:
    from engine import toy

    for _ in range(steps):
        state = toy.lower_step(state)
    return state


def _one_lower(state: State) -> State:
    return _descended(state, 1)


def _ten_lower(state: State) -> State:
    return _descended(state, 10)


# --- two levels ---


def _two_levels(drawn_every: float | None) -> None:
    from engine.figures import toy as toy_figures

    state = _bilevel_game.state_of("two", *_two_levels_settings())
    if state is None:
        return
    if drawn_every and drawn_every == _every_two():
        state = _played(state)
        st.session_state.update({"toy two state": state, "toy two playing": not state.done})
    if drawn_every != _every_two():
        st.rerun()
    playing = drawn_every is not None
    _buttons(playing, state)
    left, right = st.columns([3, 2])
    with left:
        figure = toy_figures.plane(state, chosen=_bilevel_point.chosen(state))
        with _bilevel_game.place_of(figure):
            st.plotly_chart(
                figure,
                alt=style.alt(figure),
                config=PLOT,
                key="toy two plane",
                on_select=_bilevel_point.clicked,
                selection_mode="points",
            )
    with right:
        _captions(state, playing)
        figure = toy_figures.measured(state)
        with _bilevel_game.place_of(figure):
            st.plotly_chart(figure, alt=style.alt(figure), config=PLOT, key="toy two measured")
    _bilevel_point.by_hand(state, playing)
    _bilevel_point.formula(state)


def _two_levels_settings() -> tuple[dict[str, Any], int]:
    from engine import toy

    columns = st.columns([3, 3, 3, 3, 2])
    with columns[0]:
        epsilon = st.slider(
            "Budget ε (L∞)",
            *toy.EPSILONS,
            0.4,
            0.05,
            key="toy two epsilon",
            help="How far each poison point may move from its clean place in each coordinate, in units of the plane. "
            "Another value starts anew, as with all of these.",
        )
    chosen = _bilevel_game.noise_and_regularisation("two", columns[1:3])
    with columns[3]:
        count = st.slider(
            "Poison points",
            1,
            toy.TARGET_POINTS,
            toy.TARGET_POINTS,
            key="toy two count",
            help=f"How many of the {toy.TARGET_POINTS} training points of the target class the attacker may move. "
            "Labels stay as they are.",
        )
    with columns[4]:
        seed = _bilevel_game.seed_of("two")
    return chosen | dict(epsilon=epsilon, poison_points=count), seed


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
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _bilevel_game.play_button("two", playing, disabled=state.done)
        _bilevel_game.step_button("two", "One lower step", ":material/looks_one:", toy.lower_step, disabled=playing)
        _bilevel_game.step_button(
            "two", "Solve the linear system", ":material/looks_two:", toy.solve_linear, disabled=playing
        )
        _bilevel_game.step_button("two", "One upper step", ":material/looks_3:", toy.upper_step, disabled=ended)
        _bilevel_game.step_button("two", "One whole step", ":material/step:", toy.whole_step, disabled=ended)
        _bilevel_game.reset_button("two")
        st.segmented_control("Speed", list(SPEEDS), default="Normal", required=True, key="toy two speed")


def _captions(state: State, playing: bool) -> None:
    """The four parts of an upper step, with their numbers; those that run, or ran last, are marked."""
    from engine import toy

    marked = {1, 2, 3, 4} if playing and _speed() else {3, 4} if state.level == 3 else {state.level}
    word = "runs now" if playing else "ran last"
    loss = float(toy.lower_loss(state)(state.weights, state.poison))
    clean = toy.mean_radius(state, state.clean)
    last, control = state.history[-1].retrained, statistics.mean(state.control)
    p = ", ".join(f"{value:.2f}" for value in state.p.tolist())
    moved = "no step since" if state.moved == float("inf") else f"last step: at most {state.moved:.4f}"
    parts = (
        ("The victim learns on the poisoned points.", f"Training loss {loss:.4f}, {len(state.losses)} lower steps"),
        (
            "The attacker asks how the solution would move.",
            f"Linear system: p = ({p}), residual {state.residual:.0e}",
        ),
        (
            "Poison points step, and are cut at ε.",
            f"{sentences.several(state.upper_steps, 'upper step')} against the hypergradient; {moved}",
        ),
        (
            "Radii of held-out points are measured.",
            f"Mean {last:.3f} when trained to the end, clean {clean:.3f}: {_drop(last, clean)}; random moves: "
            f"{_drop(control, clean)}",
        ),
    )
    for number, (text, numbers) in enumerate(parts, start=1):
        now = number in marked
        icon = ":material/play_arrow:" if now else ":material/radio_button_unchecked:"
        st.markdown(f"{icon} **{number}** {text}{f' **({word})**' if now else ''}  \n:small[{numbers}]")
    if not state.done:
        st.caption(f"It ends when poison points no longer move, or after {toy.MOST_STEPS} upper steps.")
    else:
        why = "poison points no longer move" if state.moved < toy.STILL else f"{toy.MOST_STEPS} upper steps are done"
        st.caption(f":material/check_circle: Finished: {why}.")


def _drop(value: float, clean: float) -> str:
    change = 1 - value / clean
    return f"{abs(change):.0%} {'less' if change >= 0 else 'more'}"
