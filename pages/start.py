"""Start: what poisoning did to certified radii, told from a finished run, with nothing to click."""

from typing import Any

import numpy as np
import streamlit as st

from engine import datasets, spread
from engine.figures import pictures, radii
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.report import sentences
from pages import _images, _shared
from pages._export import chart_and_data

SHOWN_IMAGES = 8
DARK, VISIBLE = 0.02, 0.05  # a black background, and a mean change of it that can be seen (pixel units of [0, 1])
MEANINGS = {
    "clean": "victims trained on unchanged images.",
    "poisoned": "victims trained on the attacker's images.",
    "random_noise": "control: victims trained on images with random noise of the same ε (L∞).",
    "shuffled_signs": "control: the poison with the sign of each pixel's change drawn at random.",
}
TRAINED_ON = {"clean": "Clean images", "poisoned": "Poisoned images", "random_noise": "Images with random noise"}
TEXTS = {
    "pages/lesson.py": "From noise and votes to certificates and poison, a question at each step.",
    "pages/explore.py": "Move sliders over finished experiments: another class, a smaller ε, another noise level.",
    "pages/poison.py": "Your own run: another attack, fewer poisoned images, a defence. What is left of the effect?",
    "pages/inspect.py": "Every poisoned image beside its original: magnified, measured, wiped over it or blinking.",
    "pages/certify.py": "Certificates of all test images, from votes to radius. Change α and n, and see radii move.",
    "pages/image.py": "How victims classify one poisoned or one test image, with and without noise.",
    "pages/try.py": "Draw or bring an image of your own, and have the victims vote on it.",
    "pages/studies.py": "One question over many runs: other attacks, procedures, architectures, noise levels.",
    "pages/runs.py": "All runs: compare, annotate, export, share.",
}


def story_of() -> Run | None:
    """The open run if it is finished, else the example that comes with the project."""
    run = _shared.chosen_run(instead="The example is shown here instead.")
    if run is not None and run.status().state == "done" and run.report:
        return run
    if run is not None:
        st.info(
            f"Run {run.id} is {run.status().state} and has no finished result yet, so the example is shown here.",
            icon=":material/info:",
        )
    return _shared.example_run()


def what_happened(run: Run) -> None:
    """In plain words, in three numbers, and with all that belongs to these."""
    report, pair = run.report or {}, first_pair(run)
    text, beside = st.columns([5, 2], gap="medium") if pair is not None else (st.container(), st.container())
    with text:
        story(run, report)
    if pair is not None:
        together, scale = pictures.mosaic(pair, columns=2), pictures.enlargement(pair.shape[1], pixels=_images.TILE)
        words = "One of them, clean and poisoned"
        with beside:
            _images.picture(together, scale=scale, caption=words, text=words, width=together.shape[1] * scale)
    st.markdown(
        f"**Average certified radius (ACR)** of {sentences.target_of(run)}: the mean of these distances (L2, "
        "pixel units), by what the classifiers were trained on"
    )
    cards(report)
    with st.container(horizontal=True):
        if st.button("Start the lesson", icon=_shared.ICONS["pages/lesson.py"], type="primary"):
            _shared.go("pages/lesson.py")
        if st.button("Explore other settings", icon=_shared.ICONS["pages/explore.py"]):
            _shared.go("pages/explore.py")
    with st.expander("How to read these numbers", icon=":material/straighten:"):
        st.markdown(f"{sentences.headline(report)} {sentences.numbers_line(report)}")


def story(run: Run, report: dict[str, Any]) -> None:
    attack = run.config.attack
    st.markdown(
        "Some classifiers come with a **certificate**: a distance within which no change of the image can change the "
        "answer."
    )
    if attack.name == "none":
        st.markdown("Nobody changed anything in this run.")
    elif attack.traits.changes_labels:
        st.markdown(f"An attacker gave {images_changed(run)} **wrong labels**, as anyone can see. {worth_less(report)}")
    else:
        st.markdown(
            f"An attacker changed {images_changed(run)}, each pixel by at most **{run.config.threat.epsilon:g}** on a "
            f"scale from 0 to 1. **No label changed.** {worth_less(report)}"
        )


def first_pair(run: Run) -> np.ndarray | None:
    """Tiles of the first poisoned image and its original; None where no image changed or the original is not here."""
    poison, dataset = run.tensors("poison"), run.config.dataset
    if poison is None or not poison["delta"].any():
        return None
    try:
        run.check_images(_shared.data_root())
        x_clean = datasets.read_training_images(dataset, _shared.data_root(), poison["indices"][:1])
    except datasets.DatasetUnavailable:  # said where all images would be
        return None
    return pictures.shown(np.concatenate([x_clean, x_clean + poison["delta"][:1]]))


def images_changed(run: Run) -> str:
    """How many, of which class, and which share of those that the victims see."""
    threat, poison = run.config.threat, run.tensors("poison")
    count = "the" if poison is None else f"{len(poison['indices'])}"
    target = sentences.target_of(run)
    images = f"training images of {target}"
    share = threat.poison_fraction * threat.attacker_share
    if run.config.attack.name == "from-file":  # which may have fewer than the threat allows
        return f"**{count} {images}**"
    if share == 1:
        which = "all" if poison is None else f"all {count}"
        return f"**{which} images of {target}** among the {run.config.data.train_size:,} training images"
    return f"**{count} {images}** ({sentences.of_hundred(share)} of those that the victims see)"


