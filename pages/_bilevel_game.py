"""What one level and two have in common: the session's game, how it is begun and played, and the widgets of both."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from engine.figures import style

if TYPE_CHECKING:
    from engine.toy import State

EVERY = 0.2  # seconds between two drawings
SHARES = (5, 3)  # of the width: of the figure, and of what is beside it


def state_of(which: str, chosen: dict[str, Any], seed: int) -> State | None:
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


def parts() -> tuple[Any, Any, Any, Any, Any]:
    """Places of the buttons, of the figure below them and of what is read beside it; then of what is below the figure,
    and of the settings beside that."""
    buttons = st.container(key="toy-buttons")
    plane, beside = st.columns(SHARES, gap="medium")
    below, settings = st.columns(SHARES, gap="medium")
    return buttons, plane.container(key="toy-figure"), beside.container(key="toy-beside"), below, settings


def plot(figure: Any, key: str, **options: Any) -> None:
    """Draws it in a place of its height: charts are made anew with each figure, and what is below must not jump."""
    with st.container(height=figure.layout.height + 8, border=False):
        st.plotly_chart(figure, alt=style.alt(figure), config={"displayModeBar": False}, key=key, **options)


def steps_due(which: str, speed: int) -> int:
    """Steps since the last drawing at so many a second: the speed does not depend on how fast a browser draws."""
    now = time.monotonic()
    last = st.session_state.get(f"toy {which} drawn", now - EVERY)
    st.session_state[f"toy {which} drawn"] = now
    return max(1, round(speed * min(now - last, 1.0)))


def noise_of(which: str) -> float:
    from engine import toy

    return st.slider(
        "Noise level σ (units of the plane)",
        *toy.SIGMAS,
        0.2,
        0.05,
        key=f"toy {which} sigma",
        help="Standard deviation per coordinate of the noise that the victim is trained with.",
    )


def regularisation_of(which: str) -> float:
    return st.select_slider(
        "Regularisation λ",
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        0.01,
        key=f"toy {which} regularisation",
        help="Adds λ/2·|w|² to the training loss. A larger λ makes training faster and the victim harder to bend.",
    )


def seed_of(which: str) -> int:
    return int(st.number_input("Seed", 0, 999, 0, key=f"toy {which} seed", help="For the points and the random moves."))


def step_button(which: str, label: str, icon: str, step: Any, *, disabled: bool) -> None:
    st.button(label, icon=icon, key=f"toy {which} {label}", on_click=_do, args=(which, step), disabled=disabled)


def _do(which: str, step: Any) -> None:
    st.session_state[f"toy {which} state"] = step(st.session_state[f"toy {which} state"])


def play_button(which: str, playing: bool, *, disabled: bool = False) -> None:
    label, icon = ("Pause", ":material/pause:") if playing else ("Play", ":material/play_arrow:")
    st.button(
        label,
        icon=icon,
        key=f"toy {which} play",
        on_click=_play,
        args=(which, not playing),
        disabled=disabled,
    )


def _play(which: str, playing: bool) -> None:
    st.session_state[f"toy {which} playing"] = playing
    st.session_state.pop(f"toy {which} drawn", None)


def reset_button(which: str) -> None:
    st.button("Reset", icon=":material/restart_alt:", key=f"toy {which} reset", on_click=_reset, args=(which,))


def _reset(which: str) -> None:
    for name in ("state", "playing"):
        st.session_state.pop(f"toy {which} {name}", None)
