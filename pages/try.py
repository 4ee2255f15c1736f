"""Try your own: draw a digit or upload a picture, see it voted on and certified, and how it was prepared for that."""

import base64

import numpy as np
import pandas as pd
import streamlit as st

from engine import datasets, handwriting
from engine.certification import ABSTAIN, radius_cap
from engine.figures import pictures
from engine.figures.images import shares_by_class
from engine.handwriting import PictureRefused
from engine.report import sentences
from engine.report.sentences import of_hundred
from pages import _canvas, _certificate, _images, _links, _selection, _shared, _test_images, _victims
from pages._export import chart_and_data
from pages._show import picture

DRAW, UPLOAD, PICK = "Draw", "Upload a picture", "A test image"
DRAWS = (10, 20, 50, 100, 200, 400, 1000, 2000)
ALPHAS = (0.1, 0.05, 0.01, 0.001, 0.0001)
SHOWN = 108  # pixels on the screen of a step's picture


def most_hurt() -> int:
    """The test image of the target class that lost most of its radius; 0 where the open run has no certificates."""
    order = _test_images.in_order(run) if (run.directory / "certificates.parquet").exists() else []
    return int(order[0]) if len(order) else 0


def test_image() -> np.ndarray:
    """A test image [C, H, W] by its number."""
    images, labels = _images.images_of(run, train=False)
    last = len(images) - 1
    _links.check(try_image=range(last + 1))
    _selection.forget("try_image", range(last + 1))
    label, first = f"Test image, 0 to {last}", most_hurt()
    number = int(st.number_input(label, 0, last, first, key="try_image", bind="query-params", persist_state="session"))
    words = datasets.class_in_words(config.dataset, int(labels[number]), names)
    tile = pictures.shown(images[number : number + 1])[0]
    scale = pictures.enlargement(tile.shape[0], pixels=280)
    picture(tile, scale=scale, caption=f"Test image {number}, {words}", text=f"Test image {number}, {words}")
    if is_digits:
        st.button("Draw on it", on_click=draw_on, args=(tile,), icon=":material/draw:")
    return images[number]


def draw_on(tile: np.ndarray) -> None:
    """Lays a test image [28, 28] on a fresh sheet."""
    st.session_state["try_sheet"] = st.session_state.get("try_sheet", 0) + 1
    content = pictures.png(tile, scale=10)
    _canvas.put(sheet_key(), "data:image/png;base64," + base64.b64encode(content).decode())
    st.session_state["try_source"] = DRAW


def sheet_key() -> str:
    return f"sheet {st.session_state.get('try_sheet', 0)}"


def own_picture(source: str) -> np.ndarray | None:
    """What was drawn or uploaded, as colours [H, W, 3]; None while there is nothing, or it is refused."""
    if source == UPLOAD:
        given = st.file_uploader(
            "Picture (PNG, JPEG or WebP)",
            type=["png", "jpg", "jpeg", "webp"],
            max_upload_size=handwriting.MOST_BYTES // 10**6,
            key="try_upload",
            help="One dark digit on light paper, or a light one on a dark ground, with room around it.",
        )
        st.caption("It stays in this app's memory while this page is open. It is neither stored nor sent anywhere.")
        content = given.getvalue() if given is not None else None
    else:
        drawn = _canvas.drawing(sheet_key())
        content = None if drawn is None else handwriting.from_data_url(drawn)
    return None if content is None else handwriting.read_picture(content)


def brought_to_form(colours: np.ndarray) -> np.ndarray:
    """The image [C, H, W] that victims are asked about; each step on the way to it for those who open the box."""
    box = handwriting.BOX.get(config.dataset)
    if box is None:
        image = handwriting.to_shape(colours, shape)
        steps = [
            (pictures.shown(np.moveaxis(colours, -1, 0)[None])[0], "Original"),
            (pictures.shown(image[None])[0], f"Its centre, scaled to {shape[2]}×{shape[1]} pixels"),
        ]
    else:
        digit = handwriting.to_digit(colours, box=box)
        image = digit.image
        steps = [
            (pictures.shades(digit.grey), "1. In grey"),
            (pictures.shades(digit.ink), "2. Inverted" if digit.inverted else "2. Ink to white"),
            (pictures.shades(square(digit.cut)), "3. Cropped"),
            (pictures.shown(image[None])[0], "4. 28×28"),
        ]
    with st.expander(f"How your {'drawing' if source == DRAW else 'picture'} is prepared", icon=":material/crop:"):
        with st.container(horizontal=True):
            for shown, words in steps:
                scale = pictures.enlargement(max(shown.shape[:2]), pixels=SHOWN)
                wide = max(1, round(SHOWN * shown.shape[1] / max(shown.shape[:2])))
                picture(shown, scale=scale, caption=words, text=words, width=wide)
        if box:
            st.caption(
                f"As MNIST was made: light on black, cropped to the ink, the longer side scaled to {box} of 28 pixels, "
                "and shifted so that the centre of mass is in the middle."
            )
    return image


def square(cut: np.ndarray) -> np.ndarray:
    """On black, as wide as it is high: a narrow picture would leave its caption no room."""
    rows, columns = (max(cut.shape) - length for length in cut.shape)
    return np.pad(cut, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)))


