"""Inspect: what the poison looks like, image by image, over the attack's steps, and which test images it cost most."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import attack_figures, datasets, figures, image_figures, metrics, perception, pictures
from engine.figures import ARM_STYLE
from engine.records import Run
from pages import _images, _one_image, _shared, _words
from pages._one_image import chart, picture

COLUMNS, ROWS = 12, 5
SORTS = {  # name → column of the gallery table, largest first
    "L2 size, largest first": ("l2", False),
    "L∞ size, largest first": ("linf", False),
    "SSIM, most visible first": ("ssim", True),
    "share of changed pixels, largest first": ("changed_share", False),
    "number": ("number", True),
}
VIEWS = ["One image", "All poisoned images", "Over the attack's steps", "Test images by radius lost"]


@st.cache_resource(max_entries=4, show_spinner=False)
def read_tensors(directory: str, name: str, stamp: int) -> dict[str, np.ndarray]:
    """A safetensors file of a run, delta as float32; stamp is the file's modification time. Not to be written to."""
    tensors = Run(Path(directory)).tensors(name)
    assert tensors is not None
    return tensors | {"delta": tensors["delta"].astype(np.float32)}


@st.cache_resource(max_entries=2, show_spinner="Reading images …")
def read_originals(directory: str, stamp: int, root: str) -> np.ndarray:
    """The poison images as they were [P, C, H, W]. Raises: DatasetUnavailable."""
    dataset = Run(Path(directory)).config.dataset
    return datasets.read_training_images(dataset, Path(root), read_tensors(directory, "poison", stamp)["indices"])


@st.cache_data(max_entries=8, show_spinner="Measuring the poison …")
def measured(directory: str, stamp: int, root: str) -> pd.DataFrame:
    """L∞, L2, PSNR, SSIM and share of changed pixels of each poison image: a row each, by its number."""
    poison = read_tensors(directory, "poison", stamp)
    found = perception.measure(read_originals(directory, stamp, root), poison["delta"])
    table = pd.DataFrame({name: getattr(found, name) for name in ("linf", "l2", "psnr", "ssim", "changed_share")})
    return table.assign(number=np.arange(len(table)), training_image=poison["indices"])


@st.cache_data(max_entries=8, show_spinner=False)
def perturbation_chart(directory: str, stamp: int, epsilon: float) -> Any:
    return attack_figures.perturbation_histogram(read_tensors(directory, "poison", stamp)["delta"], epsilon)


def open_tensors(name: str, missing: str) -> tuple[dict[str, np.ndarray], int]:
    """The run's tensors of this name and their stamp, or the end of the page with a sentence."""
    try:
        stamp = (run.directory / f"{name}.safetensors").stat().st_mtime_ns
        return read_tensors(str(run.directory), name, stamp), stamp
    except OSError:
        st.info(missing)
        st.stop()


def open_poison() -> tuple[dict[str, np.ndarray], int]:
    """The run's poison and its stamp, or the end of the page with a sentence where there is no change to look at."""
    if config.attack.name == "none":
        st.info("This run has no attack: nothing was changed, and there is nothing to look for.")
        st.stop()
    poison, stamp = open_tensors("poison", f"Run {run.id} has no poison yet: it is {run.status().state}.")
    if not len(poison["delta"]):
        st.info(f"This run changed no image: poison fraction {config.threat.poison_fraction:g}.")
        st.stop()
    if _images.only_labels(run):
        st.stop()
    return poison, stamp


def originals(stamp: int) -> np.ndarray:
    """The poison images as they were, or the end of the page where the data set is not on this machine."""
    try:
        return read_originals(str(run.directory), stamp, str(_shared.data_root()))
    except datasets.DatasetUnavailable as error:
        _images.missing(config.dataset, error)
        st.stop()


def take(chart_key: str, key: str) -> None:
    """Writes the number of the tile or point just clicked into a widget's state."""
    number = image_figures.selected_number(st.session_state[chart_key].selection.points)
    if number is not None:
        st.session_state[key] = number


def keep_within(key: str, low: int, high: int) -> None:
    """Another run may have fewer images than the number that the session remembers."""
    if key in st.session_state and not low <= int(st.session_state[key] or 0) <= high:
        st.session_state[key] = low


