"""Which study is shown and which of its cells: of the address, of the session, or chosen on the page."""

from typing import Any
from urllib.parse import urlencode

import streamlit as st

from engine.records import RunNotFound
from engine.report import wording
from engine.studies import exhibits, process, results
from engine.studies.process import StudyRecord
from pages import _links, _shared

Known = dict[str, StudyRecord | dict[str, Any]]  # by their ids


def known_studies() -> Known:
    """One's own studies, newest first, then those that come with the project (their results as they are)."""
    own = sorted(process.all_studies(_shared.runs_root()), key=lambda record: -record.status().submitted)
    mine: Known = {record.id: record for record in own}
    return mine | {found["id"]: found for found in _shared.exhibited() if found["id"] not in mine}


def label_of(known: StudyRecord | dict[str, Any]) -> str:
    """Without its state: the browser shows the words that were chosen until another study is."""
    if isinstance(known, StudyRecord):
        if not is_readable(known):
            return f"unreadable · {known.id[:4]}"
        study, preset = known.study.model_dump(mode="json"), known.request.get("preset")
        words = [_shared.moment(known.status().submitted), known.id[:4]]
    else:
        if (note := exhibits.notes().get(known["id"])) is not None:
            return f"{note.group} · {note.title}"
        study, preset, words = known["study"], known["preset"], ["comes with the project", known["id"][:4]]
    name = wording.KIND_NAMES.get(study["kind"], study["kind"])
    if study["kind"] == "sweep":
        name = " × ".join(results.label(study[axis]) for axis in ("rows", "columns"))
    return " · ".join([name, size_of(study), *filter(None, [preset, *words])])


def size_of(study: dict[str, Any]) -> str:
    return f"{len(study['rows']['points'])} × {len(study['columns']['points'])}"


def is_readable(record: StudyRecord) -> bool:
    try:
        return bool(record.study)
    except RunNotFound:
        return False


# --- the choice, and the address ---


def cell_key(identifier: str) -> str:
    """In the session: the number of the study's chosen cell."""
    return f"cell {identifier}"


def arrives(known: Known) -> bool:
    """Whether the address is another than this page left there, of a link or by the browser's Back button: then study
    and cell are what it says, without it what was shown when the page was opened so. An unknown study is said.
    """
    address = {name: st.query_params[name] for name in ("study", "cell") if name in st.query_params}
    comes = "study" not in st.session_state  # Streamlit forgets the widgets of a page that is left
    if not comes and address == st.session_state["studies address"]:
        return False
    if comes and not address:
        st.session_state["studies start"] = st.session_state.get("studies shown", {})
    st.session_state["studies address"] = address
    asked = address or st.session_state.get("studies start", {})
    matches = [identifier for identifier in known if identifier.startswith(asked.get("study", "").lower())]
    if "study" in asked and len(matches) != 1:
        if address:
            st.warning(f"The link asks for a study that is not here: {_links.plainly(asked['study'][:40])}.")
        return True
    st.session_state["study"] = next(iter(matches), None)
    cell = asked.get("cell", "")
    st.session_state[cell_key(st.session_state["study"])] = int(cell[:9]) if cell.isdecimal() else None
    return True


def choose_study(known: Known) -> StudyRecord | dict[str, Any] | None:
    if st.session_state.get("study") not in known:
        st.session_state["study"] = next(iter(known), None)
    if not known:
        st.info("There is no study yet. Start one below.")
        return None
    labels = {identifier: label_of(one) for identifier, one in known.items()}
    st.selectbox("Study", list(known), format_func=labels.__getitem__, key="study")
    return known[st.session_state["study"]]


def follow(identifier: str, cell: int, *, arrived: bool) -> None:
    """The address follows what was chosen here, not before: Streamlit adds an entry to the browser's history each time
    that a script writes the address, and Back shall lead where one was.
    """
    shown = {"study": identifier, "cell": str(cell)}
    if not arrived and shown != st.session_state.get("studies shown"):
        st.session_state["studies address"] = shown
        st.query_params.update(shown)
    st.session_state["studies shown"] = shown


def query() -> str:
    """Of the link to what is shown, written out where the address leaves it to the session."""
    shown = st.session_state.get("studies shown")
    return f"?{urlencode(shown)}" if shown else ""
