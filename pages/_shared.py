"""What all pages share: where things are, which run is open, cached reading. No computing, no torch."""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from engine import datasets, records
from engine.datasets import DATASETS
from engine.records import Run

RUN_PARAMETER = "run"  # of the URL, and the key of the run picker in app.py


def runs_root() -> Path:
    return records.default_root()


def data_root() -> Path:
    return datasets.default_root()


def default_dataset() -> str:
    """MNIST where its files are on this machine, else the embedded digits (app.py says so on every page)."""
    return "mnist" if datasets.available("mnist", data_root()) else "digits"


def open_run() -> Run:
    """The run chosen in app.py's picker, or of the URL; ends the page with a plain sentence where there is none."""
    identifier = st.session_state.get(RUN_PARAMETER) or st.query_params.get(RUN_PARAMETER)
    if not identifier:
        st.info("No run is open. Choose one in the sidebar, or start one on the Poison page.")
        st.stop()
    try:
        return records.find(runs_root(), identifier)
    except records.RunNotFound as error:
        st.warning(f"{str(error)[0].upper()}{str(error)[1:]}. It may have been deleted: choose another in the sidebar.")
        st.stop()


@st.cache_data(max_entries=16, show_spinner=False)
def certificates(directory: str, stamp: int) -> pd.DataFrame:
    """The certificate table of a run directory; stamp is the file's modification time, so that a new file is read."""
    table = Run(Path(directory)).certificates()
    assert table is not None
    return table


def open_certificates(run: Run) -> pd.DataFrame:
    """The run's certificate table, or the end of the page with a sentence while there is none."""
    try:
        stamp = (run.directory / "certificates.parquet").stat().st_mtime_ns
        return certificates(str(run.directory), stamp)
    except OSError:
        st.info(f"Run {run.id} has no certificates yet: it is {run.status().state}.")
        st.stop()


@st.cache_resource(max_entries=4, show_spinner="Reading images …")
def dataset_images(dataset: str, root: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [N, 1, 28, 28] in [0, 1], labels [N]), read-only and shared by all sessions."""
    return datasets.read(dataset, Path(root), train=train)


def images_of(run: Run, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """The original training or test set that a run used, or the end of the page if it is not on this machine."""
    dataset = run.config.dataset
    try:
        return dataset_images(dataset, str(data_root()), train)
    except datasets.DatasetUnavailable as error:
        st.warning(f"This run used {DATASETS[dataset]}, which is needed to rebuild its images: {error}.")
        st.stop()


def limits_line(run: Run) -> str:
    """What a reader must know before trusting a number of this run: sizes, draws, seeds, data set, whole or partial."""
    config, settings = run.config, run.config.certification
    partial = "" if run.status().state == "done" else f"PARTIAL RESULT ({run.status().state}). "
    paper = "" if run.request.get("preset") == "paper-ga-mnist" else " Not the paper's setting."
    return (
        f"{partial}{DATASETS[config.dataset]}. {settings.target_images} test images of digit "
        f"{config.threat.target_class} and {settings.other_images} of each other digit, n = {settings.n} draws, "
        f"α = {settings.alpha} for each certificate, σ = {config.sigma}, {config.victim_seeds} victims an arm. "
        f"ε is L∞, radii are L2, both in pixel units of [0, 1].{paper}"
    )
