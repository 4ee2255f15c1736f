"""What all pages share: where things are, which run is open, cached reading. No computing, no torch."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.errors import StreamlitAPIException, StreamlitPageNotFoundError

from engine import datasets, index, pictures, records
from engine.config import Config
from engine.datasets import DATASETS
from engine.presets import PRESETS
from engine.records import GALLERY, Run

RUN_PARAMETER = "run"  # of the URL, and the key of the run picker in app.py
_OF_A_REPORT = ("config", "arms", "relative_drop", "certified_images", "radius_cap")
PAGES = (  # file, title, icon
    ("pages/start.py", "Start", ":material/flag:"),
    ("pages/poison.py", "Poison", ":material/science:"),
    ("pages/inspect.py", "Inspect", ":material/search:"),
    ("pages/certify.py", "Certify", ":material/verified:"),
    ("pages/runs.py", "Runs", ":material/list:"),
)


def navigation() -> Any:
    """The page to run, and the bar above it. The tab shows an emoji: a Material icon would come from the network."""
    st.set_page_config(page_title="PACD Lab", page_icon="🧪", layout="wide")
    st.session_state["in frame"] = True
    pages = [st.Page(file, title=title, icon=icon, default=file == PAGES[0][0]) for file, title, icon in PAGES]
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


def chosen_run() -> Run | None:
    """The run chosen in app.py's picker (the example while nothing is), or of the URL.

    None, with a plain warning, where there is no such run: never silently another one.
    """
    need_frame()
    identifier = st.session_state.get(RUN_PARAMETER) or st.query_params.get(RUN_PARAMETER)
    if not identifier:
        return example_run() if RUN_PARAMETER in st.session_state else None
    try:
        run = records.find(runs_root(), identifier.strip().lower())
        run.config  # noqa: B018 - reading it now tells a damaged run from a sound one
        if (report := run.report) is not None and not set(_OF_A_REPORT) <= set(report):
            raise records.RunNotFound(f"the report of run {run.id} is damaged")
        return run
    except records.RunNotFound as error:
        text = " ".join(str(error).split())[:300]
        st.warning(f"{text[0].upper()}{text[1:]}. It may have been deleted: choose another in the sidebar.")
        return None


def open_run() -> Run:
    """The chosen run; ends the page with a plain sentence where there is none."""
    run = chosen_run()
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
    runs = [Run(GALLERY / row["id"]) for row in _gallery_rows()]
    fitting = [run for run in runs if run.config.dataset == default_dataset()]
    return next(iter(fitting or runs), None)


def is_example(run: Run) -> bool:
    return run.directory.parent == GALLERY


def run_of(row: dict[str, Any]) -> Run:
    return Run((GALLERY if row["example"] else runs_root()) / row["id"])


def run_rows() -> list[dict[str, Any]]:
    """One row per run that can be opened, newest first, the project's examples last (example: True)."""
    root = runs_root()
    try:
        own = index.rows(root)
    except (OSError, sqlite3.Error) as error:
        st.warning(f"The list of runs under {root} cannot be read ({error}). Runs can still be opened by their id.")
        own = []
    mine = {row["id"] for row in own}
    examples = [row for row in _gallery_rows() if row["id"] not in mine]
    return [row | {"example": False} for row in own] + [row | {"example": True} for row in examples]


@st.cache_data(show_spinner=False)
def _gallery_rows() -> list[dict[str, Any]]:
    """Those of most victims first."""
    rows = [index.row_of(run) for run in records.all_runs(GALLERY)]
    return sorted(rows, key=lambda row: (-row["victim_seeds"], row["id"]))


