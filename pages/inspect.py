"""Inspect: what the poison looks like, image by image, over the attack's steps, and which test images it cost most."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import attack_figures, datasets, figures, image_figures, metrics, perception, pictures
from engine.figures import ARM_STYLE
from engine.records import CONTROLS, GALLERY, Run
from pages import _shared

COLUMNS, ROWS = 12, 5
SORTS = {  # name → column of the gallery table, largest first
    "L2 size, largest first": ("l2", False),
    "L∞ size, largest first": ("linf", False),
    "SSIM, most visible first": ("ssim", True),
    "share of changed pixels, largest first": ("changed_share", False),
    "number": ("number", True),
}
VIEWS = ["One image", "All poisoned images", "Over the attack's steps", "Test images by radius lost"]
COLOURS = """
- **Grey pictures**: black is 0, white is 1, for every image alike. No picture is brightened or stretched by itself.
- **Difference δ = poisoned − clean**: orange pixels became brighter, violet ones darker, white ones did not change.
  Zero is always in the middle of the scale, and its ends depend on the budget ε and on the magnification only, never on
  the image, so that two images' maps can be compared.
- **Magnification**: ×1 draws δ on a scale as long as the images' own (±1), so that it looks as faint as it is; ×5 and
  ×10 enlarge it; *full range* ends the scale at ±ε.
- All values are in pixel units of [0, 1]; ε bounds the change of every pixel (L∞).
"""


@st.cache_resource(max_entries=4, show_spinner=False)
def read_tensors(directory: str, name: str, stamp: int) -> dict[str, np.ndarray]:
    """A safetensors file of a run, delta as float32; stamp is the file's modification time. Not to be written to."""
    tensors = Run(Path(directory)).tensors(name)
    assert tensors is not None
    return tensors | {"delta": tensors["delta"].astype(np.float32)}


@st.cache_data(max_entries=8, show_spinner="Measuring the poison …")
def measured(directory: str, stamp: int, dataset: str, root: str) -> pd.DataFrame:
    """L∞, L2, PSNR, SSIM and share of changed pixels of each poison image: a row each, by its number."""
    poison = read_tensors(directory, "poison", stamp)
    images, _ = _shared.dataset_images(dataset, root, True)
    found = perception.measure(images[poison["indices"]], poison["delta"])
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


def chart(figure: Any, key: str, **options: Any) -> Any:
    return st.plotly_chart(figure, key=key, config=figures.SAVE, alt=figures.alt(figure), **options)


def picture(content: np.ndarray, *, scale: int, caption: str, text: str, **options: Any) -> None:
    st.image(pictures.png(content, scale=scale), caption=caption, output_format="PNG", alt=text, **options)


def take(chart_key: str, key: str) -> None:
    """Writes the number of the tile or point just clicked into a widget's state."""
    number = image_figures.selected_number(st.session_state[chart_key].selection.points)
    if number is not None:
        st.session_state[key] = number


def keep_within(key: str, low: int, high: int) -> None:
    """Another run may have fewer images than the number that the session remembers."""
    if key in st.session_state and not low <= int(st.session_state[key] or 0) <= high:
        st.session_state[key] = low


def colours() -> None:
    with st.expander("What do the colours mean?", icon=":material/palette:"):
        st.markdown(COLOURS)


def magnification(key: str) -> tuple[float, str]:
    """(end of the δ scale, words for the caption) as chosen."""
    chosen = st.segmented_control(
        "Magnify the difference δ",
        ["×1", "×5", "×10", "full range"],
        default="full range",
        required=True,
        key=key,
        bind="query-params",
    )
    limit = (epsilon or 1e-3) if chosen == "full range" else 1 / int(str(chosen)[1:])
    factor = f"{1 / limit:.3g}"
    words = "δ is not magnified" if factor == "1" else f"δ is magnified ×{factor}"
    return limit, f"{words}: the ends of its scale are ±{limit:g} (pixel units)"


