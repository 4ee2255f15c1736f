"""One chosen poison image, one chosen test image, one pinned image: the same on all pages, in session and URL."""

from collections.abc import Sequence
from typing import Any, TypeVar

import streamlit as st

from engine import records
from engine.figures import images
from engine.records import Run
from pages import _links, _shared

T = TypeVar("T")
KEYS = {"training": "poison_image", "test": "test_image"}  # of widgets, and of the URL
NAMES = {"training": "poison image", "test": "test image"}
_PINNED = "pinned"  # (run's id, kind, number) in the session; in the URL with points between them


def forget(key: str, options: Sequence[Any], what: str = "") -> None:
    """Another run may not offer the value that the session remembers. Args: what: its name, to say so."""
    if (value := st.session_state.get(key)) is not None and value not in options:
        del st.session_state[key]
        if what:
            st.caption(f"{what} {value} was chosen, but this run has none with that number, so the first is shown.")


def segmented(label: str, options: Sequence[T], *, default: T, key: str, **settings: Any) -> T:
    """A bar of options of which the address keeps one. Where that is empty (`?view=`) Streamlit would choose none."""
    chosen = st.segmented_control(
        label, options, default=default, required=True, key=key, bind="query-params", **settings
    )
    return default if chosen is None else chosen


def poison_image(count: int) -> int:
    """The chosen poison image's number, by its widget."""
    key, last = KEYS["training"], count - 1
    _links.check(**{key: range(count)})
    forget(key, range(count), "Poison image")
    return int(
        st.number_input(f"Poison image, 0 to {last}", 0, last, key=key, bind="query-params", persist_state="session")
    )


def test_image(options: Sequence[int], label: str) -> int:
    """The chosen test image's number, by its widget; the first of the options where none was chosen."""
    key = KEYS["test"]
    _links.check(**{key: options})
    forget(key, options, "Test image")
    return int(
        st.selectbox(
            label,
            options,
            format_func=str,
            key=key,
            bind="query-params",
            persist_state="session",
            help="Click an image or a point of a chart, or choose or type a number here. One choice for all pages.",
        )
    )


def victim(numbers: Sequence[int]) -> int:
    """The chosen victim's number, by its widget; the first where none was chosen."""
    key = "victim"
    _links.check(**{key: numbers})
    forget(key, numbers)
    return segmented("Victim seed", numbers, default=numbers[0], key=key)


def take(chart_key: str, kind: str) -> None:
    """Chooses the image whose tile or point was just clicked; for charts' callbacks."""
    if (number := images.selected(st.session_state[chart_key].selection.points)) is not None:
        st.session_state[KEYS[kind]] = int(number)


def pinned() -> tuple[Run, str, int] | None:
    """(run, kind, number) of the pinned image; a pin whose run is gone is dropped, with a sentence.

    It is the session's or the link's, and the address carries it from then on.
    """
    if _PINNED not in st.session_state and (linked := st.query_params.get(_PINNED)) is not None:
        _take_pin(linked)
    found = st.session_state.get(_PINNED)
    if found is None:
        return None
    st.query_params[_PINNED] = ".".join(map(str, found))
    identifier, kind, number = found
    try:
        run = records.find(_shared.runs_root(), identifier)
        run.config  # noqa: B018 - it must be readable
    except records.RunNotFound:
        st.warning(
            f"The pinned {NAMES[kind]} {number} belonged to run {identifier}, which is gone, so it was unpinned."
        )
        _unpin()
        return None
    return run, kind, number


def _take_pin(linked: str) -> None:
    """Pins what a link asks for; or says why not, and takes it out of the address."""
    identifier, _, rest = linked.partition(".")
    kind, _, number = rest.partition(".")
    allowed: Sequence[int] = ()
    try:
        run = records.find(_shared.runs_root(), identifier)
        if kind == "training":
            changed = run.tensors("poison")
            allowed = range(len(changed["delta"])) if changed else ()
        elif kind == "test":
            table = run.certificates()
            allowed = sorted(set(table["image"])) if table is not None else ()
    except (records.RunNotFound, OSError) as error:
        must = f"of a run that has images to show here ({error})"
    else:
        if _links.fits(number, allowed):
            _pin(run.id, kind, int(number))
            return
        must = f"RUN.KIND.NUMBER with KIND one of {', '.join(NAMES)}"
        if kind in NAMES:
            must = f"{run.id}.{kind}.NUMBER with NUMBER {_links.in_words(allowed)}"
    _links.refuse(_PINNED, linked, must)
    del st.query_params[_PINNED]


def _pin(identifier: str, kind: str, number: int) -> None:
    st.session_state[_PINNED] = (identifier, kind, number)


def _unpin() -> None:
    st.session_state.pop(_PINNED, None)
    if _PINNED in st.query_params:
        del st.query_params[_PINNED]


def row(run: Run, kind: str, number: int, *, link: bool = True) -> None:
    """Beside a chosen image: pin it, unpin what is pinned, open it alone, and what else is chosen."""
    other = "test" if kind == "training" else "training"
    pinned()  # the link's, too
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Pin this image",
            key=f"pin {kind}",
            on_click=_pin,
            args=(run.id, kind, number),
            disabled=st.session_state.get(_PINNED) == (run.id, kind, number),
            icon=":material/keep:",
            help="Keeps it beside whatever you choose next, on the same scale, on every page that shows images.",
        )
        if (kept := st.session_state.get(_PINNED)) is not None:
            st.button(f"Unpin {NAMES[kept[1]]} {kept[2]}", key="unpin", on_click=_unpin, icon=":material/keep_off:")
        if link:
            _shared.page_link("pages/image.py", "How victims vote on it")
        chosen = st.session_state.get(KEYS[other])
        if chosen is not None:
            st.caption(f"Also chosen: {NAMES[other]} {chosen}.")
