"""What all pages share: where things are, which run is open, cached reading. No computing, no torch."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.errors import StreamlitAPIException, StreamlitPageNotFoundError

from engine import datasets, index, records
from engine.config import PROTOCOL_VERSION
from engine.records import GALLERY, GRID, Run
from engine.report import wording
from engine.studies import exhibits
from pages import _links

RUN_PARAMETER = _links.RUN  # of the URL, and the key of the run picker in app.py
_OF_A_REPORT = ("config", "arms", "relative_drop", "certified_images", "radius_cap")
PAGES = (  # file, title; without icons the bar above has room for all of them on a laptop
    ("pages/start.py", "Start"),
    ("pages/lesson.py", "Lesson"),
    ("pages/explore.py", "Explore"),
    ("pages/poison.py", "Poison"),
    ("pages/inspect.py", "Inspect"),
    ("pages/certify.py", "Certify"),
    ("pages/image.py", "One image"),
    ("pages/try.py", "Try your own"),
    ("pages/studies.py", "Studies"),
    ("pages/runs.py", "Runs"),
)
ICONS = {  # of what leads to a page
    "pages/lesson.py": ":material/school:",
    "pages/explore.py": ":material/explore:",
    "pages/poison.py": ":material/science:",
    "pages/inspect.py": ":material/search:",
    "pages/certify.py": ":material/verified:",
    "pages/image.py": ":material/center_focus_strong:",
    "pages/try.py": ":material/draw:",
    "pages/studies.py": ":material/grid_view:",
    "pages/runs.py": ":material/list:",
}


def navigation() -> Any:
    """The page to run, and the bar above it."""
    st.session_state["in frame"] = True
    pages = [st.Page(file, title=title, default=file == PAGES[0][0]) for file, title in PAGES]
    return st.navigation(pages, position="top")


def need_frame() -> None:
    """Makes sure that app.py drew its frame around the page that calls this.

    Streamlit takes a folder named pages for a list of separate apps until somebody's session has called st.navigation:
    the very first visitor of a server who comes by a link to one page would see it without picker and notices.
    """
    if st.session_state.get("in frame"):
        return
    try:
        navigation()
    except StreamlitAPIException:  # the page's file is itself the app, as in a test: nothing to put around it
        return
    st.rerun()


def runs_root() -> Path:
    return records.default_root()


def data_root() -> Path:
    return datasets.default_root()


def default_dataset() -> str:
    """MNIST where its files are on this machine, else the embedded digits (app.py says so on every page)."""
    return "mnist" if datasets.available("mnist", data_root()) else "digits"


def find_chosen() -> Run | None:
    """The run chosen in app.py's picker (the example while nothing is), or of the URL. Raises: RunNotFound."""
    identifier = st.session_state.get(RUN_PARAMETER) or st.query_params.get(RUN_PARAMETER)
    if not identifier:
        return example_run() if RUN_PARAMETER in st.session_state else None
    run = records.find(runs_root(), identifier.strip().lower())
    if (protocol := protocol_of(run)) not in (None, PROTOCOL_VERSION):
        raise records.RunNotFound(
            f"run {run.id} is of protocol {protocol}, and this version reads runs of protocol {PROTOCOL_VERSION}"
        )
    run.config  # noqa: B018 - reading it now tells a damaged run from a sound one
    if (report := run.report) is not None and not set(_OF_A_REPORT) <= set(report):
        raise records.RunNotFound(f"the report of run {run.id} is damaged")
    return run


def chosen_run(title: str = "", *, instead: str = "") -> Run | None:
    """As `find_chosen`; but None, with a plain warning, where there is no such run: never silently another one.

    Args:
        title: of the page, where it is not drawn yet.
        instead: says that the page shows the example then.
    """
    need_frame()
    try:
        return find_chosen()
    except records.RunNotFound as error:
        if title:
            st.title(title)
        text = _links.plainly(" ".join(str(error).split())[:300])
        example = example_run()
        st.warning(f"{text[0].upper()}{text[1:]}. Choose another in the sidebar.{f' {instead}' * bool(example)}")
        _links.offer(str(st.session_state.get(RUN_PARAMETER) or st.query_params.get(RUN_PARAMETER)).strip().lower())
        if example is not None:
            st.button("Open the example", on_click=choose, args=("",), icon=":material/open_in_new:")
        return None


def open_run() -> Run:
    """The chosen run; ends the page with a plain sentence where there is none."""
    run = chosen_run(st.session_state.get("page title", ""))
    if run is None:
        if not (st.session_state.get(RUN_PARAMETER) or st.query_params.get(RUN_PARAMETER)):
            st.info("No run is open. Choose one in the sidebar, or start one on the Poison page.")
        st.stop()
    return run


def choose(identifier: str) -> None:
    """Makes this the open run, in the sidebar and in the URL. For callbacks: later it is too late for the widget."""
    st.session_state[RUN_PARAMETER] = identifier


def example_run() -> Run | None:
    """The finished run that comes with the project: of MNIST where MNIST is on this machine, else of the digits."""
    runs = [run_of(row) for row in _gallery_rows()]
    fitting = [run for run in runs if run.config.dataset == default_dataset()]
    return next(iter(fitting or runs), None)


