"""For teachers: links that preset the lesson and hide parts of it, and question sheets."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from engine.records import Run
from pages import _lesson_sheet, _links, _shared
from pages._lesson_link import HIDEABLE
from pages._lesson_steps import Step


def for_teachers(steps: Sequence[Step], shown: int, run: Run) -> None:
    """Args: shown: the number of the step on screen."""
    with st.expander("For teachers: links and question sheets", icon=":material/school:"):
        left, right = st.columns(2, gap="large")
        with left:
            links(steps, shown, run)
        with right:
            sheets(steps, run)


def links(steps: Sequence[Step], shown: int, run: Run) -> None:
    st.markdown("**A link to a step**, as it is set now")
    number = st.selectbox(
        "Step", range(1, len(steps) + 1), index=shown - 1, format_func=lambda k: f"{k}. {steps[k - 1].title}",
        key=f"lesson_link_step {shown}",  # another step on screen is chosen here, too
    )  # fmt: skip
    hide = st.multiselect("Hide", list(HIDEABLE), format_func=HIDEABLE.__getitem__, key="lesson_link_hide")
    without = st.toggle("Answers cannot be revealed", key="lesson_link_answers")
    query = query_of(number, values=steps[number - 1].values, hide=hide, answers_hidden=without, run=run)
    st.code(f"/lesson?{query}", language=None, wrap_lines=True)
    st.caption(
        "Append it to this app's address. It carries the open run and the step's sliders that are on screen. Hiding is "
        "no lock: anyone who edits the address can see everything."
    )
    st.caption(
        "On a small projector, close the sidebar («): the lesson then uses the full width. Page Down at the end of a "
        "step leads to the next one, Page Up at its top to the one before."
    )


def query_of(number: int, *, values: Sequence[str], hide: Sequence[str], answers_hidden: bool, run: Run) -> str:
    """Of the link to a step, with the values that the widgets of these keys have now."""
    query: dict[str, Any] = {"step": number}
    query |= {"hide": ",".join(hide)} if hide else {}
    query |= {"answers": "hidden"} if answers_hidden else {}
    query |= {key: st.session_state[key] for key in values if st.session_state.get(key) is not None}
    return urlencode(query, safe=",") if run == _shared.example_run() else _links.with_run(query, run)


def sheets(steps: Sequence[Step], run: Run) -> None:
    st.markdown("**Question sheets**: HTML files to print, or to open offline")
    for answers, label in ((True, "Sheet with answers folded away"), (False, "Sheet without answers")):
        st.download_button(
            label,
            partial(_lesson_sheet.sheet, steps, run, answers=answers),  # written when it is asked for
            f"pacd-lab-questions{'-with-answers' if answers else ''}.html",
            "text/html",
            key=f"lesson_sheet_{answers}",
            icon=":material/download:",
            on_click="ignore",
        )
    st.caption(f"The questions of the lesson, with the numbers of run {run.id}.")
