"""The bilevel problem in the plane, live: `one_level()` is a victim that trains, `two_levels()` an attacker above it.

The game is one value of engine.toy in the session's state. torch comes with the first call, not with the import.
While it plays, a fragment runs by itself and does several steps before it draws.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from engine import figures

if TYPE_CHECKING:
    from engine.toy import State

SPEEDS = {"Part by part": 0, "Normal": 15, "Fast": 45}  # whole steps a second; 0: a part of one for each drawing
EVERY, EVERY_PART = 0.2, 0.8  # seconds between two drawings
INNER_SPEED = 10  # steps of the victim a second, where there is one level
INNER_MOST, INNER_STILL = 300, 2e-3  # it stops by itself after so many, or where the slope |g_w| is this small
NUDGE = 0.05  # what an arrow button moves a point by, at most
PLOT = {"displayModeBar": False}
ARROWS = (
    ("Left", ":material/arrow_back:", 0, -1),
    ("Right", ":material/arrow_forward:", 0, 1),
    ("Up", ":material/arrow_upward:", 1, 1),
    ("Down", ":material/arrow_downward:", 1, -1),
)


def one_level() -> None:
    """Gradient descent of a victim, with nobody who attacks."""
    every = EVERY if st.session_state.get("toy one playing") else None
    st.fragment(_one_level, run_every=every)(every is not None)


def two_levels() -> None:
    """The same victim, and above it an attacker who moves training points."""
    every = _every_two()
    st.fragment(_two_levels, run_every=every)(every)


def _every_two() -> float | None:
    """Seconds between two drawings, or None while it does not play."""
    if not st.session_state.get("toy two playing"):
        return None
    return EVERY if _speed() else EVERY_PART


def _speed() -> int:
    return SPEEDS[st.session_state.get("toy two speed") or "Normal"]


# --- one level ---


def _one_level(drawn_as_playing: bool) -> None:
    from engine import toy, toy_figures

    columns = st.columns(3)
    chosen = _noise_and_regularisation("one", columns)
    with columns[2]:
        seed = _seed("one")
    state = _state("one", chosen | dict(epsilon=0.0, poison_points=0), seed)
    if state is None:
        return
    if st.session_state.get("toy one playing"):
        state = _descended(state, _due("one", INNER_SPEED))
        done = state.slope < INNER_STILL or len(state.losses) >= INNER_MOST
        st.session_state.update({"toy one state": state, "toy one playing": not done})
    playing = bool(st.session_state.get("toy one playing"))
    if playing != drawn_as_playing:
        st.rerun()
    with st.container(horizontal=True):
        _play_button("one", playing)
        _button("one", "One step", ":material/step:", _one_inner, disabled=playing)
        _button("one", "Ten steps", ":material/keyboard_double_arrow_right:", _ten_inner, disabled=playing)
        _reset_button("one")
    left, right = st.columns([2, 1])
    with left:
        figure = toy_figures.plane(state, attacker=False)
        st.plotly_chart(figure, alt=figures.alt(figure), config=PLOT, key="toy one plane")
    with right:
        now, full = toy.mean_radius(state, state.weights), toy.mean_radius(state, state.clean)
        st.markdown(
            f"After **{len(state.losses)}** steps of gradient descent the mean certified radius of held-out points is "
            f"**{now:.3f}** (L2, units of the plane); fully trained it will be {full:.3f}."
        )
        loss = float(toy.lower_loss(state)(state.weights, state.poison))
        figure = toy_figures.training(state.losses, loss)
        st.plotly_chart(figure, alt=figures.alt(figure), config=PLOT, key="toy one losses")
        st.caption(
            "Each step moves the boundary downhill on the training loss: the mean over all filled points, each seen "
            "under Gaussian noise. A disc is a certificate: as far as that (L2) its point may move, and the smoothed "
            "victim's answer stays. The boundary is a line, so the disc just touches it. A point on the wrong side has "
            "no disc."
        )


def _descended(state: State, steps: int) -> State:
    from engine import toy

    for _ in range(steps):
        state = toy.inner_step(state)
    return state


def _one_inner(state: State) -> State:
    return _descended(state, 1)


def _ten_inner(state: State) -> State:
    return _descended(state, 10)


# --- two levels ---


def _two_levels(drawn_every: float | None) -> None:
    from engine import toy_figures

    state = _state("two", *_two_levels_settings())
    if state is None:
        return
    if st.session_state.get("toy two playing"):
        state = _played(state)
        st.session_state.update({"toy two state": state, "toy two playing": not state.done})
    if _every_two() != drawn_every:
        st.rerun()
    playing = drawn_every is not None
    _buttons(playing, state)
    left, right = st.columns([3, 2])
    with left:
        figure = toy_figures.plane(state, chosen=_chosen(state))
        st.plotly_chart(
            figure,
            alt=figures.alt(figure),
            config=PLOT,
            key="toy two plane",
            on_select=_clicked,
            selection_mode="points",
        )
    with right:
        _captions(state, playing)
        figure = toy_figures.measured(state)
        st.plotly_chart(figure, alt=figures.alt(figure), config=PLOT, key="toy two measured")
    _by_hand(state, playing)
    _formula(state)


def _two_levels_settings() -> tuple[dict[str, Any], int]:
    from engine import toy

    columns = st.columns([3, 3, 3, 3, 2])
    with columns[0]:
        epsilon = st.slider(
            "Budget ε (L∞, units of the plane)",
            *toy.EPSILONS,
            0.4,
            0.05,
            key="toy two epsilon",
            help="How far each poison point may move from its clean place, in each coordinate. Another value starts "
            "anew, as with all of these.",
        )
    chosen = _noise_and_regularisation("two", columns[1:3])
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
        seed = _seed("two")
    return chosen | dict(epsilon=epsilon, poison_points=count), seed


def _played(state: State) -> State:
    """Several whole steps, or the next part of one."""
    from engine import toy

    if not _speed():
        return {1: toy.solve_linear, 2: toy.outer_step}.get(state.level, _ten_inner)(state)
    for _ in range(_due("two", _speed())):
        if not state.done:
            state = toy.whole_step(state)
    return state


def _buttons(playing: bool, state: State) -> None:
    from engine import toy

    ended = playing or state.outer_steps >= toy.MOST_STEPS
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _play_button("two", playing, disabled=state.done)
        _button("two", "One inner step", ":material/looks_one:", toy.inner_step, disabled=playing)
        _button("two", "Solve the linear system", ":material/looks_two:", toy.solve_linear, disabled=playing)
        _button("two", "One outer step", ":material/looks_3:", toy.outer_step, disabled=ended)
        _button("two", "One whole step", ":material/step:", toy.whole_step, disabled=ended)
        _reset_button("two")
        st.segmented_control("Speed", list(SPEEDS), default="Normal", required=True, key="toy two speed")


def _captions(state: State, playing: bool) -> None:
    """The four parts of an outer step, with their numbers; those that run, or ran last, are marked."""
    from engine import toy

    marked = {1, 2, 3, 4} if playing and _speed() else {3, 4} if state.level == 3 else {state.level}
    word = "runs now" if playing else "ran last"
    loss = float(toy.lower_loss(state)(state.weights, state.poison))
    clean = toy.mean_radius(state, state.clean)
    last, control = state.history[-1].retrained, statistics.mean(state.control)
    moved = "no step yet" if state.moved == float("inf") else f"last step: at most {state.moved:.4f}"
    parts = (
        ("The victim learns on the poisoned points.", f"Training loss {loss:.4f}, {len(state.losses)} inner steps"),
        (
            "The attacker asks how the victim's solution would move: a linear system.",
            f"p = ({', '.join(f'{value:.2f}' for value in state.p.tolist())}), relative residual {state.residual:.0e}",
        ),
        (
            "Poison points step against the hypergradient and are cut at ε.",
            f"{state.outer_steps} outer steps; {moved}",
        ),
        (
            "Radii of held-out points are measured, with a victim trained to the end.",
            f"Mean {last:.3f}, clean {clean:.3f}: {_drop(last, clean)}; random moves of size ε: "
            f"{_drop(control, clean)}",
        ),
    )
    for number, (text, numbers) in enumerate(parts, start=1):
        now = number in marked
        icon = ":material/play_arrow:" if now else ":material/radio_button_unchecked:"
        st.markdown(f"{icon} **{number}** {text}{f' **({word})**' if now else ''}  \n:small[{numbers}]")
    if state.done:
        why = "poison points no longer move" if state.moved < toy.STILL else f"{toy.MOST_STEPS} outer steps are done"
        st.caption(f":material/check_circle: Finished: {why}.")


def _drop(value: float, clean: float) -> str:
    change = 1 - value / clean
    return f"{abs(change):.0%} {'less' if change >= 0 else 'more'}"


def _by_hand(state: State, playing: bool) -> None:
    """Choosing a poison point and moving it, by keyboard alone too."""
    if "toy two point" not in st.session_state or st.session_state["toy two point"] >= len(state.poison):
        st.session_state["toy two point"] = 0
    index = _chosen(state)
    places = state.poison[index].tolist()
    for name, value in zip("xy", places, strict=True):
        st.session_state[f"toy two {name}"] = round(value, 3)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.number_input(
            "Poison point",
            0,
            len(state.poison) - 1,
            key="toy two point",
            width=150,
            help="Or click on a diamond in the chart.",
        )
        for axis in (0, 1):
            st.number_input(
                f"Its {'xy'[axis]}",
                step=NUDGE,
                format="%.3f",
                key=f"toy two {'xy'[axis]}",
                on_change=_typed,
                args=(axis,),
                disabled=playing,
                width=150,
            )
        for label, icon, axis, sign in ARROWS:
            move = _room(state, index, axis, sign)
            st.button(
                label,
                icon=icon,
                key=f"toy two {label}",
                on_click=_put,
                args=(axis, places[axis] + sign * move),
                disabled=playing or move < 1e-9,
                help=f"Moves the point by {NUDGE}, or to the edge of its box.",
            )
    if error := st.session_state.pop("toy two error", None):
        st.error(error)
    else:
        st.caption(
            "A point moved by hand stays inside its box. The victim is then trained to the end and the linear system "
            "solved at once, so that boundary, discs and arrows follow."
        )


def _chosen(state: State) -> int:
    return min(st.session_state.get("toy two point", 0), len(state.poison) - 1)


def _room(state: State, index: int, axis: int, sign: int) -> float:
    """How far a button may move the point: NUDGE, or what is left to the edge."""
    from engine import toy

    edge = toy.box(state, index)[sign > 0][axis]
    return max(0.0, min(NUDGE, sign * (edge - float(state.poison[index, axis]))))


def _typed(axis: int) -> None:
    _put(axis, st.session_state[f"toy two {'xy'[axis]}"])


def _put(axis: int, value: float) -> None:
    """Callback: one coordinate of the chosen point set by hand, or a sentence that says why not."""
    from engine import toy

    state = st.session_state["toy two state"]
    index = _chosen(state)
    xy = state.poison[index].tolist()
    xy[axis] = value
    try:
        st.session_state["toy two state"] = toy.settled(toy.move_point(state, index, tuple(xy)))
    except ValueError as error:
        text = str(error)
        st.session_state["toy two error"] = f"Poison point {index} was not moved: {text}."


def _clicked() -> None:
    """Callback: a click on a poison point chooses it; other points are no poison."""
    points = st.session_state["toy two plane"]["selection"]["points"]
    indices = [point["customdata"] for point in points if point.get("customdata")]
    if indices:
        first = indices[0]
        st.session_state["toy two point"] = int(first[0] if isinstance(first, list | tuple) else first["0"])


def _formula(state: State) -> None:
    """The hypergradient of the chosen point, symbol by symbol."""
    from engine import hypergradient, toy

    opened = st.expander("The formula, with the numbers of the chosen point", on_change="rerun", key="toy two formula")
    if not opened.open:
        return
    index = _chosen(state)
    product = hypergradient.hessian(toy.lower_loss(state), state.weights, state.poison)
    g_ww = [product(row).tolist() for row in state.weights.new_tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]])]
    f_w, h = toy.upper_slope(state).tolist(), toy.hypergradient(state)[index].tolist()
    with opened:
        st.markdown(
            "How the mean radius *f* changes with a poison point *x*, where the victim's weights "
            "*w* = (w₁, w₂, b) minimise the training loss *g*:"
        )
        st.latex(r"\frac{df}{dx} = f_x - g_{xw}\,p, \qquad (g_{ww} + \text{damping} \cdot I)\,p = f_w")
        st.latex(rf"g_{{ww}} = {_matrix(g_ww)} \quad f_w = {_matrix([[v] for v in f_w])}")
        st.latex(rf"p = {_matrix([[v] for v in state.p.tolist()])} \quad f_x = 0 \quad \text{{damping}} = 0")
        st.latex(rf"\frac{{df}}{{dx_{{{index}}}}} = -(g_{{xw}}\,p)_{{{index}}} = {_matrix([[v] for v in h])}")
        st.caption(
            "f_x is 0, since held-out points are nobody's to move. Damping is 0, since regularisation alone makes "
            "g_ww invertible here. p is of the last solve: solve again after inner steps, and it is exact again once "
            "the victim has converged."
        )


def _matrix(rows: list[list[float]]) -> str:
    body = r" \\ ".join(" & ".join(f"{value:.4f}" for value in row) for row in rows)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"


# --- what both share ---


def _state(which: str, chosen: dict[str, Any], seed: int) -> State | None:
    """The session's game, begun anew where settings are others; None, with a sentence, where they are not allowed."""
    from engine import toy

    try:
        settings = toy.Settings(**chosen)
    except ValueError as error:
        st.error(f"Not allowed: {error}.")
        return None
    state: State | None = st.session_state.get(f"toy {which} state")
    if state is None or (state.settings, state.seed) != (settings, seed):
        state = toy.start(settings, seed)
        if which == "two":
            state = replace(toy.settled(state), level=0)
        st.session_state.update({f"toy {which} state": state, f"toy {which} playing": False})
    return state


