"""What can be taken away from a page: a figure's data as CSV, a run's images as PNG."""

from typing import Any

import numpy as np
import streamlit as st

from engine import datasets
from engine.figures import data as figure_data
from engine.figures import pictures
from engine.records import Run
from pages import _shared
from pages._show import chart

MOST_IMAGES, COLUMNS, GAP = 60, 12, 8
TILE = 112  # pixels that an image is brought near to


def chart_and_data(figure: Any, key: str, **options: Any) -> Any:
    """The figure, and below it its data; returns what the figure's selection is."""
    found = chart(figure, key, **options)
    data(figure, key)
    return found


def data(figure: Any, key: str) -> None:
    """A button below a figure: every series that it shows, point by point. The CSV is made when it is pressed."""
    title = str(figure.layout.title.text or "figure")
    st.download_button(
        "Data (CSV)",
        lambda: figure_data.csv(figure),
        f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in title.lower()).split())}.csv",
        "text/csv",
        key=f"data {key}",
        type="tertiary",
        icon=":material/table:",
        help=f"{title}: every series that it shows, point by point.",
        on_click="ignore",
    )


def mosaic(run: Run, *, enlarged: bool) -> bytes:
    """The run's first images clean, poisoned, and their changes, three blocks in one PNG; a pixel as one or enlarged.

    Raises: DatasetUnavailable; ValueError, where the run changed no image.
    """
    poison = run.tensors("poison")
    if poison is None or "labels" in poison or not len(poison["indices"]):
        raise ValueError(f"run {run.id} changed no image")
    delta, indices = poison["delta"][:MOST_IMAGES], poison["indices"][:MOST_IMAGES]
    run.check_images(_shared.data_root())
    clean = datasets.read_training_images(run.config.dataset, _shared.data_root(), indices)
    limit = run.config.threat.epsilon or 1.0
    blocks = [
        _coloured(pictures.mosaic(tiles, columns=min(COLUMNS, len(tiles))))
        for tiles in (pictures.shown(clean), pictures.shown(clean + delta), pictures.shown_changes(delta, limit=limit))
    ]
    space = np.full((GAP, *blocks[0].shape[1:]), 255, dtype=np.uint8)
    picture = np.concatenate([blocks[0], space, blocks[1], space, blocks[2]])
    return pictures.png(picture, scale=pictures.enlargement(delta.shape[2], pixels=TILE) if enlarged else 1)


def _coloured(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else picture[..., None].repeat(3, axis=2)