def is_example(run: Run) -> bool:
    return run.directory.parent in (GALLERY, GRID)


def row_of(run: Run) -> dict[str, Any]:
    """As `run_rows` has them: the index's row, with whether it is an example, and where it is."""
    return index.row_of(run) | {"example": is_example(run), "directory": run.directory}


def run_of(row: dict[str, Any]) -> Run:
    return Run(row["directory"])


def run_rows() -> list[dict[str, Any]]:
    """One row per run that can be opened, newest first, the project's examples last; without Explore's grid."""
    root = runs_root()
    try:
        own = index.rows(root)
    except OSError as error:
        st.warning(f"The list of runs under {root} cannot be read ({error}). Runs can still be opened by their id.")
        own = []
    mine = {row["id"] for row in own}
    examples = [row for row in _gallery_rows() if row["id"] not in mine]
    return [row | {"example": False, "directory": root / row["id"]} for row in own] + examples


def grid_run(identifier: str) -> dict[str, Any] | None:
    """The row of a run of Explore's grid, which the list of runs leaves out."""
    try:
        run = records.find(runs_root(), identifier)
    except records.RunNotFound:
        return None
    return row_of(run) if run.directory.parent == GRID else None


def protocol_of(run: Run) -> int | None:
    """Another version's runs cannot be opened: their settings mean something else."""
    return (run.read_json("config.json") or {}).get("protocol_version")


@st.cache_data(show_spinner=False)
def _gallery_rows() -> list[dict[str, Any]]:
    """`quick` first, which anybody can repeat in a minute, and those of most victims before others."""
    rows = [row_of(run) for run in records.all_runs(GALLERY) if protocol_of(run) == PROTOCOL_VERSION]
    return sorted(rows, key=lambda row: (row["preset"] != "quick", -row["victim_seeds"], row["id"]))


def row_label(row: dict[str, Any]) -> str:
    """A run in a few words: name or preset, seed unless 0, class, ε, σ, date, and its state where it is not done."""
    words = [
        row["name"] or row["preset"] or "own settings",
        *([f"seed {row['seed']}"] if row["seed"] else []),  # early, where a narrow box does not cut it
        *(["no attack"] if row["attack"] == "none" else [row["target_name"], f"ε {row['epsilon']}"]),
        *([] if row["attack"] in ("pacd", "none", None) else [wording.attack_name(row["attack"])]),
        f"σ {row['sigma']}",
        "example" if row["example"] else moment(row["submitted"]),
        row["id"][:4],  # a select box tells options apart by these words
    ]
    state = ["published"] if row["published"] else [] if row["state"] == "done" else [row["state"]]
    return ("★ " if row["starred"] else "") + " · ".join(words + state)


def moment(seconds: float | None) -> str:
    """A point in time on this machine's clock."""
    return datetime.fromtimestamp(seconds).strftime("%d %b %Y %H:%M") if seconds else "–"


def go(page: str) -> None:
    """Leaves for another page. Without query_params Streamlit refuses to, while a bound widget is in the address."""
    st.switch_page(page, query_params={})


def page_link(page: str, label: str, **query: str) -> None:
    """A link to another page, and to what its address may ask for; plain text where a page runs without app.py."""
    try:
        st.page_link(page, label=label, icon=ICONS[page], query_params=query or None)
    except StreamlitPageNotFoundError:
        st.caption(f"{label} (start the app with: streamlit run app.py)")


def run_link(page: str, label: str, run: Run) -> None:
    """A link to another page with this run, which Streamlit itself adds where it is the open one."""
    page_link(page, label, **({} if st.session_state.get(RUN_PARAMETER) == run.id else {RUN_PARAMETER: run.id}))


def watch_link(run: Run) -> None:
    """Where the run has no result yet: the way to its progress, or to how it ended."""
    if not is_example(run):
        run_link("pages/poison.py", "Watch it" if run.status().active else "See how it ended", run)


def mnist_notice() -> None:
    """Says on every page that numbers shown by default are not MNIST's, where MNIST is not on this machine."""
    if default_dataset() == "mnist":
        return
    st.info(
        f"MNIST is not on this machine (not in {data_root() / 'MNIST' / 'raw'}): you see the "
        f"{datasets.describe('digits')}. `python -m engine fetch mnist` gets it (12 MB from the network); then reload "
        "this page.",
        icon=":material/info:",
    )


@st.cache_data(show_spinner=False)
def exhibited() -> list[dict[str, Any]]:
    """Results of the studies that come with the project."""
    return exhibits.exhibited()


@st.cache_data(max_entries=16, show_spinner=False)
def certificates(directory: str, stamp: int) -> pd.DataFrame:
    """The certificate table of a run directory; stamp is the file's modification time, so that a new file is read."""
    return Run(Path(directory)).need_certificates()


def read_certificates(run: Run) -> pd.DataFrame:
    """Raises: OSError."""
    return certificates(str(run.directory), (run.directory / "certificates.parquet").stat().st_mtime_ns)


def open_certificates(run: Run) -> pd.DataFrame:
    """The run's certificate table, or the end of the page with a sentence while there is none."""
    try:
        return read_certificates(run)
    except OSError:
        st.info(f"Run {run.id} has no certificates yet: it is {run.status().state}.")
        watch_link(run)
        st.stop()