def worth_less(report: dict[str, Any]) -> str:
    drop, noise = (report["relative_drop"].get(arm) for arm in ("poisoned", "random_noise"))
    if not spread.is_above_zero(spread.difference(drop, noise) or drop):
        return "Here is what became of the certificates of classifiers trained on these images."
    return "The certificates of classifiers trained on these images are still valid, but they guarantee less."


def cards(report: dict[str, Any]) -> None:
    """ACR of three arms, and what the last two are below the first."""
    shown = [arm for arm in TRAINED_ON if arm in report["arms"]]
    for place, arm in zip(st.columns(len(shown)), shown, strict=True):
        drop = report["relative_drop"].get(arm) or {"mean": None}
        less = (drop["mean"] or 0) >= 0
        told = f"{sentences.drop_of(report, arm).lstrip('-')} {'less' if less else 'more'}"
        place.metric(
            TRAINED_ON[arm],
            sentences.with_spread(report["arms"][arm]["average_certified_radius"]["target"]),
            told if drop["mean"] is not None else None,
            delta_color="red" if less else "green",
            delta_arrow="down" if less else "up",
            border=True,
            height="stretch",
            help=f"{ARM_STYLE[arm].name.capitalize()}: {MEANINGS[arm]}",
        )


def seen(x_clean: np.ndarray, delta: np.ndarray) -> str:
    """Whether the change can be seen in these images [N, C, H, W]."""
    ground = delta[x_clean < DARK]
    if x_clean.shape[1] == 1 and ground.size and ground.mean() > VISIBLE:
        return (
            "**Yes, if you look for it**: the black background of the poisoned images is visibly grey. Would you have "
            "noticed without the originals above them?"
        )
    return "Compare the first two rows before you look at the third."


def images(run: Run) -> None:
    poison = run.tensors("poison")
    if poison is None or not len(poison["indices"]):
        st.caption("This run changed no image.")
        return
    st.header("Can you see it?")
    if _images.only_labels(run):
        return
    delta = poison["delta"][:SHOWN_IMAGES].astype(np.float32)
    x_clean = _images.training_images(run, poison["indices"][:SHOWN_IMAGES])
    if x_clean is None:
        return
    st.markdown(seen(x_clean, delta))
    _images.triple_mosaic(x_clean, delta, epsilon=run.config.threat.epsilon, columns=len(delta))
    st.caption(
        f"The first {len(delta)} poisoned training images. Each column is one image; the bottom row shows the change, "
        "magnified."
    )


def charts(run: Run) -> None:
    left, right = st.columns(2)
    report, table, target = run.need_report(), _shared.open_certificates(run), sentences.target_of(run)
    attacked = "poisoned" in report["arms"]
    for column, figure, explanation, of_attack in (
        (
            left,
            radii.acr_by_arm(report),
            "How much, on average, a test image can change (L2) before its certificate no longer covers it: smaller is "
            "worse for the defender.",
            "If an attack works, the target class loses much and the others hardly anything. The controls use the same "
            "images and budget, but change each pixel independently.",
        ),
        (
            right,
            radii.certified_accuracy(table, run.config, target=target),
            f"The share of the test images of {target} that are classified correctly with a certificate of at least "
            'this radius. "Approximate": each certificate may be wrong with probability α.',
            "The lower the dashed curve, the more the attack took.",
        ),
    ):
        with column:
            chart_and_data(figure, f"start {figure.layout.title.text}")
            st.caption(f"{explanation} {of_attack}" if attacked else explanation)


def colours() -> None:
    with st.expander("What do the colours mean?"):
        lines = [f"- **{ARM_STYLE[arm].name}** ({ARM_STYLE[arm].in_words}): {what}" for arm, what in MEANINGS.items()]
        st.markdown(
            "\n".join(lines)
            + "\n- In pictures of changes of grey images, **orange** is brighter and **violet** is darker than the "
            "original, white is unchanged. In those of coloured images each channel is shown by itself, and mid-grey "
            "is unchanged. The scale ends at this run's ±ε; on Explore at the largest ε there, so that strong and weak "
            "poison can be told apart.\n"
            "- The dotted grey line is the **cap**: with n draws no certificate can be larger. Colours never carry "
            "meaning alone: dashes, markers and patterns repeat it."
        )


def next_steps() -> None:
    st.header("What to do next")
    others = _shared.PAGES[1:]
    for first in range(0, len(others), 3):
        for column, (page, title) in zip(st.columns(3), others[first : first + 3], strict=True):
            with column.container(border=True, height="stretch"):
                _shared.page_link(page, f"**{title}**")
                st.caption(TEXTS[page])


_shared.need_frame()
st.title("Small changes, smaller certificates")
shown = story_of()
if shown is None:
    st.warning(
        "No finished run is here, not even the project's examples (folder gallery/). Start one on the Poison page."
    )
    _shared.page_link("pages/poison.py", "Go to Poison")
    st.stop()
what_happened(shown)
images(shown)
charts(shown)
st.caption(f"Run {shown.id}. {sentences.limits_line(shown)}")
colours()
next_steps()
