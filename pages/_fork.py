"""Published runs, which nobody may change, and forks of them: one's own run that remembers which it came from."""

from typing import Any

import pandas as pd
import streamlit as st

from engine import jobs, poison_file, records
from engine.overrides import with_overrides
from engine.poison_format import PoisonFileRefused
from engine.records import Run, RunNotFound
from engine.report import commands, wording
from pages import _form, _links, _shared
from pages._form import PARENT

PROBLEM = "start from problem"  # of the session: why a run's poison could not be taken


def publishing(run: Run) -> None:
    """The button that publishes a finished run, behind a question: there is no way back in the app."""
    if run.status().state != "done":
        return
    with st.popover("Publish read-only", icon=":material/lock:"):
        st.markdown(
            f"Publish run {run.id} to everyone who uses this app? Its name and note stay as they are, and it can no "
            f"longer be renamed or deleted here. To undo this, use the command line: "
            f"`python -m engine runs --withdraw {run.id}`."
        )
        st.button("Yes, publish it", key=f"publish {run.id}", on_click=publish, args=(run,))


def publish(run: Run) -> None:
    """Callback."""
    try:
        jobs.publish(run)
        st.toast(f"Run {run.id} is published, read-only.", icon=":material/lock:")
    except (OSError, ValueError) as error:
        st.session_state["runs problem"] = f"Run {run.id} could not be published: {error}."


def fork_button(run: Run) -> None:
    """One click to the form, filled in with the run's settings."""
    clicked = st.button(
        "Fork: run it with other settings",
        key=f"fork {run.id}",
        on_click=fork,
        args=(run,),
        icon=":material/fork_right:",
        help="Opens the form of the Poison page with this run's settings. What you start there is a run of your own.",
    )
    if clicked:
        _shared.go("pages/poison.py")


def fork(run: Run) -> None:
    """Callback: the run's settings in the form, which from now on says what differs."""
    forget()
    _form.fill_from_run(run)
    st.session_state[PARENT] = run.id


def parent_id() -> str | None:
    """Of the run that the form would start."""
    return st.session_state.get(PARENT)


def start_from(run: Run) -> None:
    """Callback: the form's attack starts from this run's poison."""
    st.session_state.pop(PROBLEM, None)
    try:
        settings = poison_file.starting_from(run, _shared.runs_root())
    except (PoisonFileRefused, OSError) as error:
        st.session_state[PROBLEM] = f"Its poison cannot be taken: {error}."
        return
    changed = with_overrides(run.config, settings)
    for text in settings:
        name = text.partition("=")[0]
        st.session_state[_form.key_of(name)] = commands.value_of(changed, name)


def forget() -> None:
    """Callback: the form is no longer a fork."""
    st.session_state.pop(PARENT, None)
    st.session_state.pop(PROBLEM, None)


def what_changed() -> None:
    """On the Poison page: which run the form is a fork of, and each field that differs from it."""
    identifier = parent_id()
    if identifier is None:
        return
    try:
        parent = records.find(_shared.runs_root(), identifier)
        before = commands.values_of(parent.config)
    except RunNotFound:
        forget()
        st.warning(f"The run {identifier} that this was forked from is gone, so this is no longer a fork.")
        return
    rows = [
        (wording.field_name(name), _form.value_words(name, value), _form.value_words(name, _form.given(name)))
        for name, value in before.items()
        if differs(name, value)
    ]
    with st.container(border=True):
        label = _links.plainly(_shared.row_label(_shared.row_of(parent)))
        st.markdown(f"**Fork of run `{identifier}`**: change a setting, then start. It was {label}.")
        if rows:
            table = pd.DataFrame(rows, columns=["setting", "original", "here"])
            st.dataframe(table, hide_index=True, alt="Settings that differ from the run that this is a fork of")
        else:
            st.caption("Nothing has changed yet, so this would be the same run.")
        with st.container(horizontal=True):
            if parent.config.attack.traits.may_start_from_file and parent.status().state == "done":
                st.button(
                    "Start from its poison",
                    on_click=start_from,
                    args=(parent,),
                    key="start from",
                    icon=":material/fast_forward:",
                    help="For another ε: PACD starts from that run's poison, scaled, and takes a few upper steps only. "
                    "Measured with quick and Gaussian augmentation alone.",
                )
            st.button("Discard fork link", on_click=forget, key="forget fork", icon=":material/link_off:")
        if problem := st.session_state.get(PROBLEM):
            st.error(problem)


def differs(name: str, before: Any) -> bool:
    now = _form.given(name)
    if name == "controls":
        return set(before) != set(now or ())
    head = name.rpartition(".")[0]
    if head in commands.HEADS and _form.chosen(head) is None:
        return False  # settings of a procedure that is not there
    return now != before


def family(run: Run) -> None:
    """On the Runs page: the run that this one was forked from, and both side by side in one click."""
    identifier = run.request.get("forked_from")
    if not identifier:
        return
    st.markdown(f":material/fork_right: Forked from run `{identifier}`.")
    try:
        records.find(_shared.runs_root(), identifier)
    except RunNotFound:
        st.caption("That run is not on this machine.")
        return
    with st.container(horizontal=True):
        st.button("Compare the two", key="compare fork", on_click=compare, args=(identifier, run.id))
        st.button("Open that run", key="open parent", on_click=_shared.choose, args=(identifier,))


def compare(*identifiers: str) -> None:
    """Callback: these runs under Compare, on the same page."""
    st.session_state["compare"] = list(identifiers)
    st.toast("[Go to the comparison](#compare).", icon=":material/compare_arrows:")
