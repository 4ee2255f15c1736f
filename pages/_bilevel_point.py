"""One poison point of the plane: chosen by a click or its number, moved by hand, and its hypergradient as a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from engine.figures.images import selected

if TYPE_CHECKING:
    from engine.toy import State

NUDGE = 0.05  # what an arrow button moves a point by, at most
ARROWS = (
    ("Left", ":material/arrow_back:", 0, -1),
    ("Right", ":material/arrow_forward:", 0, 1),
    ("Up", ":material/arrow_upward:", 1, 1),
    ("Down", ":material/arrow_downward:", 1, -1),
)


def by_hand(state: State, playing: bool) -> None:
    """Choosing a poison point and moving it, by keyboard alone too."""
    st.session_state["toy two point"] = index = chosen(state)
    places = state.poison[index].tolist()
    for name, value in zip("xy", places, strict=True):
        st.session_state[f"toy two {name}"] = round(value, 3)
    compared = ""
    if state.before_hand is not None:
        compared = (
            f" You: **{state.history[-1].retrained:.3f}**; {'the attacker' if state.upper_steps else 'before'}: "
            f"**{state.before_hand:.3f}** (mean radius, fully trained)."
        )
    st.markdown(f"**Your turn.** Click an orange point, then move it.{compared}")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.number_input(
            "Poison point",
            0,
            len(state.poison) - 1,
            key="toy two point",
            width=140,
            help="Or click a diamond in the chart.",
        )
        with (
            st.form("toy two place", border=False, width="content"),  # which sends what was typed, and nothing stale
            st.container(horizontal=True, vertical_alignment="bottom", width="content"),
        ):
            for name in "xy":
                st.number_input(name, step=NUDGE, format="%.3f", key=f"toy two {name}", disabled=playing, width=140)
            st.form_submit_button("Move point", key="toy two move", on_click=_typed, disabled=playing)
        with st.container(horizontal=True, width="content"):  # in one row, wherever that is
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
            "A point moved by hand stays inside its box (dotted: ε, L∞). The victim is then fully retrained and the "
            "linear system solved, so the boundary, discs and arrows follow at once."
        )


def chosen(state: State) -> int:
    """The index of the chosen point: the first where there are no longer as many."""
    index = st.session_state.get("toy two point", 0)
    return index if 0 <= index < len(state.poison) else 0


def _room(state: State, index: int, axis: int, sign: int) -> float:
    """How far a button may move the point: NUDGE, or what is left to the edge."""
    from engine import toy

    edge = toy.box(state, index)[sign > 0][axis]
    return max(0.0, min(NUDGE, sign * (edge - float(state.poison[index, axis]))))


def _typed() -> None:
    """Callback: the chosen point moved to the coordinates typed; those that were left alone stay exact."""
    state = st.session_state["toy two state"]
    typed, now = [st.session_state[f"toy two {name}"] for name in "xy"], state.poison[chosen(state)].tolist()
    _move([new if abs(new - old) > 5e-4 else old for new, old in zip(typed, now, strict=True)])


def _put(axis: int, value: float) -> None:
    """Callback: one coordinate of the chosen point set."""
    state = st.session_state["toy two state"]
    xy = state.poison[chosen(state)].tolist()
    xy[axis] = value
    _move(xy)


def _move(xy: list[float]) -> None:
    """The chosen point put at xy, or a sentence that says why not."""
    from engine import toy

    state = st.session_state["toy two state"]
    index = chosen(state)
    try:
        st.session_state["toy two state"] = toy.settled(toy.move_point(state, index, (xy[0], xy[1])))
    except ValueError as error:
        st.session_state["toy two error"] = f"Poison point {index} was not moved: {error}."


def clicked() -> None:
    """Callback: a click on a poison point chooses it; other points are no poison."""
    if (index := selected(st.session_state["toy two plane"].selection.points)) is not None:
        st.session_state["toy two point"] = int(index)


def formula(state: State) -> None:
    """The hypergradient of the chosen point, symbol by symbol."""
    from engine import hypergradient, toy

    opened = st.expander("The formula with the numbers of the chosen point", on_change="rerun", key="toy two formula")
    if not opened.open:
        return
    index = chosen(state)
    product = hypergradient.hessian(toy.lower_loss(state), state.weights, state.poison)
    g_ww = [product(row).tolist() for row in state.weights.new_tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]])]
    f_w, h = toy.upper_slope(state).tolist(), toy.hypergradient(state)[index].tolist()
    with opened:
        st.markdown(
            "How the mean radius *f* changes with a poison point *x*, where the victim's weights "
            "*w* = (w₁, w₂, b) minimise the training loss *g*:"
        )
        # all inline: a displayed formula scrolls, where the keyboard cannot follow
        st.markdown(r"$\dfrac{df}{dx} = f_x - g_{xw}\,p, \qquad (g_{ww} + \text{damping} \cdot I)\,p = f_w$")
        matrices = (
            rf"g_{{ww}} = {_matrix(g_ww)}",
            rf"f_w = {_matrix([[v] for v in f_w])}",
            rf"p = {_matrix([[v] for v in state.p.tolist()])}",
        )
        st.markdown(", &emsp; ".join(f"${each}$" for each in matrices) + ", &emsp; $f_x = 0$, damping 0")
        st.markdown(rf"$\dfrac{{df}}{{dx_{{{index}}}}} = -(g_{{xw}}\,p)_{{{index}}} = {_matrix([[v] for v in h])}$")
        st.caption(
            "f_x is 0, since moving a poison point moves no held-out point. Damping is 0, since regularisation alone "
            "makes g_ww invertible here. p comes from the last solve: after lower steps solve again; it is exact once "
            "the victim has converged."
        )


def _matrix(rows: list[list[float]]) -> str:
    body = r" \\ ".join(" & ".join(f"{value:.4f}" for value in row) for row in rows)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"
