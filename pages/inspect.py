"""Inspect: what the poison looks like, image by image, over the attack's steps, and which test images it cost most."""

from typing import Any

import streamlit as st

from engine import datasets
from engine.figures import attack, images, pictures
from engine.report import sentences, wording
from pages import _images, _links, _one_image, _pinned, _poisoned, _selection, _shared, _test_images, _wall
from pages._export import chart_and_data
from pages._poisoned import Poison
from pages._show import chart, picture

SORTS = {  # name → (column of the gallery table, whether the smallest come first, what its values are)
    "L2 size, largest first": ("l2", False, "L2 size (pixel units)"),
    "L∞ size, largest first": ("linf", False, "L∞ size (pixel units)"),
    "SSIM, most visible first": ("ssim", True, "SSIM"),
    "share of changed pixels, largest first": ("changed_share", False, "share of changed pixels"),
    "number": ("number", True, "number"),
}
SHOWN = ["poisoned", "clean", "δ"]
VIEWS = ["Image by image", "All poisoned images", "Over the attack's steps", "Test images by radius lost"]


def controls() -> tuple[Poison, int, float, str]:
    """What all views of poison share."""
    poison, k, limit, words = _poisoned.controls(run)
    _selection.row(run, "training", k)
    return poison, k, limit, words


def triple(poison: Poison, k: int, limit: float, words: str) -> None:
    """The chosen image, and below it the pinned one."""
    clean = poison.originals()[k]
    chart(images.image_triple(clean, clean + poison.change(k), limit=limit), "triple")
    st.caption(
        f"Poison image {k} is training image {poison.indices[k]} of {target}, its label unchanged, {poison.when(k)}. "
        f"Both pictures: {_images.value_words(poison.delta)}. {words}; {_images.change_words(poison.delta)}. Point at "
        "a pixel for its exact values."
    )
    _pinned.show(run, limit=limit, step=poison.step)
    _one_image.colours()


def one_image() -> None:
    poison, k, limit, words = controls()
    if not datasets.available(config.dataset, _shared.data_root()):
        map_only = pictures.shown_changes(poison.change(k)[None], limit=limit)[0]
        scale = pictures.enlargement(map_only.shape[0], pixels=280)
        caption = f"δ of poison image {k}, {poison.when(k)}. {words}."
        picture(map_only, scale=scale, caption=caption, text=f"Change of poison image {k}")
        chart_and_data(poison.histogram(), "perturbations")
    clean = poison.originals()[k]
    triple(poison, k, limit, words)
    compare, numbers = st.columns([2, 3], gap="large")
    with compare:
        _one_image.comparator(clean, clean + poison.change(k), k)
    with numbers:
        _one_image.numbers_of(run, k, poison.measured(finished=True))
    chart_and_data(poison.histogram(), "perturbations")
    st.caption(
        "All pixels (and colour channels) of all finished poison images. An attack that uses up its budget piles up at "
        "±ε. The middle bar holds pixels that (almost) did not change, such as a black background, which cannot become "
        "darker."
    )


