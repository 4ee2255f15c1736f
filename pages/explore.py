"""Explore: finished runs on a grid of settings; a slider moves from one to the next at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import datasets, grid
from engine.config import CONTROLS, ConfigError
from engine.figures import pictures
from engine.figures.grid import drop_by_epsilon
from engine.figures.radii import acr_by_arm, certified_accuracy, radius_histogram
from engine.figures.style import ARM_STYLE
from engine.grid import Point
from engine.overrides import parse
from engine.records import Run
from engine.report import sentences, wording
from engine.report.numbers import estimates
from pages import _another_point, _grid, _images, _links, _one_image, _shared
from pages._export import chart_and_data

BEGIN = Point("gaussian", 8, 0.5, 0.1)
SHOWN = 8


@st.cache_data(max_entries=400, show_spinner=False)
def drops(directory: str, stamp: int) -> dict[str, Any]:
    return (Run(Path(directory)).report or {}).get("relative_drop", {})


@st.cache_data(max_entries=100, show_spinner=False)
def charts(directory: str, stamp: int) -> tuple[Any, Any, Any, pd.DataFrame]:
    """(certified accuracy, radii, ACR by arm, estimates of the target class) of a run."""
    run = Run(Path(directory))
    table, config, found = run.certificates(), run.config, run.report
    assert table is not None
    assert found is not None
    target = sentences.target_of(run)
    return (
        certified_accuracy(table, config, target=target),
        radius_histogram(table, config, arms=["clean", "poisoned"], target=target),
        acr_by_arm(found),
        estimates(table, "target", config),
    )


@st.cache_data(max_entries=100, show_spinner=False)
def poison(directory: str, stamp: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, float32 delta) of the first images."""
    tensors = Run(Path(directory)).tensors("poison")
    assert tensors is not None
    return tensors["indices"][:SHOWN], tensors["delta"][:SHOWN]


def stamp(run: Run) -> int:
    return (run.directory / "report.json").stat().st_mtime_ns


# --- where we are ---


def begin(known: dict[Point, Run]) -> None:
    """The point that the address asks for, where it is not this page's own: of a link, or of the browser's Back button.

    Refused in words where it is none.
    """
    address = {field: st.query_params[field] for field in _grid.FIELDS if field in st.query_params}
    if "explore_epsilon" in st.session_state and address in ({}, st.session_state.get("explore address")):
        return
    start = BEGIN if BEGIN in known else next(iter(known))
    try:
        start = asked(start)
        if start not in known:
            raise ConfigError(
                f"{_grid.name_of(start)}: not computed yet; compute it below, or choose among what there is"
            )
    except ConfigError as error:
        st.session_state["explore problem"] = str(error)
        start = BEGIN if BEGIN in known else next(iter(known))
    _grid.go_to(start)


def asked(start: Point) -> Point:
    """The point of the address. Raises: ConfigError, naming the field."""
    query = st.query_params
    if (procedure := query.get("procedure", start.procedure)) not in grid.BASES:
        raise ConfigError(f"procedure must be one of {', '.join(grid.BASES)}, got {procedure[:40]!r}")
    numbers: dict[str, float] = {}
    for field, value in zip(_grid.FIELDS[1:], start[1:], strict=True):
        text = query.get(field, str(value))
        try:
            numbers[field] = float(text)
        except ValueError:
            raise ConfigError(f"{field} must be a number, got {text[:40]!r}") from None
    if numbers["digit"] not in range(10):
        raise ConfigError(f"digit must be a whole number from 0 to 9, got {query['digit'][:40]!r}")
    point = Point(procedure, int(numbers["digit"]), numbers["sigma"], numbers["epsilon"])
    parse(grid.config_of(point).model_dump())
    return point


def chosen(known: dict[Point, Run]) -> Point:
    """Where the sliders stand. Each offers what is computed under those before it, and snaps to the nearest."""
    values: list[Any] = []
    moved: list[str] = []
    places = st.columns([3, 2, 2, 3], gap="medium", vertical_alignment="bottom")
    labels = (
        "Victims' and attacker's training procedure",
        "Target digit",
        "Noise level σ (pixel units)",
        "Budget ε (L∞, pixel units)",
    )
    for position, (field, label) in enumerate(zip(_grid.FIELDS, labels, strict=True)):
        options = sorted({point[position] for point in known if point[:position] == tuple(values)})
        if field == "procedure":
            options = [name for name in grid.BASES if name in options]
        key = f"explore_{field}"
        if (asked_for := st.session_state[key]) not in options:
            st.session_state[key] = nearest(options, asked_for)
            if field != "procedure":
                moved.append(f"{label}, {asked_for:g} → {st.session_state[key]:g}")
        with places[position]:
            if field == "procedure":
                st.selectbox(
                    label, options, key=key, format_func=wording.PROCEDURE_NAMES.__getitem__, persist_state="session"
                )
            elif len(options) == 1:
                st.selectbox(label, options, key=key, format_func="{:g}".format, persist_state="session")
            else:
                st.select_slider(label, options, key=key, format_func="{:g}".format, persist_state="session")
        values.append(st.session_state[key])
    point = Point(*values)
    if moved:
        st.caption(f"Not computed here, so moved to the nearest: {'; '.join(moved)}.")
    address = {field: str(value) for field, value in zip(_grid.FIELDS, point, strict=True)}
    st.session_state["explore address"] = address
    st.query_params.update(address)
    return point


def nearest(options: list[Any], value: Any) -> Any:
    return options[0] if isinstance(value, str) else min(options, key=lambda option: abs(option - value))


# --- what is there ---