def one_image() -> None:
    poison, stamp = open_tensors("poison", f"Run {run.id} has no poison yet: it is {run.status().state}.")
    delta, indices = poison["delta"], poison["indices"]
    if not len(delta):
        st.info(f"This run changed no image: poison fraction {config.threat.poison_fraction:g}.")
        return
    keep_within("poison_image", 0, len(delta) - 1)
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        k = int(
            st.number_input(
                f"Poison image, 0 to {len(delta) - 1}", 0, len(delta) - 1, key="poison_image", bind="query-params"
            )
        )
    with right:
        limit, words = magnification("magnify")
    if not datasets.available(config.dataset, _shared.data_root()):
        map_only = pictures.signed_colours(delta[k, 0], limit=limit)
        picture(map_only, scale=10, caption=f"δ of poison image {k}. {words}.", text=f"Change of poison image {k}")
        chart(perturbation_chart(str(run.directory), stamp, epsilon), "perturbations")
    images, _ = _shared.images_of(run, train=True)
    clean = images[indices[k], 0]
    poisoned = clean + delta[k, 0]
    chart(image_figures.image_triple(clean, poisoned, limit=limit), "triple")
    st.caption(
        f"Poison image {k} is training image {indices[k]} of digit {config.threat.target_class}, its label unchanged. "
        f"Both pictures are on one grey scale from 0 to 1. {words}. Point at a pixel to read its exact values."
    )
    colours()
    compare, numbers = st.columns([2, 3], gap="large")
    with compare:
        comparator(clean, poisoned, k)
    with numbers:
        numbers_of(k, measured(str(run.directory), stamp, config.dataset, str(_shared.data_root())))
    chart(perturbation_chart(str(run.directory), stamp, epsilon), "perturbations")
    st.caption(
        "All pixels of all poison images. An attack that uses its budget piles up at ±ε. The bar in the middle holds "
        "pixels that (almost) did not change: mostly black ground that would have to become darker than black."
    )


@st.fragment
def comparator(clean: np.ndarray, poisoned: np.ndarray, k: int) -> None:
    st.subheader("Can you see the difference?")
    way = st.segmented_control(
        "Compare by", ["Wipe", "Blink"], default="Wipe", required=True, key="compare", bind="query-params"
    )
    if way == "Blink":
        chart(image_figures.blink(clean, poisoned), "blink")
        st.caption("Blink switches once a second between the two images, in the same place. Stop ends it.")
        return
    position = st.slider(
        "Columns from the clean image; the rest is poisoned", 0, clean.shape[1], clean.shape[1] // 2, key="wipe"
    )
    both = pictures.wipe(pictures.shades(clean), pictures.shades(poisoned), position=position)
    picture(
        both,
        scale=12,
        caption=f"Left {position} columns clean, right {clean.shape[1] - position} poisoned, true brightness",
        text=f"Poison image {k}: {position} columns clean, then poisoned",
        width=336,
    )
    st.caption("Move the slider, with the arrow keys too: what changes as the edge passes is the poison.")


def numbers_of(k: int, table: pd.DataFrame) -> None:
    """This image's numbers beside the set's and the controls'."""
    st.subheader("How large is it?")
    report = run.report or {}
    recorded = {"all poison images": perception.summarise(_perturbation(table))}
    controls = report.get("perturbation_controls") or {}
    recorded |= {f"{ARM_STYLE[arm].name} control": controls[arm] for arm in CONTROLS if controls.get(arm)}
    row = table.loc[k]
    lines = [[f"poison image {k}", row["linf"], row["l2"], row["psnr"], row["ssim"], row["changed_share"]]]
    names = ("linf_max", "l2_mean", "psnr_mean", "ssim_mean", "changed_share")
    lines += [[name, *(values.get(key) for key in names)] for name, values in recorded.items()]
    frame = pd.DataFrame(lines, columns=["", "L∞", "L2", "PSNR (dB)", "SSIM", "changed"]).replace(np.inf, np.nan)
    st.dataframe(
        frame,
        hide_index=True,
        column_config={
            "L∞": st.column_config.NumberColumn(format="%.4f", help="largest change of a pixel, pixel units"),
            "L2": st.column_config.NumberColumn(format="%.3f", help="Euclidean length of δ, pixel units"),
            "PSNR (dB)": st.column_config.NumberColumn(format="%.1f", help="higher: less visible"),
            "SSIM": st.column_config.NumberColumn(format="%.3f", help="structural similarity, 1: identical"),
            "changed": st.column_config.NumberColumn(format="percent", help="share of pixels that changed at all"),
        },
        alt="Size of the change: this image, all poison images, and the controls",
    )
    st.caption(
        "L∞ of a set is its maximum, the rest are means over its images. The controls are a random perturbation of the "
        "same L∞ budget and the poison with its signs shuffled. Both are cut where a pixel would leave [0, 1], half of "
        "the time on black ground, so their L2 is smaller. Their images are not recorded, only these numbers."
        f"{rounding()}"
    )


def _perturbation(table: pd.DataFrame) -> perception.Perturbation:
    columns = ("linf", "l2", "psnr", "ssim", "changed_share")
    return perception.Perturbation(**{name: table[name].to_numpy() for name in columns})


def rounding() -> str:
    """Published copies hold δ as 16-bit floats, which a reader of the numbers should know."""
    published = run.directory.parent == GALLERY
    return " In this published copy, changes are rounded to 16-bit floats (to 0.00003 at most)." if published else ""


