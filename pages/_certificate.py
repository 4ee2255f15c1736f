"""One test image's certificate: from votes under noise to a radius, and the noisy copies that are voted on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st
from scipy.special import ndtri

from engine import datasets
from engine.certification import ABSTAIN
from engine.config import Config
from engine.figures.style import ARM_STYLE
from engine.records import Run
from pages import _images


def from_votes_to_radius(
    rows: pd.DataFrame, settings: Config, class_names: Sequence[str], *, titled: bool = True
) -> None:
    """The chain of CERTIFY with this image's numbers; label −1: an image without a right answer."""
    n, alpha, sigma = int(rows["n"].iloc[0]), settings.certification.alpha, settings.sigma
    if titled:
        st.markdown("**From votes to radius**")
    lines = []
    for row in rows.itertuples():
        right = "certified" if row.label < 0 else "correct" if row.prediction == row.label else "wrong"
        verdict = "abstains" if row.prediction == ABSTAIN else right
        lines.append(
            {
                "arm": ARM_STYLE[row.arm].name,
                "selected": class_names[row.selected_class] if class_names else row.selected_class,
                "votes": f"{row.n_top:,} of {n:,}",
                "p_lower": f"{row.p_lower:.4f}",
                "radius": f"{row.radius:.3f}",
                "answer": verdict,
            }
        )
    st.dataframe(pd.DataFrame(lines), hide_index=True, alt="Votes, lower confidence bound and radius by arm")
    for row in rows[rows["arm"].isin(["clean", "poisoned"])].itertuples():
        name, k = ARM_STYLE[row.arm].name, int(row.n_top)
        bound = (
            rf"p_{{\text{{lower}}}} &= \mathrm{{Beta}}^{{-1}}({alpha:g};\ {k},\ {n - k + 1}) \\ &= {row.p_lower:.4f}"
        )
        if row.p_lower > 0.5:
            quantile = ndtri(row.p_lower)
            value = (
                rf"R &= \sigma\,\Phi^{{-1}}(p_{{\text{{lower}}}}) = {sigma:g} \cdot {quantile:.3f} = {row.radius:.3f}"
            )
        else:
            value = r"&\le \tfrac12:\ \text{abstain},\ R = 0"
        # not st.latex, whose block scrolls where the keyboard cannot reach it
        st.markdown(rf"$\begin{{aligned}} \text{{{name}: }}\ {bound} \\ {value} \end{{aligned}}$")
    st.caption(
        "p_lower: one-sided Clopper–Pearson bound, below the true share of votes with probability ≥ 1 − α. Radius: L2, "
        "pixel units; within it the smoothed classifier's answer cannot change. A wrong answer's radius counts as 0."
    )


def noisy_pictures(run: Run, image: int, class_names: Sequence[str]) -> None:
    """The image and a few noisy copies as a victim sees them; fresh noise, the same at each visit."""
    images, labels = _images.images_of(run, train=False)
    words = datasets.class_in_words(run.config.dataset, int(labels[image]), class_names)
    rng = np.random.default_rng([run.config.seed % 2**32, image])
    _images.noisy_row(images[image], f"Test image {image}, {words}", sigma=run.config.sigma, rng=rng, columns=3)
    st.caption(
        "Nobody changed this image. The base classifier votes on noisy copies like these (drawn for this picture, not "
        "the recorded ones)."
    )
