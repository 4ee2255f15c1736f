"""The points of Explore's grid: which there are, how they are called, and how to go to one."""

from urllib.parse import urlencode

import streamlit as st

from engine import grid, records
from engine.grid import Point
from engine.records import GALLERY, GRID, Run
from engine.report import wording
from pages import _shared

FIELDS = ("procedure", "digit", "sigma", "epsilon")  # of the address; in this order one narrows the next


@st.cache_resource(show_spinner=False)
def shipped() -> dict[Point, Run]:
    """The points that come with the project."""
    return dict(grid.found(run for folder in (GALLERY, GRID) for run in records.all_runs(folder)))


def points() -> dict[Point, Run]:
    """All finished points, one's own included."""
    return dict(grid.found(records.all_runs(_shared.runs_root()))) | shipped()


def name_of(point: Point) -> str:
    return (
        f"{wording.PROCEDURE_NAMES[point.procedure]}, digit {point.target_class}, σ = {point.sigma:g}, "
        f"ε = {point.epsilon:g}"
    )


def go_to(point: Point) -> None:
    for field, value in zip(FIELDS, point, strict=True):
        st.session_state[f"explore_{field}"] = value


def address(point: Point) -> dict[str, str]:
    return {field: str(value) for field, value in zip(FIELDS, point, strict=True)}


def query() -> str:
    """Of the link to what the sliders show, written out where the address leaves it to the defaults."""
    point = st.session_state.get("explore point")
    return f"?{urlencode(address(point))}" if point else ""
