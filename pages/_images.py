"""Images of a run's data set as pages show them: cached reading, and rows of clean, poisoned and changed ones."""

import numpy as np
import streamlit as st

from engine import datasets
from engine.figures import pictures
from engine.records import Run
from engine.report import sentences
from pages import _shared
from pages._show import picture

TILE = 112  # pixels on the screen that an image is brought near to, in whole enlargements
NOISY = 5  # copies beside an image
GREY_CHANGE = "orange brighter, violet darker, white unchanged"
COLOUR_CHANGE = "each colour channel by itself: mid-grey unchanged, more red, green or blue where that channel rose"


def images_of(run: Run, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [N, C, H, W] in [0, 1], labels [N]) of the run's data set, read-only and kept in memory.

    Ends the page, with a warning, where they are not on this machine.
    """
    dataset = run.config.dataset
    try:
        with st.spinner("Reading images …"):
            run.check_images(_shared.data_root())
            return datasets.read(dataset, _shared.data_root(), train=train)
    except datasets.DatasetUnavailable as error:
        missing(dataset, error)
        st.stop()


def training_images(run: Run, indices: np.ndarray) -> np.ndarray | None:
    """The original training images [N, C, H, W] at these positions; None, with a warning, where they aren't here."""
    dataset = run.config.dataset
    try:
        run.check_images(_shared.data_root())
        return datasets.read_training_images(dataset, _shared.data_root(), indices)
    except datasets.DatasetUnavailable as error:
        missing(dataset, error)
        return None


def missing(dataset: str, error: datasets.DatasetUnavailable) -> None:
    words = datasets.describe(dataset)
    st.warning(f"This run used {words}, which is needed to rebuild its images: {error}.")


def change_words(images: np.ndarray) -> str:
    """What the colours of a signed map of changes [N, C, H, W] mean."""
    return GREY_CHANGE if images.shape[1] == 1 else COLOUR_CHANGE


def value_words(images: np.ndarray) -> str:
    return "grey from 0 (black) to 1 (white)" if images.shape[1] == 1 else "each colour from 0 to 1"


def triple_mosaic(x_clean: np.ndarray, delta: np.ndarray, *, epsilon: float, columns: int) -> None:
    """Clean images, poisoned images and their change, row under row. Args: [N, C, H, W]."""
    rows = (
        ("Clean", pictures.shown(x_clean), value_words(x_clean)),
        ("Poisoned", pictures.shown(x_clean + delta), "the same scale"),
        (
            "Change δ = poisoned − clean, magnified",
            pictures.shown_changes(delta, limit=epsilon or 1.0),
            f"×{1 / epsilon:.3g}: {change_words(delta)}; the scale ends at ±ε = ±{epsilon:g} (L∞)"
            if epsilon
            else "ε = 0: nothing may change",
        ),
    )
    columns = min(columns, max(1, len(delta)))
    scale = pictures.enlargement(delta.shape[2], pixels=TILE)
    for title, tiles, scale_text in rows:
        together = pictures.mosaic(tiles, columns=columns)
        picture(
            together,
            scale=scale,
            caption=f"{title} ({scale_text})",
            text=f"{title}: {len(tiles)} training images, {scale_text}",
            width="stretch" if columns > 4 else together.shape[1] * scale,
        )


def noisy_row(
    image: np.ndarray, name: str, *, sigma: float, rng: np.random.Generator, columns: int = NOISY + 1
) -> None:
    """An image [C, H, W] and noisy copies of it, σ: standard deviation in pixel units of [0, 1]."""
    noisy = image + sigma * rng.standard_normal((NOISY, *image.shape))
    picture(
        pictures.mosaic(pictures.shown(np.concatenate([image[None], noisy])), columns=columns),
        scale=pictures.enlargement(image.shape[1], pixels=TILE),
        caption=f"{name}, and {NOISY} noisy copies, σ = {sigma:g} (clipped to [0, 1] for display only)",
        text=f"{name} and {NOISY} noisy copies of it",
        width="stretch",
    )


def only_labels(run: Run) -> bool:
    """Says in a sentence that a run's attack changed labels and no image, if that is so."""
    poison = run.tensors("poison")
    if poison is None or "labels" not in poison:
        return False
    names = sentences.class_names_of(run)
    given, counts = np.unique(poison["labels"], return_counts=True)
    order = np.argsort(-counts)[:10]
    words = [f"{counts[k]}× {datasets.class_in_words(run.config.dataset, int(given[k]), names)}" for k in order]
    st.info(
        f"This attack changed no pixel. It gave {len(poison['labels'])} training images of "
        f"{sentences.target_of(run)} a wrong label: {', '.join(words)}{' …' if len(given) > len(order) else ''}. "
        "Anyone who looks at an image beside its label sees it, so this is not a clean-label attack.",
        icon=":material/visibility:",
    )
    return True
