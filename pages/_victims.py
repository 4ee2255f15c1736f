"""Finished victims asked by pages: their answers and votes on single images. Torch is imported when first asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import metrics
from engine.certification import ABSTAIN
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.status import ACTIVE
from pages import _selection, _shared

UNASKED = 400  # draws that are counted without being asked for: large networks are slow


@dataclass(frozen=True)
class Victim:
    """A victim whose weights the run directory holds; stamp: when they were written."""

    directory: str
    arm: str
    k: int
    stamp: int


def kept(run: Run) -> list[Victim]:
    """In the order of numbers and arms."""
    paths = {victim: run.directory / "victims" / f"{victim[0]}-{victim[1]}.safetensors" for victim in run.victims()}
    return [Victim(str(run.directory), arm, k, path.stat().st_mtime_ns) for (arm, k), path in paths.items()]


def to_ask(run: Run, key: str, shape: tuple[int, ...]) -> list[Victim]:
    """The victims of one number, an arm each, as the reader chooses it; else a sentence, and none.

    Args:
        shape: of an image that they are to be asked about, (C, H, W).
    """
    found = kept(run)
    if not found:
        st.info(why_none(run))
        if not _shared.is_example(run) and run.status().state != "done":
            _shared.page_link("pages/poison.py", "Go to Poison")
        example = _shared.example_run()
        if example is not None and example.id != run.id and kept(example):
            st.button("Open the example", on_click=_shared.choose, args=(example.id,), icon=":material/folder_open:")
        return []
    numbers = sorted({victim.k for victim in found})
    _selection.forget(key, numbers)
    number = numbers[0]
    if len(numbers) > 1:
        number = st.segmented_control("Victim seed", numbers, default=numbers[0], required=True, key=key)
    return [victim for victim in found if victim.k == number and sound(victim, shape)]


def why_none(run: Run) -> str:
    """Why this run has no victims to ask, and what to do."""
    if (state := run.status().state) == "done" or _shared.is_example(run):
        return (
            f"Run {run.id} keeps no weights of its victims, so they cannot be asked again. Your own runs and the "
            "examples keep them."
        )
    if state in ACTIVE:
        return f"Run {run.id} has not trained its victims yet, so nobody can vote. Wait for it, or open the example."
    became = {"cancelled": "was cancelled", "lost": "was lost"}.get(state, "failed")
    return (
        f"Run {run.id} {became} before its victims were trained, so nobody can vote. Resume it on Poison, or open the "
        "example."
    )


def sound(victim: Victim, shape: tuple[int, ...]) -> bool:
    """Whether its weights fit its configuration; says so where they do not."""
    try:
        _model(victim, shape)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        st.warning(f"The weights of the {ARM_STYLE[victim.arm].name} victim {victim.k} cannot be used: {text}")
        return False
    return True


@st.cache_resource(max_entries=8, show_spinner="Loading the victims …")
def _model(victim: Victim, shape: tuple[int, ...]) -> Any:
    """In evaluation mode, and to be left so: all visitors share it."""
    from pathlib import Path

    import torch

    from engine.experiment import victims

    torch.set_num_threads(1)  # of all visitors' threads: several would wait for each other beside a run that computes
    return victims.load(Run(Path(victim.directory)), victim.arm, victim.k, shape=shape)


@st.cache_data(max_entries=64, show_spinner="Asking the victims …", hash_funcs={np.ndarray: np.ndarray.tobytes})
def answers(victim: Victim, images: np.ndarray) -> np.ndarray:
    """Softmax confidences [N, K] of the base classifier on float32 images [N, C, H, W], without noise.

    Told apart by all their bytes: of more than half a million values Streamlit itself would hash only a sample.
    """
    import torch

    with torch.no_grad():
        return _model(victim, images.shape[1:])(torch.tensor(images)).softmax(dim=1).numpy()


@st.cache_data(max_entries=64, show_spinner="The victims vote …")
def votes(victim: Victim, image: np.ndarray, sigma: float, n0: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(selection, estimation) votes int64 [K] on a float32 image [C, H, W]; the same seed, the same noise."""
    from engine.experiment import victims

    found = victims.votes(_model(victim, image.shape), image[None], sigma=sigma, n0=n0, n=n, seed=seed)
    return found.selection[0].numpy(), found.estimation[0].numpy()


@st.cache_data(max_entries=64, show_spinner="Drawing until it is settled …")
def certified_again(victim: Victim, image: int, root: str, **settings: Any) -> tuple[int, float, int]:
    """(answer, radius, draws) of more_draws.certify_again for one of the run's test images."""
    from pathlib import Path

    from engine.experiment import more_draws

    run = Run(Path(victim.directory))
    (table,) = more_draws.certify_again(run, victim.arm, victim.k, data_root=Path(root), images=[image], **settings)
    (row,) = table.itertuples()
    return int(row.prediction), float(row.radius), int(row.draws)


def certificates(
    asked: Sequence[Victim], image: np.ndarray, *, sigma: float, n0: int, n: int, alpha: float, seed: int
) -> pd.DataFrame:
    """A row of a certificate table per victim, for an image [C, H, W] that has no label (−1)."""
    given = np.ascontiguousarray(image, dtype=np.float32)
    counted = [votes(victim, given, sigma, n0, n, seed) for victim in asked]
    selection, estimation = map(np.stack, zip(*counted, strict=True))
    table = metrics.certificates(selection, estimation, sigma=sigma, alpha=alpha)
    return table.assign(arm=[victim.arm for victim in asked], victim=[victim.k for victim in asked], label=-1)


def verdict(row: Any, names: Sequence[str]) -> str:
    """A row of a certificate table in a sentence."""
    who, share = f"The **{ARM_STYLE[row.arm].name}** victim", f"{row.n_top:,} of {row.n:,} votes"
    answer = names[row.selected_class]
    if row.prediction == ABSTAIN:
        return (
            f"{who} **abstains**: earlier draws selected {answer} (★), but with {share} for it, it cannot be sure that "
            f"more than half of all noisy copies are classified as {answer} (p_lower = {row.p_lower:.3f}). So it gives "
            "no answer, and its radius is 0."
        )
    return f"{who} answers **{answer}**, and no change smaller than **{row.radius:.3f}** (L2) can alter that ({share})."
