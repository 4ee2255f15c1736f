"""Links: what a page takes from its address, checked before its widgets are drawn; and the full link to a view.

Streamlit gives a bound widget its default where the address has a value that the widget does not allow, and says
nothing. So each page names what it takes (`check`), and what does not fit is refused with a sentence.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from engine import records
from engine.config import ConfigError
from engine.overrides import field_names, with_overrides
from engine.presets import find_preset
from engine.records import Run
from engine.report import commands

RUN = "run"  # the id of the open run
WORD_JOINER = "\u2060"  # is not seen
_READ = re.compile(r"[\\`*_~$<>&#|\[]|^[-+]")  # as signs of Markdown
_FOUND = re.compile(r"(?<=:)(?=\S)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)  # in what is read: links, emoji, icons
MOST_NAMED = 12  # values that a sentence counts up
CONFIGURATION = ("preset", *field_names())
PAGES_WITHOUT_RUN = ("explore", "studies")  # their addresses say all by themselves
_TRAINING = ("attack_step", "magnify", "pinned", "poison_image")
_TEST = ("pinned", "test_image")
_VIEWS = ("lesson_alpha", "lesson_draws", "lesson_image", "lesson_n", "lesson_sigma")  # of the lesson
TAKEN = {  # by a page's path: all other names that it takes
    "": (),
    "lesson": (*_VIEWS, "answers", "hide", "predicted", "step"),
    "explore": ("digit", "epsilon", "procedure", "sigma"),
    "poison": (),
    "inspect": (*_TRAINING, *_TEST, "compare_by", "show", "sort", "test_filter", "test_sort", "view", "wipe"),
    "certify": (*_TEST, "arms", "scatter_arm", "scope", "victim", "what_if_alpha", "what_if_n"),
    "image": (*_TRAINING, *_TEST, "draw_question", "draw_radius", "kind", "number", "victim"),
    "try": ("try_alpha", "try_image", "try_n", "try_n0", "try_seed", "try_source"),
    "studies": (
        "study",
        "cell",
    ),
    "runs": ("compare",),
}


@dataclass(frozen=True)
class Interval:
    """Any number in [low, high]."""

    low: float
    high: float

    def __contains__(self, text: object) -> bool:
        try:
            return self.low <= float(str(text)) <= self.high
        except ValueError:
            return False


# Value → its text in the address; or values that are their own text; or numbers too many to count up.
Allowed = Mapping[Any, str] | Sequence[Any] | Interval


def check(**fields: Allowed) -> None:
    """Refuses values of the address that a field does not allow, a sentence each. Such a field has its default, or of
    several values those that are allowed.

    Call it before the widgets of these keys are drawn.
    """
    seen = st.session_state.setdefault("link seen", set())
    declare(**fields)
    for name, allowed in fields.items():
        given = st.query_params.get_all(name)
        unfit = [text for text in given if not fits(text, allowed)]
        if not unfit or (name, *given) in seen:
            seen.add((name, *given))  # another run may allow less, but the link was right
            continue
        refuse(name, unfit[0], in_words(allowed))
        if isinstance(allowed, range) and unfit[0] in Interval(math.inf, math.inf):
            st.stop()  # Streamlit 1.67 reads it as infinity, and its number input would end the page with a traceback


def refuse(name: str, text: str, allowed: str) -> None:
    st.error(f"This link asks for {name}={plainly(repr(text[:40]))}, but {name} must be {plainly(allowed)}.")


def plainly(text: str) -> str:
    """Markdown that shows a text of somebody's as it is: without links and images, most of all, by which the browser
    would call elsewhere.
    """
    return _READ.sub(r"\\\g<0>", _FOUND.sub(WORD_JOINER, text))


def refuse_unknown(path: str) -> None:
    """Says which names of the address this page does not take: they would go unnoticed. For app.py."""
    made = () if path in PAGES_WITHOUT_RUN else CONFIGURATION  # how the link's run was made, should it not be here
    for name in st.query_params:
        if name in (RUN, *made, *TAKEN[path]):
            continue
        shown = plainly(repr(name[:40]))
        near = [known for known in CONFIGURATION if known.endswith(f".{name}")] if path == "poison" else []
        meant = f" Do you mean {' or '.join(near)}?" if near else ""
        st.error(f"This link asks for {shown}, which this page does not know. It is ignored.{meant}")


def declare(**fields: Allowed) -> None:
    """Puts these keys into links to the page; one that checks its address by itself need not `check`."""
    st.session_state["link fields"] = st.session_state.get("link fields", {}) | fields


def fits(text: str, allowed: Allowed) -> bool:
    if isinstance(allowed, Interval):
        return text in allowed
    if isinstance(allowed, range):  # may be too long to be written out
        return len(text) < 20 and text.isdecimal() and text == str(int(text)) and int(text) in allowed
    return text in texts(allowed)


def texts(allowed: Mapping[Any, str] | Sequence[Any]) -> list[str]:
    """What the address may say."""
    return [str(each) for each in (allowed.values() if isinstance(allowed, Mapping) else allowed)]


def in_words(allowed: Allowed) -> str:
    if isinstance(allowed, Interval):
        return f"a number from {allowed.low:g} to {allowed.high:g}"
    if isinstance(allowed, range) and len(allowed) > 1:
        return f"a whole number from {allowed[0]} to {allowed[-1]}"
    known = texts(allowed)
    if not known:
        return "left out: nothing can be chosen here"
    shown = ", ".join(known[:MOST_NAMED])
    return f"one of {shown}{f' … ({len(known)} in all)' if len(known) > MOST_NAMED else ''}"


# --- the link to what is on screen ---


def popover(path: str, run: Run | None, query: Callable[[], str] | None = None) -> None:
    """The full link to the view, with every value written out, and the command that makes its run.

    Args:
        path: the page's, within the app.
        run: the open one; None on pages that show none.
        query: what makes the link's query, where the page's address and fields do not say it.
    """
    if st.session_state.get("link page") != path:
        st.session_state["link page"] = path
        st.session_state["link fields"] = {}  # those were of another page
    opened = st.popover("Link to this view", icon=":material/link:", key="link to view", on_change="rerun")
    if not opened.open:
        return
    with opened:
        address = (st.context.url or "").rstrip("/").removesuffix(f"/{path}")
        st.code(f"{address}/{path}{query() if query else query_of(run)}", language=None, wrap_lines=True)
        if run is None:
            st.caption("It opens the same view. On another machine, put that machine's address in front.")
            return
        st.caption(
            "It opens the same view. On a machine without this run it offers to compute it: all settings and the seed "
            "are in the link, and give nearly the same numbers there. Or, from the command line:"
        )
        st.code(commands.command(*commands.asked_for(run)), language=None, wrap_lines=True)


def query_of(run: Run | None) -> str:
    """What the address has now and what the page's fields have, defaults too, with the run and how it was made."""
    fields: dict[str, Allowed] = st.session_state.get("link fields", {})
    values: dict[str, Any] = {name: st.query_params.get_all(name) for name in st.query_params}
    if run is not None:
        values = {name: texts for name, texts in values.items() if name not in CONFIGURATION}
    for name, allowed in fields.items():
        if name not in st.session_state or st.session_state[name] is None:
            continue
        value = st.session_state[name]
        several = value if isinstance(value, list) else [value]
        values[name] = [allowed.get(each, each) if isinstance(allowed, Mapping) else each for each in several]
    if run is None:
        return f"?{urlencode(values, doseq=True)}" if values else ""
    return f"?{with_run(values, run)}"