def one_image() -> None:
    poison, stamp = open_poison()
    delta, indices = poison["delta"], poison["indices"]
    keep_within("poison_image", 0, len(delta) - 1)
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        k = int(
            st.number_input(
                f"Poison image, 0 to {len(delta) - 1}", 0, len(delta) - 1, key="poison_image", bind="query-params"
            )
        )
    with right:
        limit, words = _one_image.magnification("magnify", epsilon)
    if not datasets.available(config.dataset, _shared.data_root()):
        map_only = pictures.shown_changes(delta[k : k + 1], limit=limit)[0]
        scale = pictures.enlargement(delta.shape[2], pixels=280)
        picture(map_only, scale=scale, caption=f"δ of poison image {k}. {words}.", text=f"Change of poison image {k}")
        chart(perturbation_chart(str(run.directory), stamp, epsilon), "perturbations")
    clean = originals(stamp)[k]
    poisoned = clean + delta[k]
    chart(image_figures.image_triple(clean, poisoned, limit=limit), "triple")
    st.caption(
        f"Poison image {k} is training image {indices[k]} of {target}, its label unchanged. Both pictures: "
        f"{_images.value_words(delta)}. {words}; {_images.change_words(delta)}. Point at a pixel for its exact values."
    )
    _one_image.colours()
    compare, numbers = st.columns([2, 3], gap="large")
    with compare:
        _one_image.comparator(clean, poisoned, k)
    with numbers:
        _one_image.numbers_of(run, k, measured(str(run.directory), stamp, str(_shared.data_root())))
    chart(perturbation_chart(str(run.directory), stamp, epsilon), "perturbations")
    st.caption(
        "All pixels (and colour channels) of all poison images. An attack that uses its budget piles up at ±ε. The bar "
        "in the middle holds those that (almost) did not change, such as black ground that would have to become darker."
    )


def all_images() -> None:
    poison, stamp = open_poison()
    x_clean = originals(stamp)
    table = measured(str(run.directory), stamp, str(_shared.data_root()))
    left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
    with left:
        order = str(st.selectbox("Sort by", list(SORTS), key="sort", bind="query-params"))
    with middle:
        shown = st.segmented_control(
            "Show", ["poisoned", "clean", "δ"], default="poisoned", required=True, key="show", bind="query-params"
        )
    with right:
        number = page_number("wall_page", len(table))
    column, ascending = SORTS[order]
    part = table.sort_values(column, ascending=ascending, kind="stable").iloc[number * COLUMNS * ROWS :][
        : COLUMNS * ROWS
    ]
    chosen = part["number"].to_numpy()
    clean, change = x_clean[chosen], poison["delta"][chosen]
    tiles = {
        "poisoned": lambda: pictures.shown(clean + change),
        "clean": lambda: pictures.shown(clean),
        "δ": lambda: pictures.shown_changes(change, limit=epsilon or 1e-3),
    }[str(shown)]()
    hover = [
        f"poison image {row.number} (training image {row.training_image})<br>L∞ {row.linf:.4f}, L2 {row.l2:.3f}<br>"
        f"SSIM {row.ssim:.3f}, {row.changed_share:.0%} of pixels changed"
        for row in part.itertuples()
    ]
    wall(tiles, chosen, hover, "poison_wall", "poison_image")
    k = min(int(st.session_state.get("poison_image") or 0), len(table) - 1)
    st.caption(
        f"{len(part)} of {len(table)} poison images, {order}. Point at a tile for its numbers; click it, or type its "
        f"number under *One image*, to look closer. Scale of δ: ±ε = ±{epsilon:g} (L∞, pixel units)."
    )
    st.markdown(
        f"**Poison image {k}**: L2 {table['l2'][k]:.3f}, L∞ {table['linf'][k]:.4f}, SSIM {table['ssim'][k]:.3f}"
    )
    other = x_clean[k] + poison["delta"][k]
    chart(image_figures.image_triple(x_clean[k], other, limit=epsilon or 1e-3), "chosen_triple")
    _one_image.colours()