def row_label(row: dict[str, Any]) -> str:
    """A run in a few words: name or preset, digit, ε, σ, seed, date, and its state where it is not simply done."""
    words = [
        row["name"] or row["preset"] or "own settings",
        f"digit {row['target_class']}",
        f"ε {row['epsilon']}",
        f"σ {row['sigma']}",
        f"seed {row['seed']}",
        "example" if row["example"] else moment(row["submitted"]),
        row["id"][:4],  # a select box tells options apart by these words
    ]
    state = [] if row["state"] == "done" else [row["state"]]
    return ("★ " if row["starred"] else "") + " · ".join(words + state)


def moment(seconds: float | None) -> str:
    """A point in time on this machine's clock."""
    return datetime.fromtimestamp(seconds).strftime("%d %b %Y %H:%M") if seconds else "–"


def duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def with_spread(value: dict[str, Any] | None, form: str = ".3f") -> str:
    """A summary of report.json as "mean ± standard deviation"."""
    if not value or value["mean"] is None:
        return "–"
    spread = "" if value["sd"] is None else f" ± {value['sd']:{form}}"
    return f"{value['mean']:{form}}{spread}"


def headline(report: dict[str, Any]) -> str:
    """What happened, in one sentence with the report's numbers."""
    config, arms = report["config"], report["arms"]
    digit, drop = config["threat"]["target_class"], report["relative_drop"].get("poisoned")
    acr = {arm: with_spread(values["average_certified_radius"]["target"]) for arm, values in arms.items()}
    if not drop or drop["mean"] is None:
        return (
            f"No victim of the clean and the poisoned arm is certified yet, so the drop for digit {digit} is unknown."
        )
    share = f"{abs(drop['mean']):.0%} {'less' if drop['mean'] >= 0 else 'more'}"
    noise, control = report["relative_drop"].get("random_noise"), ""
    if noise and noise["mean"] is not None:
        verb = "takes" if noise["mean"] >= 0 else "adds"
        control = f" Random noise of the same ε {verb} {abs(noise['mean']):.0%}."
    return (
        f"After poisoning, retrained victims certify digit {digit} with an average certified radius (ACR) of "
        f"**{acr['poisoned']}** instead of **{acr['clean']}**: **{share}**.{control}"
    )


def numbers_line(report: dict[str, Any]) -> str:
    """What the numbers of `headline` are: norm, unit, draws, seeds."""
    settings, victims = report["config"]["certification"], report["config"]["victim_seeds"]
    return (
        f"Radii: L2, pixel units of [0, 1], each wrong with probability ≤ α = {settings['alpha']}. Mean ± standard "
        f"deviation over {victims} victim seeds; {report['certified_images']['target']} test images, "
        f"n = {settings['n']} draws each."
    )


def dataset_words(config: Config) -> str:
    words = DATASETS[config.dataset]
    return words[0].upper() + words[1:]


def settings_line(config: Config) -> str:
    """What was asked for, in one line."""
    threat = config.threat
    return (
        f"{dataset_words(config)}; digit {threat.target_class}, ε = {threat.epsilon:g} (L∞, pixel units of [0, 1]), "
        f"poison fraction {threat.poison_fraction:.0%}, {config.procedure.name} training, σ = {config.sigma:g}, "
        f"seed {config.seed}."
    )


def triple_mosaic(x_clean: np.ndarray, delta: np.ndarray, *, epsilon: float, columns: int, scale: int = 4) -> None:
    """Clean images, poisoned images and their change, row under row. Args: [N, 1, H, W], N a multiple of columns."""
    x, d = x_clean[:, 0], delta[:, 0]
    rows = (
        ("Clean", pictures.shades(x), "grey from 0 (black) to 1 (white)"),
        ("Poisoned", pictures.shades(x + d), "the same grey scale"),
        (
            "Change δ = poisoned − clean, magnified",
            pictures.signed_colours(d, limit=epsilon or 1.0),
            f"×{1 / (2 * epsilon):.3g}: orange brighter, violet darker, white unchanged; the scale ends at ±ε = "
            f"±{epsilon:g} (L∞)"
            if epsilon
            else "ε = 0: nothing may change",
        ),
    )
    for title, tiles, scale_text in rows:
        picture = pictures.mosaic(tiles[:columns] if len(tiles) < columns else tiles, columns=columns)
        st.image(
            pictures.png(picture, scale=scale),
            caption=f"{title} ({scale_text})",
            output_format="PNG",
            width="stretch",
            alt=f"{title}: {len(tiles)} training images, {scale_text}",
        )