def all_images() -> None:
    poison, stamp = open_tensors("poison", f"Run {run.id} has no poison yet: it is {run.status().state}.")
    if not len(poison["delta"]):
        st.info(f"This run changed no image: poison fraction {config.threat.poison_fraction:g}.")
        return
    images, _ = _shared.images_of(run, train=True)
    table = measured(str(run.directory), stamp, config.dataset, str(_shared.data_root()))
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
    clean = images[poison["indices"][chosen], 0]
    tiles = {
        "poisoned": lambda: pictures.shades(clean + poison["delta"][chosen, 0]),
        "clean": lambda: pictures.shades(clean),
        "δ": lambda: pictures.signed_colours(poison["delta"][chosen, 0], limit=epsilon or 1e-3),
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
    one = images[poison["indices"][k], 0]
    chart(image_figures.image_triple(one, one + poison["delta"][k, 0], limit=epsilon or 1e-3), "chosen_triple")
    colours()


def page_number(key: str, count: int) -> int:
    pages = max(1, -(-count // (COLUMNS * ROWS)))
    keep_within(key, 1, pages)
    return int(st.number_input(f"Page, 1 to {pages}", 1, pages, key=key)) - 1


def wall(tiles: np.ndarray, numbers: np.ndarray, hover: list[str], key: str, chooses: str) -> None:
    rows = max(1, -(-len(tiles) // COLUMNS))
    content = pictures.png(pictures.mosaic(tiles, columns=COLUMNS), scale=3)
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
    if records:
        chart(attack_figures.attack_losses(records, config.attack.restart_every), "losses")
        st.caption(
            "Upper loss: the attacker's, the soft radius of the target class on held-out images, to go down. It is a "
            "loss, not a certificate. Lower loss: the surrogate's training loss. Relative residual: how far the linear "
            "system behind the hypergradient is from solved; below 1 the solver helps, above it does not."
        )
    found, _ = open_tensors("evolution", "This run recorded no evolution: its poison was reused from an earlier run.")
    if not len(found["steps"]) or not found["delta"].shape[1]:
        st.info("This run changed no image, so there is nothing to watch.")
        return
    step_by_step(found, {record["step"]: record for record in records})
    colours()


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
        limit, words = magnification("magnify_steps")
    if facts := records.get(step):
        st.markdown(
            f"After step **{step}** of {facts['steps']}: mean |δ| **{facts['mean_size']:.4f}** (pixel units), "
            f"**{facts['share_at_epsilon']:.0%}** of pixels at the budget ε, over all poison images."
        )
    now = found["delta"][steps.index(step), :, 0]
    maps = pictures.mosaic(pictures.signed_colours(now, limit=limit), columns=4)
    places = st.columns(2)
    with places[1]:
        picture(maps, scale=4, caption=f"Their δ. {words}.", text=f"δ after step {step}", width="stretch")
    with places[0]:
        poison, _ = open_tensors("poison", "The poison itself is not written yet.")
        images, _ = _shared.images_of(run, train=True)
        poisoned = images[poison["indices"][: len(now)], 0] + now
        grey = pictures.mosaic(pictures.shades(poisoned), columns=4)
        picture(
            grey,
            scale=4,
            caption=f"The first {len(now)} poison images after upper step {step}, grey scale 0 to 1",
            text=f"Poisoned images after step {step}",
            width="stretch",
        )


def test_images() -> None:
    table = _shared.open_certificates(run)
    digit = config.threat.target_class
    means = figures.radii_by_image(table, config)
    arms = [arm for arm in ARM_STYLE if arm in means.columns]
    if not {"clean", "poisoned"} <= set(arms):
        st.info("Radius lost needs certificates of clean and poisoned victims; this partial run lacks one of them.")
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
        f"**{len(means)} test images of digit {digit}**, those that lost most first: mean radius of clean victims "
        "minus mean radius of poisoned victims (L2, pixel units; wrong or abstaining counts as 0)."
    )
    part = means.iloc[number * COLUMNS * ROWS :][: COLUMNS * ROWS]
    if part.empty:
        st.info("No image did.")
        return
    if datasets.available(config.dataset, _shared.data_root()):
        images, _ = _shared.images_of(run, train=False)
        hover = [
            f"test image {image}<br>clean {row['clean']:.3f}, poisoned {row['poisoned']:.3f}<br>lost {row['lost']:+.3f}"
            for image, row in part.iterrows()
        ]
        tiles = pictures.shades(images[part.index.to_numpy(), 0])
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
        _shared.images_of(run, train=False)


run = _shared.open_run()
config = run.config
epsilon = config.threat.epsilon
st.title("Inspect")
st.caption(_shared.limits_line(run))
view = st.segmented_control(
    "View", VIEWS, default=VIEWS[0], required=True, key="view", bind="query-params", label_visibility="collapsed"
)
{VIEWS[0]: one_image, VIEWS[1]: all_images, VIEWS[2]: evolution, VIEWS[3]: test_images}[str(view)]()
