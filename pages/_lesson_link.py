"""What a link to the lesson may ask for beside the sliders of its views: parts to hide, and answers to keep."""

import streamlit as st

from pages import _links

HIDEABLE = {
    "questions": "the questions",
    "nav": "Back, Next and the choice of step",
    "sidebar": "the sidebar, and the bar of pages above",
    "controls": "the sliders and buttons of the view, which then stays as the link sets it",
    "teachers": "the part for teachers",
}


def hidden() -> frozenset[str]:
    """What ?hide= asks to be hidden: names of HIDEABLE with commas between them."""
    text = st.query_params.get("hide", "")
    asked = {part for part in text.split(",") if part}
    if not asked <= set(HIDEABLE):
        _links.refuse("hide", text, f"a list, with commas and without spaces, of some of {', '.join(HIDEABLE)}")
    return frozenset(asked & set(HIDEABLE))


def answers_hidden() -> bool:
    _links.check(answers=["hidden"])
    return st.query_params.get("answers") == "hidden"