def incomparable(configs: Sequence[Config]) -> list[str]:
    """Why numbers of these runs must not be set side by side, a reason each; empty where they may be."""
    aspects: dict[str, Callable[[Config], Any]] = {
        "data set": lambda c: c.dataset,
        "target class (target_class)": lambda c: c.threat.target_class,
        "noise level σ (sigma)": lambda c: c.sigma,
        "estimation draws n, which cap the radius": lambda c: c.certification.n,
        "selection draws n0": lambda c: c.certification.n0,
        "failure probability α (alpha)": lambda c: c.certification.alpha,
        "number of test images (target_images, other_images)": lambda c: (
            c.certification.target_images,
            c.certification.other_images,
        ),
        "seed, hence other test images, training images and weights": lambda c: c.seed,
        "number of victim seeds": lambda c: c.victim_seeds,
    }
    reasons = []
    for aspect, value in aspects.items():
        found = list(dict.fromkeys(str(value(config)) for config in configs))
        if len(found) > 1:
            reasons.append(f"different {aspect}: {', '.join(found)}")
    return reasons


@st.cache_resource
def expected_device() -> str:
    """ "cuda" where an NVIDIA GPU and a torch that can use it seem to be here, else "cpu"; asks no torch."""
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    try:
        able = not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        able = False
    return "cuda" if has_gpu and able and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") else "cpu"


def page_link(page: str, label: str, icon: str) -> None:
    """A link to another page; plain text where a page runs alone, without app.py."""
    try:
        st.page_link(page, label=label, icon=icon)
    except StreamlitPageNotFoundError:
        st.caption(f"{label} (start the app with: streamlit run app.py)")


def mnist_notice() -> None:
    """Says on every page that numbers shown by default are not MNIST's, where MNIST is not on this machine."""
    if default_dataset() == "mnist":
        return
    st.info(
        f"MNIST is not on this machine (looked in {data_root() / 'MNIST' / 'raw'}), so the {DATASETS['digits']}, are "
        "used instead. To get MNIST: run `python -m engine fetch mnist` (12 MB from the network), or put its four .gz "
        "files in that folder, and reload this page.",
        icon=":material/info:",
    )


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


def training_images(run: Run, indices: np.ndarray) -> np.ndarray | None:
    """The original training images [N, 1, H, W] at these positions; None, with a warning, where they aren't here."""
    dataset = run.config.dataset
    try:
        return datasets.read_training_images(dataset, data_root(), indices)
    except datasets.DatasetUnavailable as error:
        st.warning(f"This run used {DATASETS[dataset]}, which is needed to rebuild its images: {error}.")
        return None


def limits_line(run: Run) -> str:
    """What a reader must know before trusting a number of this run: sizes, draws, seeds, data set, whole or partial."""
    config, settings = run.config, run.config.certification
    partial = "" if run.status().state == "done" else f"PARTIAL RESULT ({run.status().state}). "
    authors = PRESETS["paper-ga-mnist"].config.model_copy(update={"seed": config.seed, "threat": config.threat})
    paper = "" if config == authors else " Not the paper's setting."
    return (
        f"{partial}{dataset_words(config)}. {settings.target_images} test images of digit "
        f"{config.threat.target_class} and {settings.other_images} of each other digit, n = {settings.n} draws, "
        f"α = {settings.alpha} for each certificate, σ = {config.sigma}, {config.victim_seeds} victims an arm. "
        f"ε is L∞, radii are L2, both in pixel units of [0, 1].{paper}"
    )