def _due(which: str, speed: int) -> int:
    """Steps since the last drawing at so many a second: the speed does not depend on how fast a browser draws."""
    now = time.monotonic()
    last = st.session_state.get(f"toy {which} drawn", now - EVERY)
    st.session_state[f"toy {which} drawn"] = now
    return max(1, round(speed * min(now - last, 1.0)))


def _noise_and_regularisation(which: str, columns: Any) -> dict[str, float]:
    from engine import toy

    with columns[0]:
        sigma = st.slider(
            "Noise level σ (per coordinate)",
            *toy.SIGMAS,
            0.2,
            0.05,
            key=f"toy {which} sigma",
            help="Standard deviation of the Gaussian noise under which the victim sees its training points.",
        )
    with columns[1]:
        regularisation = st.select_slider(
            "Regularisation λ",
            (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
            0.01,
            key=f"toy {which} regularisation",
            help="The victim's training loss has λ/2·|w|² added. More of it makes training faster, and the victim "
            "harder to bend.",
        )
    return dict(sigma=sigma, regularisation=regularisation)


def _seed(which: str) -> int:
    return int(
        st.number_input("Seed", 0, 999, 0, key=f"toy {which} seed", help="Of the points, and of the random moves.")
    )


def _button(which: str, label: str, icon: str, step: Any, *, disabled: bool) -> None:
    st.button(label, icon=icon, key=f"toy {which} {label}", on_click=_do, args=(which, step), disabled=disabled)


def _do(which: str, step: Any) -> None:
    st.session_state[f"toy {which} state"] = step(st.session_state[f"toy {which} state"])


def _play_button(which: str, playing: bool, *, disabled: bool = False) -> None:
    label, icon = ("Pause", ":material/pause:") if playing else ("Play", ":material/play_arrow:")
    st.button(label, icon=icon, key=f"toy {which} play", on_click=_toggle, args=(which,), disabled=disabled)


def _toggle(which: str) -> None:
    st.session_state[f"toy {which} playing"] = not st.session_state.get(f"toy {which} playing")
    st.session_state.pop(f"toy {which} drawn", None)


def _reset_button(which: str) -> None:
    st.button("Reset", icon=":material/restart_alt:", key=f"toy {which} reset", on_click=_reset, args=(which,))


def _reset(which: str) -> None:
    for name in ("state", "playing"):
        st.session_state.pop(f"toy {which} {name}", None)