def page_number(key: str, count: int) -> int:
    pages = max(1, -(-count // (COLUMNS * ROWS)))
    keep_within(key, 1, pages)
    return int(st.number_input(f"Page, 1 to {pages}", 1, pages, key=key)) - 1


def wall(tiles: np.ndarray, numbers: np.ndarray, hover: list[str], key: str, chooses: str) -> None:
    rows = max(1, -(-len(tiles) // COLUMNS))
    scale = pictures.enlargement(tiles.shape[1], pixels=84)
    content = pictures.png(pictures.mosaic(tiles, columns=COLUMNS), scale=scale)
    figure = image_figures.picture_wall(
        content,
        columns=COLUMNS,
        rows=rows,
        numbers=[int(n) for n in numbers],
        hover=hover,
        chosen=st.session_state.get(chooses),
    )
    chart(figure, key, on_select=lambda: take(key, chooses), selection_mode="points")


def evolution() -> None:
    records = run.metrics("attack")
    if records and records[-1]["steps"] == 1:
        st.info(f"{_words.attack_of(config).name}: made at once, in a single step. There is no way to watch.")
    elif records:
        chart(attack_figures.attack_losses(records, config.attack.restart_every), "losses")
        st.caption(
            "Upper loss: the attacker's, the soft radius of the target class on held-out images, to go down. It is a "
            "loss, not a certificate. Lower loss: the surrogate's training loss. Relative residual: how far the linear "
            "system behind the hypergradient is from solved; below 1 the solver helps, above it does not."
        )
    open_poison()
    found, _ = open_tensors("evolution", "This run recorded no evolution: its poison was reused from an earlier run.")
    if not len(found["steps"]) or not found["delta"].shape[1]:
        st.info("This run changed no image, so there is nothing to watch.")
        return
    step_by_step(found, {record["step"]: record for record in records})
    _one_image.colours()


@st.fragment
def step_by_step(found: dict[str, np.ndarray], records: dict[int, dict[str, Any]]) -> None:
    """The recorded images after the upper step that one slider chooses."""
    steps = [int(step) for step in found["steps"]]
    if st.session_state.get("step") not in (None, *steps):
        del st.session_state["step"]
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    with left:
        step = st.select_slider("After upper step", steps, value=steps[-1], key="step") if len(steps) > 1 else steps[0]
    with right:
        limit, words = _one_image.magnification("magnify_steps", epsilon)
    if facts := records.get(step):
        st.markdown(
            f"After step **{step}** of {facts['steps']}: mean |δ| **{facts['mean_size']:.4f}** (pixel units), "
            f"**{facts['share_at_epsilon']:.0%}** of pixels at the budget ε, over all poison images."
        )
    now = found["delta"][steps.index(step)]
    maps = pictures.mosaic(pictures.shown_changes(now, limit=limit), columns=4)
    scale = pictures.enlargement(now.shape[2], pixels=_images.TILE)
    places = st.columns(2)
    with places[1]:
        picture(maps, scale=scale, caption=f"Their δ. {words}.", text=f"δ after step {step}", width="stretch")
    with places[0]:
        _, stamp = open_poison()
        poisoned = originals(stamp)[: len(now)] + now
        picture(
            pictures.mosaic(pictures.shown(poisoned), columns=4),
            scale=scale,
            caption=f"The first {len(now)} poison images after upper step {step}; {_images.value_words(now)}",
            text=f"Poisoned images after step {step}",
            width="stretch",
        )


def test_images() -> None:
    table = _shared.open_certificates(run)
    means = figures.radii_by_image(table, config)
    arms = [arm for arm in ARM_STYLE if arm in means.columns]
    if not {"clean", "poisoned"} <= set(arms):
        st.info(
            "This run has no attack, so no image lost radius."
            if config.attack.name == "none"
            else "Radius lost needs certificates of clean and poisoned victims; this partial run lacks one of them."
        )
        st.stop()
    means["lost"] = means["clean"] - means["poisoned"]
    means = means.dropna(subset=["lost"]).sort_values("lost", ascending=False, kind="stable")
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        only = st.toggle("Only images that lost their certificate with every poisoned victim", key="lost_only")
    if only:
        means = means[(means["poisoned"] == 0) & (means["clean"] > 0)]
    with right:
        number = page_number("test_page", len(means))
    st.markdown(
        f"**{len(means)} test images of {target}**, those that lost most first: mean radius of clean victims "
        "minus mean radius of poisoned victims (L2, pixel units; wrong or abstaining counts as 0)."
    )
    part = means.iloc[number * COLUMNS * ROWS :][: COLUMNS * ROWS]
    if part.empty:
        st.info("No image did.")
        return
    if datasets.available(config.dataset, _shared.data_root()):
        images, _ = _images.images_of(run, train=False)
        hover = [
            f"test image {image}<br>clean {row['clean']:.3f}, poisoned {row['poisoned']:.3f}<br>lost {row['lost']:+.3f}"
            for image, row in part.iterrows()
        ]
        tiles = pictures.shown(images[part.index.to_numpy()])
        wall(tiles, part.index.to_numpy(), hover, "test_wall", "test_image")
        chosen = st.session_state.get("test_image")
        st.caption(
            "These are test images: nobody changed them; only the training set was poisoned. Click one to choose it"
            + (
                f" (chosen: {chosen}); its votes are on the Certify page."
                if chosen in means.index
                else ", then see its votes on the Certify page."
            )
        )
    names = {arm: ARM_STYLE[arm].name for arm in arms}
    st.dataframe(
        means[["lost", *arms]].rename(columns=names).rename_axis("test image"),
        column_config={name: st.column_config.NumberColumn(format="%.3f") for name in ["lost", *names.values()]},
        height=320,
        alt="Mean certified radius of each target-class test image by arm, sorted by radius lost",
    )
    victims = metrics.correct_radius(table).groupby([table["arm"], table["victim"]]).size()
    st.caption(f"Means over {len(victims['clean'])} clean and {len(victims['poisoned'])} poisoned victims.")
    if not datasets.available(config.dataset, _shared.data_root()):
        _images.images_of(run, train=False)


run = _shared.open_run()
config = run.config
epsilon, target = config.threat.epsilon, _shared.target_of(run)
st.title("Inspect")
st.caption(_shared.limits_line(run))
view = st.segmented_control(
    "View", VIEWS, default=VIEWS[0], required=True, key="view", bind="query-params", label_visibility="collapsed"
)
{VIEWS[0]: one_image, VIEWS[1]: all_images, VIEWS[2]: evolution, VIEWS[3]: test_images}[str(view)]()
