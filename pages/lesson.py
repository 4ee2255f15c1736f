"""Lesson: from noise to certificates to poison, in short steps; predict first, then reveal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from engine.records import Run
from pages import _lesson_end, _lesson_link, _lesson_teacher, _lesson_votes, _links, _shared
from pages._lesson_questions import Question
from pages._lesson_steps import STEPS

HIDING = {
    "controls": ".st-key-lesson-controls",
    "sidebar": '[data-testid="stSidebar"], [data-testid="stSidebarCollapsedControl"], [data-testid="stToolbar"]',
}
NUMBERS = range(1, len(STEPS) + 1)
KEYS = (Path(__file__).parent / "_lesson_keys.js").read_text()
PREDICTED = "predicted"  # of the address
CORRECT = ":green-badge[✓ correct]"


def run_to_show() -> Run | None:
    """The open run if it is finished and shows an attack on images, else the example that comes with the project."""
    run = _shared.chosen_run(instead="The lesson uses the example instead.")
    if run is None or suits(run):
        return run or _shared.example_run()
    st.info(
        f"Run {run.id} is {run.status().state} and has no finished attack on images to show, so the lesson uses the "
        "example.",
        icon=":material/info:",
    )
    return _shared.example_run()


def suits(run: Run) -> bool:
    report = run.report or {}
    has_drop = ((report.get("relative_drop") or {}).get("poisoned") or {}).get("mean") is not None
    poison = run.tensors("poison") if has_drop and run.status().state == "done" else None
    return poison is not None and "labels" not in poison and len(poison["delta"]) > 0


def answered() -> dict[int, int]:
    """What the reader predicted in each step whose answer is revealed: kept in the session, and in the address."""
    return st.session_state["lesson answers"]


def keep_predictions(run: Run) -> None:
    """Takes those of the address (?predicted=STEP.PREDICTION,…) once per session, as after a refresh; writes all."""
    if "lesson answers" not in st.session_state:
        st.session_state["lesson answers"] = found = {}
        for part in filter(None, st.query_params.get(PREDICTED, "").split(",")):
            step, _, prediction = part.partition(".")
            allowed = STEPS[int(step) - 1].question(run).allowed if _links.fits(step, NUMBERS) else ()
            if _links.fits(prediction, allowed):
                found[int(step)] = int(prediction)
            else:
                _links.refuse(PREDICTED, part, "STEP.PREDICTION of questions of this lesson, with commas between them")
    if answered():
        st.query_params[PREDICTED] = ",".join(f"{step}.{prediction}" for step, prediction in answered().items())
    elif PREDICTED in st.query_params:
        del st.query_params[PREDICTED]


def choose_step() -> int:
    """The ways to other steps, drawn: the step of the link or the session, else where the reader was before."""
    linked = st.query_params.get("step")
    if "nav" in hidden:
        return int(linked) if linked is not None and _links.fits(linked, NUMBERS) else 1
    if "step" not in st.session_state and linked is None:
        st.session_state["step"] = st.session_state.get("lesson step", 1)
    back, forward, jump = st.container(key="lesson-navigation").columns([2, 2, 3], vertical_alignment="bottom")
    with jump:  # first, since only the widget knows the address that the browser's own Back and Forward lead to
        number = int(
            st.number_input(
                f"Step, 1 to {len(STEPS)}", 1, len(STEPS), key="step", bind="query-params", label_visibility="collapsed"
            )
        )
    st.session_state["lesson step"] = number
    back.button(
        "Back", on_click=move, args=(-1,), disabled=number == 1, key="lesson_back", icon=":material/arrow_back:",
        width="stretch",
    )  # fmt: skip
    forward.button(
        "Next", on_click=move, args=(1,), disabled=number == len(STEPS), key="lesson_next",
        icon=":material/arrow_forward:", width="stretch",
    )  # fmt: skip
    return number


def move(by: int) -> None:
    """Callback of Back and Next."""
    go(min(max(st.session_state.get("step", 1) + by, 1), len(STEPS)))


def go(number: int) -> None:
    """Callback of what leads to a step."""
    st.session_state["step"] = number


def header(run: Run) -> int:
    """The step that is asked for, with its title; how far the reader is, and how good the predictions were."""
    good = sum(given == STEPS[k - 1].question(run).right for k, given in answered().items())
    score = f" · {good} of {len(answered())} predictions correct" if answered() else ""
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with right:
        progress = st.empty()
        number = choose_step()
        progress.progress(number / len(STEPS), f"Lesson, step {number} of {len(STEPS)}{score}")
    with left:
        # Streamlit stays where the last step was scrolled to. The script runs whenever its text is another.
        st.html(f'<script data-of="{number}">{KEYS}</script>', unsafe_allow_javascript=True)
        st.title(STEPS[number - 1].title, anchor=False)
    return number


def ask(number: int, question: Question, *, answers_hidden: bool) -> None:
    """Predict, then reveal: the answer is not on the page before."""
    st.markdown(f"**Predict.** {question.ask}")
    prediction = st.radio(
        "Your prediction", range(len(question.options)), index=None, format_func=question.options.__getitem__,
        key=f"lesson_prediction_{number}", persist_state="session",
    )  # fmt: skip
    if answers_hidden:
        st.caption("The answers are kept for the discussion in class.")
        return
    st.button(
        "Reveal", on_click=reveal, args=(number, prediction, question.shows), disabled=prediction is None,
        key=f"lesson_reveal_{number}", icon=":material/visibility:",
    )  # fmt: skip


def reveal(number: int, prediction: int, shows: Mapping[str, Any]) -> None:
    """Callback of Reveal."""
    answered()[number] = prediction
    st.session_state.update(shows)


def judge(number: int, question: Question, given: int) -> None:
    """The prediction, what is so, and why: where the question was, so that nothing else moves."""
    st.markdown(f"**{question.ask}**")
    st.markdown("\n".join(f"- {text}{marks(question, k, given)}" for k, text in enumerate(question.options)))
    if given == question.right:
        st.success(f"**Right.** {question.because}", icon=":material/check:")
    else:
        st.warning(f"**Not quite.** {question.because}", icon=":material/close:")
    if number < len(STEPS) and "nav" not in hidden:
        st.button("Next step", on_click=move, args=(1,), key="lesson_go_on", icon=":material/arrow_forward:")


def marks(question: Question, option: int, given: int) -> str:
    if option == question.right:
        return f" {CORRECT}"
    return " :red-badge[✗ your answer]" * (option == given)


def show(number: int, run: Run) -> None:
    """Words and question, or its answer, beside the view, or above one that needs the whole width."""
    step, asked = STEPS[number - 1], "questions" not in hidden
    first, second = st.columns([1, 1] if step.wide else [3, 5], gap="medium")
    with first:
        st.markdown(step.idea)
        st.markdown(f":material/touch_app: **To do.** {step.task}")
    if asked:
        with (second if step.wide else first).container(border=True):
            if number in answered() and not answers_hidden:
                judge(number, step.question(run), answered()[number])
            else:
                ask(number, step.question(run), answers_hidden=answers_hidden)
    if step.formula:
        with first.expander("The formula", icon=":material/function:"):
            st.markdown(step.formula)
    with st.container() if step.wide else second:
        step.view(run, number in answered() or ("questions" in hidden and not answers_hidden))
    if number == len(STEPS) and not answers_hidden:
        given = sorted((k, answer) for k, answer in answered().items() if k < number)
        wrong = [(k, STEPS[k - 1].title) for k, answer in given if answer != STEPS[k - 1].question(run).right]
        _lesson_end.end(wrong if "nav" not in hidden else (), go)


_shared.need_frame()
_links.check(step=NUMBERS)
hidden, answers_hidden = _lesson_link.hidden(), _lesson_link.answers_hidden()
rules = [f"{place} {{ display: none }}" for part, place in HIDING.items() if part in hidden]
if rules:
    st.html(f"<style>{' '.join(rules)}</style>")
shown = run_to_show()
if shown is None:
    st.warning(
        "There is no finished run, not even the project's examples (folder gallery/). Start one on the Poison page."
    )
    st.stop()
_lesson_votes.check_link(shown)
keep_predictions(shown)
step = header(shown)
show(step, shown)
if "teachers" not in hidden:
    _lesson_teacher.for_teachers(STEPS, step, shown)
