"""A run's poison as pages read it: cached, measured, finished or as it was after one of the attack's recorded steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import datasets, perception
from engine.figures import attack
from engine.records import Run
from pages import _images, _links, _one_image, _selection, _shared

Stamp = int  # a file's modification time, so that a new file is read


@st.cache_resource(max_entries=8, show_spinner=False)
def _tensors(directory: str, name: str, stamp: Stamp) -> dict[str, np.ndarray]:
    """A safetensors file of a run, delta as float32. Not to be written to."""
    tensors = Run(Path(directory)).tensors(name)
    assert tensors is not None
    return tensors | {"delta": tensors["delta"].astype(np.float32)}


@st.cache_resource(max_entries=4, show_spinner="Reading images …")
def _originals(directory: str, stamp: Stamp, root: str) -> np.ndarray:
    """The poison images as they were [P, C, H, W]. Raises: DatasetUnavailable."""
    run = Run(Path(directory))
    run.check_images(Path(root))
    return datasets.read_training_images(
        run.config.dataset, Path(root), _tensors(directory, "poison", stamp)["indices"]
    )


@st.cache_data(max_entries=16, show_spinner="Measuring the poison …")
def _measured(directory: str, root: str, stamp: Stamp, of_steps: Stamp | None, step: int | None) -> pd.DataFrame:
    poison = _tensors(directory, "poison", stamp)
    delta = poison["delta"]
    if of_steps is not None:
        evolution = _tensors(directory, "evolution", of_steps)
        delta = evolution["delta"][list(evolution["steps"]).index(step)]
    found = perception.measure(_originals(directory, stamp, root)[: len(delta)], delta)
    table = pd.DataFrame({name: getattr(found, name) for name in ("linf", "l2", "psnr", "ssim", "changed_share")})
    return table.assign(number=np.arange(len(table)), training_image=poison["indices"][: len(table)])


@st.cache_data(max_entries=8, show_spinner=False)
def _histogram(directory: str, stamp: Stamp, epsilon: float) -> Any:
    return attack.perturbation_histogram(_tensors(directory, "poison", stamp)["delta"], epsilon)


def stamp_of(run: Run, name: str) -> Stamp | None:
    try:
        return (run.directory / f"{name}.safetensors").stat().st_mtime_ns
    except OSError:
        return None


class Poison:
    """The poison images of a run that changed some, after a step of the attack; None: finished.

    Only the first images have recorded steps: after a step that is not the last, `delta` holds no others.
    """

    def __init__(self, run: Run, step: int | None = None) -> None:
        stamp, self.of_steps = stamp_of(run, "poison"), stamp_of(run, "evolution") if step is not None else None
        assert stamp is not None
        self.run, self.stamp, self.step = run, stamp, step
        finished = _tensors(str(run.directory), "poison", stamp)
        self.indices, self.finished, self.delta = finished["indices"], finished["delta"], finished["delta"]
        if self.of_steps is not None:
            evolution = _tensors(str(run.directory), "evolution", self.of_steps)
            self.delta = evolution["delta"][list(evolution["steps"]).index(step)]

    def __len__(self) -> int:
        return len(self.finished)

    def change(self, k: int) -> np.ndarray:
        """δ of poison image k [C, H, W]: after the step where it is recorded, else finished."""
        return self.delta[k] if k < len(self.delta) else self.finished[k]

    def when(self, k: int) -> str:
        """In words, which of the two `change` gives."""
        if self.step is None:
            return "as the attack left it"
        if k < len(self.delta):
            return f"as it was after upper step {self.step}"
        return f"as the attack left it (only the first {len(self.delta)} poison images have recorded steps)"

    def originals(self) -> np.ndarray:
        """[P, C, H, W] as they were, or the end of the page where the data set is not on this machine."""
        try:
            return _originals(str(self.run.directory), self.stamp, str(_shared.data_root()))
        except datasets.DatasetUnavailable as error:
            _images.missing(self.run.config.dataset, error)
            st.stop()

    def measured(self, *, finished: bool = False) -> pd.DataFrame:
        """L∞, L2, PSNR, SSIM and share of changed pixels of each image in `delta`: a row each, by its number."""
        then = (None, None) if finished else (self.of_steps, self.step)
        return _measured(str(self.run.directory), str(_shared.data_root()), self.stamp, *then)

    def histogram(self) -> Any:
        return _histogram(str(self.run.directory), self.stamp, self.run.config.threat.epsilon)


def opened(run: Run) -> Poison:
    """The run's poison, or the end of the page with a sentence where there is no change to look at."""
    if run.config.attack.name == "none":
        st.info("This run has no attack: nothing was changed, and there is nothing to look for.")
        st.stop()
    if stamp_of(run, "poison") is None:
        not_yet(run)
        st.stop()
    if not len(found := Poison(run)):
        st.info(f"This run changed no image: poison fraction {run.config.threat.poison_fraction:g}.")
        st.stop()
    if _images.only_labels(run):
        st.stop()
    return found


def not_yet(run: Run) -> None:
    """Says that there is no poison yet, and draws the page anew once there is, or never will be."""
    active = run.status().active
    st.info(f"This run has no poison yet: it is {run.status().state}.")
    _shared.watch_link(run)

    def wait() -> None:
        if active and (stamp_of(run, "poison") is not None or not run.status().active):
            st.rerun()

    st.fragment(wait, run_every="2s" if active else None)()


def steps_of(run: Run) -> list[int]:
    """The recorded upper steps that a slider can go through, at its end the last one made; empty if it cannot."""
    stamp = stamp_of(run, "evolution")
    if stamp is None:
        return []
    evolution = _tensors(str(run.directory), "evolution", stamp)
    recorded = [int(step) for step in evolution["steps"]]
    return sorted({*recorded, max(len(evolution["upper_loss"]), recorded[-1])}) if len(recorded) > 1 else []


def recorded(run: Run) -> int:
    """How many of the poison images, the first ones, have recorded steps."""
    stamp = stamp_of(run, "evolution")
    return 0 if stamp is None else _tensors(str(run.directory), "evolution", stamp)["delta"].shape[1]


def after_step(run: Run) -> Poison:
    """The poison after the step that one slider chooses, for all panels that show poison."""
    finished, steps = opened(run), steps_of(run)
    if not steps:
        return finished
    _links.check(attack_step=steps)
    _selection.forget("attack_step", steps)
    planned = run.config.attack.upper_steps
    last = "finished poison" if steps[-1] >= planned else f"where it stopped, of {planned}"
    step = int(
        st.select_slider(
            f"After upper step (the last: {last})",
            steps,
            value=steps[-1],
            key="attack_step",
            bind="query-params",
            persist_state="session",
            help="Moves every picture of poison on this page. Before the last step, only the first "
            f"{recorded(run)} images are known, whose steps were recorded.",
        )
    )
    return finished if step == steps[-1] else Poison(run, step)


def controls(run: Run) -> tuple[Poison, int, float, str]:
    """One row of widgets: (poison after the chosen step, chosen image, end of δ's scale, its words)."""
    opened(run)  # or the end of the page, before it is in columns
    left, middle, right = st.columns([2, 4, 3], vertical_alignment="bottom", gap="medium")
    with middle:
        poison = after_step(run)
    with left:
        k = _selection.poison_image(len(poison))
    with right:
        limit, words = _one_image.magnification("magnify", run.config.threat.epsilon)
    return poison, k, limit, words