def all_images() -> None:
    poison, k, limit, words = controls()
    x_clean = poison.originals()
    everything = poison.measured()
    _links.check(sort=list(SORTS), show=SHOWN)
    left, middle, right = st.columns([3, 3, 1], vertical_alignment="bottom", gap="medium")
    with left:
        order = str(st.selectbox("Sort by", list(SORTS), key="sort", bind="query-params"))
    column, ascending, name = SORTS[order]
    with middle:
        table = _wall.within(everything, column, name, f"range {column}")
    with right:
        page = _wall.page_number("wall_page", len(table))
    shown = _selection.segmented("Show", SHOWN, default=SHOWN[0], key="show")
    part = _wall.part(table.sort_values(column, ascending=ascending, kind="stable"), page)
    then = "" if poison.step is None else f", after upper step {poison.step} (those whose steps were recorded)"
    st.markdown(f"**{len(table)} of {len(poison)} poison images**{then}; {order}.")
    if part.empty:
        st.info("No poison image is in this range. Widen it.")
    else:
        numbers = part["number"].to_numpy()
        clean, change = x_clean[numbers], poison.delta[numbers]
        tiles = {
            "poisoned": lambda: pictures.shown(clean + change),
            "clean": lambda: pictures.shown(clean),
            "δ": lambda: pictures.shown_changes(change, limit=limit),
        }[shown]()
        hover = [
            f"poison image {row.number} (training image {row.training_image})<br>L∞ {row.linf:.4f}, L2 {row.l2:.3f}<br>"
            f"SSIM {row.ssim:.3f}, {sentences.of_hundred(row.changed_share)} of pixels changed"
            for row in part.itertuples()
        ]
        _wall.wall(tiles, numbers, hover, "poison_wall", "training")
        st.caption(
            "Point at a tile for its numbers. Click it, or type its number above, to look closer. " + words + "."
        )
    if k in everything.index:
        row = everything.loc[k]
        st.markdown(f"**Poison image {k}**: L2 {row['l2']:.3f}, L∞ {row['linf']:.4f}, SSIM {row['ssim']:.3f}")
    triple(poison, k, limit, words)


def evolution() -> None:
    records = run.metrics("attack")
    if records and records[-1]["steps"] == 1:
        st.info(f"{wording.attack_of(config).name}: made at once, in a single step. There are no steps to watch.")
    elif records:
        chart_and_data(attack.attack_losses(records, config.attack.restart_every), "losses")
        st.caption(
            "Upper loss: the attacker's, the soft radius of the target class on held-out images; it should go down. It "
            "is a loss, not a certificate. Lower loss: the surrogate's training loss. Relative residual: how far the "
            "linear system behind the hypergradient is from solved; below 1 the solver helps, above 1 it does not."
        )
    poison, k, limit, words = controls()
    steps = _poisoned.steps_of(run)
    if not steps:
        if _poisoned.stamp_of(run, "evolution") is None:
            st.info("This run kept no poison images of earlier steps.")
    else:
        mosaics(poison, steps, {record["step"]: record for record in records}, limit, words)
    triple(poison, k, limit, words)


def mosaics(poison: Poison, steps: list[int], records: dict[int, dict[str, Any]], limit: float, words: str) -> None:
    """The recorded images after the chosen step, and their δ."""
    step = poison.step if poison.step is not None else steps[-1]
    if facts := records.get(step):
        st.markdown(
            f"After step **{step}** of {facts['steps']}: mean |δ| **{facts['mean_size']:.4f}** (pixel units), "
            f"**{sentences.of_hundred(facts['share_at_epsilon'])}** of pixels at the budget ε, over all poison images."
        )
    now = poison.delta[: _poisoned.recorded(run)]
    scale = pictures.enlargement(now.shape[2], pixels=_images.TILE)
    left, right = st.columns(2)
    with right:
        maps = pictures.mosaic(pictures.shown_changes(now, limit=limit), columns=4)
        picture(maps, scale=scale, caption=f"Their δ. {words}.", text=f"δ after step {step}", width="stretch")
    with left:
        poisoned = pictures.mosaic(pictures.shown(poison.originals()[: len(now)] + now), columns=4)
        caption = f"The first {len(now)} poison images after upper step {step}; {_images.value_words(now)}"
        text = f"Poisoned images after step {step}"
        picture(poisoned, scale=scale, caption=caption, text=text, width="stretch")


run = _shared.open_run()
config = run.config
target = sentences.target_of(run)
st.title("Inspect")
st.caption(sentences.limits_line(run))
_links.check(view=VIEWS)
view = _selection.segmented("View", VIEWS, default=VIEWS[0], key="view", label_visibility="collapsed")
views = {VIEWS[0]: one_image, VIEWS[1]: all_images, VIEWS[2]: evolution, VIEWS[3]: lambda: _test_images.view(run)}
views[view]()
