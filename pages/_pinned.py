"""The pinned image, shown beside the current one: on the same scale, from its own run."""

import streamlit as st

from engine import datasets, metrics
from engine.figures import pictures
from engine.figures.images import image_triple, vote_histogram
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.report import sentences
from pages import _certificate, _images, _poisoned, _selection, _shared
from pages._export import chart_and_data
from pages._show import chart, picture


def show(run: Run, *, limit: float, step: int | None = None, victim: int | None = None) -> None:
    """Whatever is pinned, if anything is.

    Args:
        run: the open run; limit: end of the scale of δ; step: that the current image is shown at, None: finished.
        victim: whose recorded votes to show of a pinned test image, if any.
    """
    found = _selection.pinned()
    if found is None:
        return
    other, kind, number = found
    own = "" if other.id == run.id else f" of run {other.id} ({sentences.settings_line(other)[:-1]})"
    st.markdown(f"**Pinned: {_selection.NAMES[kind]} {number}**{own}")
    if not datasets.available(other.config.dataset, _shared.data_root()):
        st.info(f"Its data set, {datasets.describe(other.config.dataset)}, is not on this machine.")
        return
    if kind == "training":
        _training(other, number, limit=limit, step=step)
    else:
        _test(other, number, victim)


def _training(run: Run, k: int, *, limit: float, step: int | None) -> None:
    poison = _poisoned.Poison(run, step if step in _poisoned.steps_of(run)[:-1] else None)
    clean, change = poison.originals()[k], poison.change(k)
    chart(image_triple(clean, clean + change, limit=limit), "pinned_triple")
    st.caption(f"Poison image {k}, {poison.when(k)}; the same scales as above: δ ends at ±{limit:g} (pixel units).")


def _test(run: Run, image: int, victim: int | None) -> None:
    images, _ = _images.images_of(run, train=False)
    tile = pictures.shown(images[image : image + 1])[0]
    scale = pictures.enlargement(tile.shape[0], pixels=_images.TILE)
    caption = f"Pinned: test image {image}"
    picture(tile, scale=scale, caption=caption, text=caption)
    table = _shared.open_certificates(run)
    rows = table[table["image"] == image]
    radii = metrics.correct_radius(rows).groupby(rows["arm"]).mean()
    words = [f"{ARM_STYLE[arm].name} {radii[arm]:.3f}" for arm in ARM_STYLE if arm in radii.index]
    st.caption(f"Its mean radius (L2, pixel units; wrong or abstaining: 0), as recorded: {', '.join(words)}.")
    one = rows[rows["victim"] == victim]
    if len(one):
        votes, chain = st.columns(2, gap="medium")
        with votes:
            chart_and_data(vote_histogram(one, sentences.class_names_of(run)), "pinned_votes")
        with chain:
            _certificate.from_votes_to_radius(one, run.config, sentences.class_names_of(run))
