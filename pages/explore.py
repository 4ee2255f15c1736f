"""Explore: finished runs on a grid of settings; a slider moves from one to the next at once."""

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from engine import datasets, grid
from engine.config import ConfigError
from engine.figures import pictures
from engine.figures.grid import drop_by_epsilon
from engine.figures.images import selected
from engine.figures.radii import acr_by_arm, certified_accuracy, radius_histogram
from engine.grid import Point
from engine.overrides import parse
from engine.records import Run
from engine.report import commands, sentences, wording
from pages import _another_point, _drops, _form, _grid, _images, _links, _one_image, _shared
from pages._export import chart_and_data
from pages._show import picture

BEGIN = Point("gaussian", 8, 0.5, 0.1)
SHOWN = 8


@st.cache_data(max_entries=400, show_spinner=False)
def drops(directory: str, stamp: int) -> dict[str, Any]:
    return (Run(Path(directory)).report or {}).get("relative_drop", {})


@st.cache_data(max_entries=100, show_spinner=False)
def charts(directory: str, stamp: int) -> tuple[Any, Any, Any]:
    """(certified accuracy, radii, ACR by arm) of a run."""
    run = Run(Path(directory))
    table, config = run.need_certificates(), run.config
    target = sentences.target_of(run)
    return (
        certified_accuracy(table, config, target=target),
        radius_histogram(table, config, arms=["clean", "poisoned"], target=target),
        acr_by_arm(run.need_report()),
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


def arrives(known: dict[Point, Run]) -> bool:
    """Whether the address is another than this page left there, of a link or by the browser's Back button: then the
    sliders go where it says, without it to where they were when the page was opened so. Nonsense is refused in words.
    """
    address = {field: st.query_params[field] for field in _grid.FIELDS if field in st.query_params}
    begin = BEGIN if BEGIN in known else next(iter(known))
    comes = "explore_epsilon" not in st.session_state  # Streamlit forgets the widgets of a page that is left
    if not comes and address == st.session_state["explore address"]:
        return False
    if comes and not address:
        st.session_state["explore start"] = st.session_state.get("explore point", begin)
    start = begin if address else st.session_state.get("explore start", begin)
    try:
        _grid.go_to(asked(start))
    except ConfigError as error:
        words = _links.plainly(_form.in_words(error))
        st.error(f"This link asks for a point that cannot be: {words}.", icon=":material/error:")
        _grid.go_to(start)
    st.session_state["explore address"] = address
    return True


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


def chosen(known: dict[Point, Run]) -> tuple[Point, Point]:
    """(what the sliders were moved to, where they stand): each offers what is computed under those before it, and
    snaps to the nearest of that.
    """
    wanted: list[Any] = []
    values: list[Any] = []
    labels = ("Training procedure", "Target digit", *_another_point.LABELS)
    places = st.columns([3, 2, 2, 3], gap="medium", vertical_alignment="bottom")
    for place, field, label in zip(places, _grid.FIELDS, labels, strict=True):
        options = sorted({point[len(values)] for point in known if point[: len(values)] == tuple(values)})
        key = f"explore_{field}"
        wanted.append(st.session_state[key])
        if wanted[-1] not in options:
            st.session_state[key] = nearest(options, wanted[-1])
        if field == "procedure":
            options = [name for name in grid.BASES if name in options]
            place.selectbox(label, options, key=key, format_func=wording.PROCEDURE_NAMES.__getitem__)
        elif len(options) == 1:  # of which Streamlit makes no slider
            place.selectbox(label, options, key=key, format_func="only {:g} is computed".format, disabled=True)
        else:
            place.select_slider(label, options, key=key, format_func="{:g}".format)
        values.append(st.session_state[key])
    return Point(*wanted), Point(*values)


def shown_point(known: dict[Point, Run]) -> Point:
    """Where the sliders stand. The address follows once one was moved, not before: Back then leads where one was."""
    arrived = arrives(known)
    wanted, point = chosen(known)
    if arrived or wanted != st.session_state["explore point"]:
        st.session_state["explore wanted"] = wanted
        _another_point.fill(wanted)
        if not arrived:
            st.session_state["explore address"] = _grid.address(point)
            st.query_params.update(_grid.address(point))
    st.session_state["explore point"] = point
    wanted = st.session_state["explore wanted"]
    if wanted != point:
        st.info(
            f"Not computed yet: **{_grid.name_of(wanted)}**. The nearest point that has been computed is shown: "
            f"{_grid.name_of(point)}.",
            icon=":material/info:",
        )
    with st.expander(
        "Compute a point that is not on the sliders", icon=":material/add_circle:", expanded=wanted != point
    ):
        _another_point.another_point()
    return point


def nearest(options: list[Any], value: Any) -> Any:
    return options[0] if isinstance(value, str) else min(options, key=lambda option: abs(option - value))


# --- what is there ---


def images(run: Run, largest: float) -> None:
    """A few images: clean, poisoned, and their change on a scale that is the same for every ε."""
    indices, delta = poison(str(run.directory), stamp(run))
    rows = []
    if not datasets.available(run.config.dataset, _shared.data_root()):
        st.caption("Without MNIST, which is not on this machine, only the changes can be shown, not the images.")
    elif (x_clean := _images.training_images(run, indices)) is not None:
        rows = [("Clean", pictures.shown(x_clean)), ("Poisoned", pictures.shown(x_clean + delta))]
    rows.append((f"Change δ, magnified ×{1 / largest:.3g}", pictures.shown_changes(delta, limit=largest)))
    scale = pictures.enlargement(delta.shape[2], pixels=84)
    for title, tiles in rows:
        text = f"{title}: {len(tiles)} training images of {sentences.target_of(run)}"
        picture(pictures.mosaic(tiles, columns=SHOWN), scale=scale, caption=title, text=text, width="stretch")
    st.caption(
        f"The first {len(delta)} poisoned training images; each column is one. δ = poisoned − clean: "
        f"{_images.change_words(delta)}; its scale ends at ±{largest:g}, the largest ε here, so that a small ε looks "
        "faint."
    )


def take_epsilon() -> None:
    """Moves to the ε of the point that was clicked."""
    if (epsilon := selected(st.session_state["explore_line"].selection.points)) is not None:
        st.session_state["explore_epsilon"] = float(epsilon)


@st.fragment
def grid_view() -> None:
    known = _grid.points()
    point = shown_point(known)
    run, line = known[point], {other.epsilon: r for other, r in known.items() if other[:3] == point[:3]}
    accuracy, radii, by_arm = charts(str(run.directory), stamp(run))
    st.markdown(sentences.headline(run.report or {}))
    _drops.cards(run.report or {})
    left, right = st.columns(2, gap="medium")
    with left:  # first where columns stand below each other: a slider's effect is to be seen beside it
        figure = drop_by_epsilon(
            {epsilon: drops(str(r.directory), stamp(r)) for epsilon, r in line.items()}, point.epsilon
        )
        if len(line) == 1:
            st.caption(f"Only ε = {point.epsilon:g} is computed here, so there is no chart over ε yet.")
        else:
            st.markdown(":material/touch_app: Click a point to go there.")
            chart_and_data(figure, "explore_line", on_select=take_epsilon, selection_mode="points")
        st.caption("The controls (random noise, shuffled signs) change each pixel independently.")
    with right:
        images(run, max(line))
    left, right = st.columns(2, gap="medium")
    with left:
        chart_and_data(accuracy, "explore_accuracy")
        st.caption("The share of test images classified correctly, provably so under any change smaller than r (L2).")
    with right:
        chart_and_data(radii, "explore_radii")
        st.caption("Left of the line: wrong answers and abstentions, whose radius counts as 0.")
    chart_and_data(by_arm, "explore_arms")
    st.caption(f"Run {run.id}. {sentences.limits_line(run)}{_one_image.rounding(run)}")
    ways_on(run, point)


def ways_on(run: Run, point: Point) -> None:
    with st.container(horizontal=True):
        _shared.run_link("pages/inspect.py", "Inspect this poison", run)
        _shared.run_link("pages/certify.py", "Certificates, image by image", run)
        with st.popover("The same from the command line", icon=":material/terminal:"):
            st.code(commands.command(point.preset, point.overrides), language=None, wrap_lines=True)


_shared.need_frame()
_shared.chosen_run()  # which this page does not show, but a link to one that is not here is never passed over
st.title("Explore")
st.markdown(
    "Every position of these sliders is a finished experiment: poison was made, victims were trained on it from "
    "scratch, and test images were certified. Where a combination has not been computed, the nearest one is shown."
)
if _grid.points():
    grid_view()
else:
    st.info("No finished run of a quick preset is here, not even those that come with the project (folder gallery/).")
    _another_point.another_point()
