"""What a link to the lesson may ask for, checked; anything else is refused with a sentence that names the field."""

import math
from collections.abc import Iterable
from typing import NoReturn

import streamlit as st

HIDEABLE = {
    "questions": "the questions",
    "nav": "Back, Next and the choice of step",
    "sidebar": "the sidebar, and the bar of pages above",
    "controls": "sliders and buttons of the view, which stays as the link sets it",
    "teachers": "the part for teachers",
}
VALUES = ("lesson_image", "lesson_sigma", "lesson_draws", "lesson_n", "lesson_alpha")  # keys of widgets of the views
FIELDS = ("step", "hide", "answers", *VALUES)


def refuse(field: str, allowed: str) -> NoReturn:
    """Ends the page: says what the link's field may be and what it is, and offers to go on without it."""
    st.error(f"This link asks for {field}={st.query_params[field][:60]!r}, but {field} must be {allowed}.")
    st.button("Open the lesson without it", on_click=forget, key="lesson_forget", icon=":material/undo:")
    st.stop()


def forget() -> None:
    """Callback: the address without the lesson's fields."""
    for field in FIELDS:
        st.session_state.pop(field, None)
        if field in st.query_params:
            del st.query_params[field]


def check_number(field: str, low: float, high: float, *, whole: bool = False) -> None:
    """Ends the page if the link gives the field anything but a number in [low, high]."""
    if field not in st.query_params:
        return
    try:
        value = float(st.query_params[field])
    except ValueError:
        value = math.nan
    if not low <= value <= high or (whole and value != int(value)):
        refuse(field, f"a {'whole ' * whole}number from {low:g} to {high:g}")


def check_choice(field: str, options: Iterable[object]) -> None:
    """Ends the page if the link gives the field anything but one of these."""
    names = [str(option) for option in options]
    if field in st.query_params and st.query_params[field] not in names:
        refuse(field, f"one of {', '.join(names)}")


def hidden() -> frozenset[str]:
    """What ?hide= asks to be hidden: names of HIDEABLE with commas between them."""
    asked = [part for part in st.query_params.get("hide", "").split(",") if part]
    if any(part not in HIDEABLE for part in asked):
        refuse("hide", f"a list, with commas and without spaces, of some of {', '.join(HIDEABLE)}")
    return frozenset(asked)


def answers_hidden() -> bool:
    check_choice("answers", ("hidden",))
    return st.query_params.get("answers") == "hidden"