def numbers(run: Run, found: pd.DataFrame) -> None:
    """ACR with its interval, and the drop beside the controls'."""
    facts = run.report or {}
    places = st.columns(4)
    for place, arm in zip(places, ("clean", "poisoned"), strict=False):
        row = found.loc[arm]
        place.metric(
            f"ACR, {ARM_STYLE[arm].name} victims",
            f"{row.acr:.3f}",
            f"95 % interval {row.acr_low:.3f}–{row.acr_high:.3f}",
            delta_color="off",
            delta_arrow="off",
            border=True,
            height="stretch",
            help="Average certified radius of the target digit (L2, pixel units): mean over victims, approximate "
            "interval over test images.",
        )
    drop = facts["relative_drop"]
    places[2].metric(
        "ACR gone: poison",
        sentences.percent(drop.get("poisoned")),
        border=True,
        height="stretch",
        help="1 − ACR / ACR of the clean victim of the same seed; mean ± standard deviation over victims.",
    )
    places[3].metric(
        "ACR gone: noise · shuffled",
        " · ".join(sentences.percent(drop.get(arm)).replace(" ± ", "±").removesuffix(" %") for arm in CONTROLS) + " %",
        border=True,
        height="stretch",
        help="Random noise of the same ε, and the poison with its signs shuffled: the effect of changes of the same "
        "budget that are independent from pixel to pixel. "
        + "; ".join(f"{ARM_STYLE[arm].name}: {sentences.percent(drop.get(arm))}" for arm in CONTROLS),
    )


def images(run: Run, largest: float) -> None:
    """A few images: clean, poisoned, and their change on a scale that is the same for every ε."""
    indices, delta = poison(str(run.directory), stamp(run))
    rows = []
    if not datasets.available(run.config.dataset, _shared.data_root()):
        st.caption(
            "The images themselves cannot be shown without MNIST, which is not on this machine; their changes can."
        )
    elif (x_clean := _images.training_images(run, indices)) is not None:
        rows = [("Clean", pictures.shown(x_clean)), ("Poisoned", pictures.shown(x_clean + delta))]
    rows.append((f"Change δ, magnified ×{1 / largest:.3g}", pictures.shown_changes(delta, limit=largest)))
    scale = pictures.enlargement(delta.shape[2], pixels=84)
    for title, tiles in rows:
        st.image(
            pictures.png(pictures.mosaic(tiles, columns=SHOWN), scale=scale),
            caption=title,
            output_format="PNG",
            width="stretch",
            alt=f"{title}: {len(tiles)} training images of {sentences.target_of(run)}",
        )
    st.caption(
        f"The first {len(delta)} poisoned training images; each column is one. δ: {_images.change_words(delta)}; its "
        f"scale ends at ±{largest:g}, the largest ε here, so that a small ε looks faint."
    )


def take_epsilon() -> None:
    """Moves to the ε of the point that was clicked."""
    for mark in st.session_state["explore_line"].selection.points:
        data = mark.get("customdata")
        if data is not None and len(data):
            st.session_state["explore_epsilon"] = float(data["0"] if isinstance(data, dict) else data[0])


@st.fragment
def grid_view() -> None:
    known = _grid.points()
    begin(known)
    if problem := st.session_state.pop("explore problem", None):
        st.error(f"The link asks for what cannot be shown: {_links.plainly(problem)}.", icon=":material/error:")
    point = chosen(known)
    run, line = known[point], {other.epsilon: r for other, r in known.items() if other[:3] == point[:3]}
    accuracy, radii, by_arm, found = charts(str(run.directory), stamp(run))
    st.markdown(sentences.headline(run.report or {}))
    numbers(run, found)
    left, right = st.columns(2, gap="medium")
    with left:
        images(run, max(line))
    with right:
        figure = drop_by_epsilon(
            {epsilon: drops(str(r.directory), stamp(r)) for epsilon, r in line.items()}, point.epsilon
        )
        chart_and_data(figure, "explore_line", on_select=take_epsilon, selection_mode="points")
        st.caption("Click a point to go there. The controls change each pixel by itself.")
    left, right = st.columns(2, gap="medium")
    with left:
        chart_and_data(accuracy, "explore_accuracy")
        st.caption("The share of test images that keep their right answer under any change of L2 size below r.")
    with right:
        chart_and_data(radii, "explore_radii")
        st.caption("Left of the line: wrong and refused answers, whose radius counts as 0.")
    chart_and_data(by_arm, "explore_arms")
    st.caption(f"Run {run.id}. {sentences.limits_line(run)}{_one_image.rounding(run)}")
    ways_on(run, point)


def ways_on(run: Run, point: Point) -> None:
    with st.container(horizontal=True):
        for page, label, icon in (
            ("pages/inspect.py", "Look closely at this poison", ":material/search:"),
            ("pages/certify.py", "Its certificates, image by image", ":material/verified:"),
        ):
            if st.button(label, icon=icon, key=f"explore_to {page}", on_click=_shared.choose, args=(run.id,)):
                _shared.go(page)
        with st.popover("The same from the command line", icon=":material/terminal:"):
            st.code(_grid.command(point), language=None, wrap_lines=True)


_shared.need_frame()
_shared.chosen_run()  # which this page does not show, but a link to one that is not here is never passed over
st.title("Explore")
st.markdown(
    "Every position of these sliders is a finished experiment: poison made, victims trained from scratch on it, each "
    "test image certified. Move one, and all of it follows."
)
if _grid.points():
    grid_view()
    st.divider()
else:
    st.info("No finished run of a quick preset is here, not even those that come with the project (folder gallery/).")
_another_point.another_point()
