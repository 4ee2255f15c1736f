"""Where a poison is brought: a file, or a finished run to take it from; both are checked here, not in the browser."""

from collections.abc import Callable

import streamlit as st

from engine import datasets, poison_file, records
from engine.datasets import DatasetUnavailable
from engine.poison_file import PoisonFile
from engine.poison_format import PoisonFileRefused
from engine.records import RunNotFound
from pages import _form, _shared

UPLOAD, RUN, SAID = "poison file", "poison of run", "poison file said"


def widgets() -> None:
    """Uploader, run field, and what came of them."""
    st.file_uploader(
        f"Poison file (safetensors or npz, at most {st.get_option('server.maxUploadSize')} MB)",
        type=["safetensors", "npz"],
        key=UPLOAD,
        on_change=take_upload,
        help="delta float32 [P, C, H, W] in pixel units of [0, 1] (or int8 with a unit), and indices int64 [P] into "
        "the original training set: as a run's own poison.safetensors. Nothing pickled is read.",
    )
    st.text_input(
        "Or take the poison of a run, by its id",
        key=RUN,
        max_chars=16,
        on_change=take_run,
        help="To certify other victims, another procedure or another σ on the very same poison.",
    )
    good, text = st.session_state.get(SAID, (True, ""))
    if text:
        (st.success if good else st.error)(text)
    _form.widget("attack.file")


def take_upload() -> None:
    """Callback of the uploader."""
    upload = st.session_state.get(UPLOAD)
    if upload is not None:
        _take(lambda: poison_file.read(upload.getvalue()))


def take_run() -> None:
    """Callback of the run field."""
    identifier = str(st.session_state.get(RUN) or "").strip().lower()
    if identifier:
        _take(lambda: poison_file.of_run(records.find(_shared.runs_root(), identifier)))


def _take(bring: Callable[[], PoisonFile]) -> None:
    """Checks a poison against the chosen data set, keeps it, and fills in what it asks for."""
    dataset, data_root = _form.chosen("dataset"), _shared.data_root()
    try:
        poison = bring()
        target_class, epsilon = poison_file.fit(poison, dataset, data_root)
        poison_file.keep(poison, _shared.runs_root())
    except (PoisonFileRefused, RunNotFound, DatasetUnavailable, OSError) as error:
        text = " ".join(str(error).split())
        st.session_state[SAID] = (False, f"Not taken: {text}.")
        return
    filled = {"attack.file": poison.sha256, "threat.target_class": target_class}
    if _form.given("threat.epsilon") < epsilon:
        filled["threat.epsilon"] = epsilon
    for name, value in filled.items():
        st.session_state[_form.key_of(name)] = value
    words = datasets.class_in_words(dataset, target_class, _form.class_names(dataset))
    st.session_state[SAID] = (
        True,
        f"Taken: {len(poison.indices)} images of {words}, changed by at most {epsilon:g} (L∞). Filled in: "
        f"{', '.join(f'`{name}`' for name in filled)}.",
    )
