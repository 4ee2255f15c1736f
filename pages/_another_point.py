"""A point that Explore's sliders do not reach yet: its settings, its cost, a button that computes it, its progress."""

import streamlit as st

from engine import datasets, grid, jobs, records
from engine.config import Config, ConfigError
from engine.costs import estimate, expected_device
from engine.datasets import DatasetUnavailable
from engine.grid import Point
from engine.overrides import parse
from engine.records import Run
from engine.report import sentences, wording
from pages import _form, _grid, _live, _shared

LABELS = ("Noise level σ (pixel units)", "Budget ε (L∞, pixel units)")


def fill(point: Point) -> None:
    """Before the fields are drawn: what they begin with."""
    for name, value in zip(("procedure", "digit", "sigma", "epsilon"), point, strict=True):
        st.session_state[f"other_{name}"] = value


@st.fragment
def another_point() -> None:
    """What is not computed yet: its settings, what it costs, a button that computes it, its progress."""
    if "other_epsilon" not in st.session_state:
        fill(Point("gaussian", 8, 0.5, 0.15))
    first, second, third, fourth = st.columns(4, vertical_alignment="bottom")
    procedure = first.selectbox(
        "Training procedure", list(grid.BASES), format_func=wording.PROCEDURE_NAMES.__getitem__, key="other_procedure"
    )
    digit = second.selectbox("Target digit", list(range(10)), key="other_digit")
    sigma = third.number_input(LABELS[0], step=0.05, format="%g", key="other_sigma")
    epsilon = fourth.number_input(LABELS[1], step=0.01, format="%g", key="other_epsilon")
    point = Point(str(procedure), int(digit), round(float(sigma), 6), round(float(epsilon), 6))
    try:
        config = parse(grid.config_of(point).model_dump())
    except ConfigError as error:
        st.error(f"This cannot be computed: {_form.in_words(error)}.")
        return
    found = _grid.points().get(point)
    run = Run(_shared.runs_root() / records.run_id(config))
    if point == st.session_state.get("explore point"):
        st.caption("This is the point that the page shows. Change a value, and the new point can be computed here.")
        return
    if found is not None:
        st.success(f"{_grid.name_of(point)}: computed (run {found.id}).", icon=":material/check_circle:")
        st.button("Show it", key="other_show", on_click=_grid.go_to, args=(point,), icon=":material/visibility:")
        if st.session_state.get("other_show"):
            st.rerun()
        return
    if run.exists() and run.status().active:
        progress(run)
        return
    if run.exists():
        st.warning(f"This run was {run.status().state} before. Starting it again reuses what was finished.")
    left(config, point)


def left(config: Config, point: Point) -> None:
    """What the point will cost, and the button."""
    device = expected_device()
    expected = estimate(config, device=device)
    here = datasets.available(config.dataset, _shared.data_root())
    st.caption(
        f"{_grid.name_of(point)}: about {sentences.duration(expected.seconds)} on this {device.upper()} "
        f"(less where clean victims can be reused). Then it joins the sliders."
        + ("" if here else " It needs MNIST, which is not on this machine.")
    )
    st.button(
        "Run this experiment", key="other_start", icon=":material/play_arrow:", disabled=not here,
        on_click=start, args=(config, point.preset),
    )  # fmt: skip
    if problem := st.session_state.get("other problem"):
        st.error(f"Nothing was started: {problem}.", icon=":material/error:")


def start(config: Config, preset: str) -> None:
    st.session_state.pop("other problem", None)
    try:
        jobs.submit(config, runs_root=_shared.runs_root(), data_root=_shared.data_root(), preset=preset)
    except (ConfigError, DatasetUnavailable, OSError) as error:
        st.session_state["other problem"] = str(error)


def progress(run: Run) -> None:
    st.button("Cancel", key="other_cancel", on_click=_live.cancel, args=(run,), icon=":material/stop:")

    @st.fragment(run_every="1s")
    def live() -> None:
        status = run.status()
        if not status.active:
            st.rerun()
        _live.progress(run, status)

    live()
