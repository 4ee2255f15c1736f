"""A point that no slider of Explore reaches yet: its settings, its price, a button that computes it, its progress."""

import streamlit as st

from engine import datasets, grid, jobs, records
from engine.config import Config, ConfigError
from engine.costs import estimate, expected_device
from engine.datasets import DatasetUnavailable
from engine.grid import Point
from engine.overrides import parse
from engine.records import Run
from engine.report import sentences, wording
from pages import _grid, _live, _shared


@st.fragment
def another_point() -> None:
    """What is not computed yet: its settings, what it costs, a button that computes it, its progress."""
    st.header("Any other point")
    first, second, third, fourth = st.columns(4, vertical_alignment="bottom")
    procedure = first.selectbox(
        "Procedure", list(grid.BASES), format_func=wording.PROCEDURE_NAMES.__getitem__, key="other_procedure",
        persist_state="session",
    )  # fmt: skip
    digit = second.selectbox("Digit", list(range(10)), index=8, key="other_digit", persist_state="session")
    sigma = third.number_input("σ", value=0.5, step=0.05, key="other_sigma", persist_state="session")
    epsilon = fourth.number_input("ε", value=0.15, step=0.01, key="other_epsilon", persist_state="session")
    point = Point(str(procedure), int(digit), round(float(sigma), 6), round(float(epsilon), 6))
    try:
        config = parse(grid.config_of(point).model_dump())
    except ConfigError as error:
        st.error(f"This cannot be computed: {error}.")
        return
    found = _grid.points().get(point)
    run = Run(_shared.runs_root() / records.run_id(config))
    if found is not None:
        st.success(f"{_grid.name_of(point)}: computed (run {found.id}).", icon=":material/check_circle:")
        st.button(
            "Show it above", key="other_show", on_click=_grid.go_to, args=(point,), icon=":material/arrow_upward:"
        )
        if st.session_state.get("other_show"):
            st.rerun()
        return
    if run.exists() and run.status().active:
        progress(run)
        return
    if run.exists():
        st.warning(f"This run was {run.status().state} before; starting it again reuses what is finished.")
    left(config, point)


def left(config: Config, point: Point) -> None:
    """What the point will cost, and the button."""
    device = expected_device()
    expected = estimate(config, device=device)
    here = datasets.available(config.dataset, _shared.data_root())
    st.caption(
        f"{_grid.name_of(point)}: about {sentences.duration(expected.seconds)} on this {device.upper()} "
        f"(less where clean victims can be reused); then it joins the sliders."
        + ("" if here else " It needs MNIST, which is not on this machine.")
    )
    st.button(
        "Compute this for real", key="other_start", icon=":material/play_arrow:", disabled=not here,
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
