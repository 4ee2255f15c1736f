"""PACD Lab, the frame of every page: navigation, the run picker, notices. Start it with: streamlit run app.py"""

from pathlib import Path

import streamlit as st

from engine import jobs
from engine.costs import expected_device
from engine.records import RunNotFound
from pages import _chosen_study, _form, _glossary, _grid, _links, _shared
from pages._shared import RUN_PARAMETER

STYLE = Path(__file__).parent / "pages" / "_frame.css"  # what Streamlit has no settings for
SIDEBAR = 220  # pixels wide, of a projector's 1024


@st.cache_resource(show_spinner=False)
def write_down_lost(root: str) -> None:
    """Once per server and root."""
    try:
        jobs.write_down_lost(Path(root))
    except OSError as error:
        st.warning(f"The runs under {root} cannot be looked through: {error}.")


def choose_listed() -> None:
    """What was chosen in the list; what was cleared there leaves the example open."""
    _shared.choose(st.session_state["listed_run"] or "")


def open_linked() -> None:
    """Takes the run of a link from one page to another: for a widget that is there already, Streamlit looks at the
    address on the browser's Back and Forward alone.
    """
    linked = st.query_params.get(RUN_PARAMETER, "")
    if st.session_state.get("link page") != page.url_path and linked not in ("", st.session_state.get(RUN_PARAMETER)):
        st.session_state[RUN_PARAMETER] = linked


def run_picker() -> None:
    """The open run: a list, and an id that the URL carries, into whose field the list writes."""
    open_linked()
    labels = {row["id"]: _shared.row_label(row) for row in _shared.run_rows()}
    example, elsewhere = _shared.example_run(), page.url_path in _links.PAGES_WITHOUT_RUN
    place = st.container()
    # Not a popover: the browser does not know of widgets in a closed one. When a page is left, Streamlit would take the
    # run out of the address and put it in again, each time an entry of the browser's history.
    with st.expander("Open by id", icon=":material/tag:"):
        identifier = st.text_input(
            "Id of a run",
            key=RUN_PARAMETER,
            bind="query-params",
            max_chars=16,
            disabled=elsewhere,
            placeholder="the example" if example else "none",
            help="Part of this page's address, so a link opens the same run. The first digits are enough.",
        )
    wanted = identifier.strip().lower() or (example.id if example else "none")
    matches = [known for known in labels if known.startswith(wanted)]
    if not matches and (of_grid := _shared.grid_run(wanted)) is not None:
        labels[of_grid["id"]] = _shared.row_label(of_grid)
        matches = [of_grid["id"]]
    chosen = st.session_state["listed_run"] = matches[0] if len(matches) == 1 else None
    with place:
        st.selectbox(
            "Open run",
            options=list(labels),
            format_func=lambda known: labels.get(known, known),
            key="listed_run",
            index=None,
            placeholder="Choose a run",
            on_change=choose_listed,
            disabled=elsewhere,
            label_visibility="collapsed" if elsewhere else "visible",  # a disabled label is too pale to read
            help="Examples that come with the project, finished, partial and active runs. ε: L∞; σ: standard "
            "deviation; both in pixel units of [0, 1].",
        )
        if elsewhere:
            st.caption("This page does not use the open run.")
        elif chosen:
            st.caption(_links.plainly(labels[chosen]))  # in full: the box cuts it


def link_to_view() -> None:
    own = {"poison": _form.query_now, "explore": _grid.query, "studies": _chosen_study.query}
    if (query := own.get(page.url_path)) is not None:
        _links.popover(page.url_path, None, query=query)
        return
    try:
        run = None if page.url_path in _links.PAGES_WITHOUT_RUN else _shared.find_chosen()
    except RunNotFound:
        run = None
    _links.popover(page.url_path, run)


def device_badge() -> None:
    device = expected_device()
    names = {"cpu": ":material/memory: CPU", "cuda": ":material/developer_board: GPU"}
    st.badge(f"Computes on: {names[device]}", color="gray")


def safety_note() -> None:
    address = st.get_option("server.address")
    if address in ("localhost", "127.0.0.1", "::1"):
        st.caption("This app listens on this machine only (localhost), and sends nothing anywhere.")
    else:
        st.warning(
            f"This app listens on {address or 'all network interfaces'}: "
            "anyone who can reach this address can start runs."
        )
    st.caption(
        "For teaching, and for building better defences. Do not poison data that others train on: changing somebody's "
        "training set without consent does harm and is illegal in many places."
    )


page = _shared.navigation()
st.session_state["page title"] = page.title
# The tab shows an emoji: a Material icon would come from the network.
st.set_page_config(page_title=f"{page.title} · PACD Lab", page_icon="🧪", layout="wide", initial_sidebar_state=SIDEBAR)
st.html(STYLE)
_links.go_to_form()
write_down_lost(str(_shared.runs_root()))
with st.sidebar:
    st.title("PACD Lab")
    run_picker()
    link_to_view()
    _glossary.panel()
    device_badge()
    safety_note()
_shared.mnist_notice()
_links.refuse_unknown(page.url_path)
page.run()