def chosen_settings() -> tuple[int, int, float, int]:
    """(n0, n, alpha, seed)."""
    recorded = config.certification
    draws = sorted({*DRAWS, *(n for n in (recorded.n0, recorded.n) if n <= DRAWS[-1])})
    alphas = sorted({*ALPHAS, recorded.alpha}, reverse=True)
    _links.check(try_n0=draws, try_n=draws, try_alpha={alpha: f"{alpha:g}" for alpha in alphas}, try_seed=range(2**31))
    with st.expander(f"Draws, α and seed (σ = {config.sigma:g} is the victims' own)", icon=":material/tune:"):
        first, second, third, fourth = st.columns(4, gap="medium")
        numbers = []
        for place, words, key, at_first in (
            (first, "Selection draws n0", "try_n0", recorded.n0),
            (second, "Estimation draws n", "try_n", recorded.n),
        ):
            value = min(at_first, _victims.UNASKED)
            _selection.forget(key, draws)
            with place:
                numbers.append(int(st.select_slider(words, draws, value=value, key=key, bind="query-params")))
        n0, n = numbers
        _selection.forget("try_alpha", alphas)
        with third:
            alpha = st.select_slider(
                "Failure probability α",
                alphas,
                value=recorded.alpha,
                format_func=lambda value: f"{value:g}",
                key="try_alpha",
                bind="query-params",
            )
        with fourth:
            seed = int(st.number_input("Seed of the noise", 0, 2**31 - 1, 0, key="try_seed", bind="query-params"))
        st.caption(
            "n0 draws select the class, n fresh ones bound its share. No radius can exceed the cap σ·Φ⁻¹(α^(1/n)) = "
            f"{radius_cap(n=n, sigma=config.sigma, alpha=alpha):.3f} (L2, pixel units of [0, 1])."
        )
    return n0, n, float(alpha), seed


def compared(rows: pd.DataFrame) -> None:
    """How each victim classifies it, and what poisoning changed, in sentences."""
    for row in rows.itertuples():
        st.markdown(_victims.verdict(row, names))
    by_arm = {row.arm: row for row in rows.itertuples()}
    if not {"clean", "poisoned"} <= set(by_arm):
        return
    clean, poisoned = by_arm["clean"], by_arm["poisoned"]
    if clean.prediction == poisoned.prediction != ABSTAIN:
        change = poisoned.radius / clean.radius - 1
        words = f"{of_hundred(abs(change))} {'smaller' if change < 0 else 'larger'}" if round(change, 2) else "the same"
        st.markdown(f"For this image, the poisoned victim's certified radius is **{words}**.")
    elif clean.prediction != poisoned.prediction:
        st.markdown("The two victims **disagree** on this image.")


def votes_and_radii(image: np.ndarray, rows: pd.DataFrame, *, n0: int, n: int, alpha: float, seed: int) -> None:
    """Where the answers come from. Args: rows: the victims' certificates."""
    left, right = st.columns(2, gap="medium")
    with left:
        shares = {row.arm: row.estimation_votes / row.n for row in rows.itertuples()}
        figure = shares_by_class(
            {"this image": shares},
            names,
            title="Votes under noise",
            subtitle=f"{n:,} draws, one victim per arm; ★ selected class; a certificate needs more than half",
            quantity="share of the noise draws",
            selected={("this image", row.arm): row.selected_class for row in rows.itertuples()},
        )
        chart_and_data(figure, "try_votes")
        rng = np.random.default_rng([seed, 1])
        _images.noisy_row(image, "What the victims vote on: the image", sigma=config.sigma, rng=rng)
    with right:
        certification = config.certification.model_copy(update={"n0": n0, "n": n, "alpha": alpha})
        _certificate.from_votes_to_radius(rows, config.model_copy(update={"certification": certification}), names)


run = _shared.open_run()
config = run.config
names = sentences.class_names_of(run)
is_digits = config.dataset in handwriting.BOX
st.title("Try your own")
st.markdown(
    "Draw a digit, or bring a picture. Victims of the open run, one trained on clean and one on poisoned images, "
    "vote on noisy copies of it, and the votes become a **certificate**: how much (L2) your picture may change before "
    "the answer could change."
)
st.caption(
    f"{sentences.settings_line(run)} The attack was made against images of {sentences.target_of(run)}: try those first."
)
try:
    shape = datasets.shape(config.dataset, _shared.data_root())
except datasets.DatasetUnavailable as error:
    _images.missing(config.dataset, error)
    st.stop()
names = names or tuple(str(k) for k in range(10))
left, right = st.columns([2, 3], gap="large")
with left:
    sources = [*([DRAW] if is_digits else []), UPLOAD, PICK]
    _links.check(try_source=sources)
    _selection.forget("try_source", sources)
    source = _selection.segmented("Your image", sources, default=sources[0], key="try_source")
    try:
        image = test_image() if source == PICK else None
        colours = own_picture(source) if source != PICK else None
        refused = None
    except PictureRefused as error:
        image, colours, refused = None, None, str(error)
with right:
    asked = _victims.to_ask(run, "try_victim", shape)
    if not asked:
        st.stop()
    n0, n, alpha, seed = chosen_settings()
    answer = st.container()
    if colours is not None:
        try:
            image = brought_to_form(colours)
        except PictureRefused as error:
            refused = str(error)
    if refused:
        st.error(refused)
    if image is None:
        st.info("Draw a digit on the sheet, as large as you like." if source == DRAW else "Choose a picture.")
        st.stop()
    with answer:
        st.header("How the victims classify it")
        rows = _victims.certificates(asked, image, sigma=config.sigma, n0=n0, n=n, alpha=alpha, seed=seed)
        compared(rows)
        st.caption(f"Each certificate holds with probability ≥ 1 − α = {of_hundred(1 - alpha, 2)}, for this one image.")
votes_and_radii(image, rows, n0=n0, n=n, alpha=alpha, seed=seed)