def with_run(query: dict[str, Any], run: Run) -> str:
    """The query, and what another machine needs to open the run or to compute it."""
    made = commands.query(*commands.asked_for(run))
    return f"{urlencode(query | {RUN: run.id}, doseq=True, safe=',')}&{made}"


# --- a link to a run that is not here ---


def asked_configuration() -> dict[str, str]:
    """The preset and fields of a configuration that the address has."""
    return {name: st.query_params[name] for name in CONFIGURATION if name in st.query_params}


def offer(identifier: str) -> None:
    """Where a link's run is not here but the link says how it was made: one click to the form, filled in that way."""
    asked = asked_configuration()
    if (preset := asked.pop("preset", None)) is None:
        return
    try:
        config = with_overrides(find_preset(preset).config, [f"{name}={text}" for name, text in asked.items()])
    except ConfigError as error:
        st.error(f"The link also says how the run was made, but that cannot be run: {plainly(str(error))}.")
        return
    same = records.run_id(config).startswith(identifier)
    st.info(
        "The link says how the run was made, so it can be computed here"
        + (", and will have the same id." if same else "; this version gives it another id, so numbers may differ.")
    )
    st.button(
        "Compute it here",
        key="compute linked",
        on_click=take_over,
        args=({"preset": preset, **asked},),
        icon=":material/science:",
    )


def take_over(asked: dict[str, str]) -> None:
    """Callback: the missing run is no longer asked for, and app.py goes to the form next."""
    st.session_state[RUN] = ""
    st.session_state["go to form"] = asked


def go_to_form() -> None:
    """For app.py: leaves for the Poison page, filled in, where that was asked for."""
    if asked := st.session_state.pop("go to form", None):
        st.switch_page("pages/poison.py", query_params=asked)
