"""Start: what poisoning did to certified radii, told from a finished run, with nothing to click."""

from typing import Any

import numpy as np
import streamlit as st

from engine import spread
from engine.figures import radii
from engine.figures.style import ARM_STYLE, SAVE, alt
from engine.records import Run
from engine.report import sentences
from pages import _export, _images, _shared

SHOWN_IMAGES = 8


def story_of() -> Run | None:
    """The open run if it is finished, else the example that comes with the project."""
    run = _shared.chosen_run()
    if run is not None and run.status().state == "done" and run.report:
        return run
    if run is not None:
        st.info(
            f"Run {run.id} is {run.status().state} and has no finished result yet, so the example is shown here.",
            icon=":material/info:",
        )
    return _shared.example_run()


def what_happened(run: Run) -> None:
    report, attack = run.report or {}, run.config.attack
    if attack.name == "none":
        st.markdown(f"Nobody changed anything in this run. {sentences.headline(report)}")
    elif attack.traits.changes_labels:
        st.markdown(f"Somebody gave {images_changed(run)} **wrong labels**, as anyone can see. {worth_less(report)}")
    else:
        st.markdown(
            f"Somebody changed {images_changed(run)}, no pixel by more than **ε = {run.config.threat.epsilon:g}** (L∞, "
            f"pixel units of [0, 1]), and no label at all. {worth_less(report)}"
        )
    st.caption(sentences.numbers_line(report))


def images_changed(run: Run) -> str:
    """How many, of which class, and which share of those that the victims see."""
    threat, poison = run.config.threat, run.tensors("poison")
    count = "the" if poison is None else f"{len(poison['indices'])}"
    images = f"**{count} training images of {sentences.target_of(run)}**"
    if run.config.attack.name == "from-file":  # which may have fewer than the threat allows
        return images
    share = threat.poison_fraction * threat.attacker_share
    return f"{images} ({'all' if share == 1 else f'{share:.0%} of those'} that the victims see)"


def worth_less(report: dict[str, Any]) -> str:
    drop, noise = (report["relative_drop"].get(arm) for arm in ("poisoned", "random_noise"))
    less = spread.is_above_zero(spread.difference(drop, noise) or drop)
    return sentences.headline(report) + (" The certificates are still valid, and worth less." if less else "")


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
    _images.triple_mosaic(x_clean, delta, epsilon=run.config.threat.epsilon, columns=len(delta))
    st.caption(
        f"The first {len(delta)} poisoned training images. Each column is one image; the bottom row is what was added, "
        "magnified so that you can see it."
    )


def charts(run: Run) -> None:
    left, right = st.columns(2)
    report, table, target = run.report, _shared.open_certificates(run), sentences.target_of(run)
    assert report is not None
    attacked = "poisoned" in report["arms"]
    for column, figure, explanation, of_attack in (
        (
            left,
            radii.acr_by_arm(report),
            "How far, on average, a test image can be moved (L2) before a certificate ends: lower is worse for the "
            "defender.",
            "If an attack works, the target class loses and the others hardly do. Controls change the same images "
            "within the same budget, each pixel by itself.",
        ),
        (
            right,
            radii.certified_accuracy(table, run.config, target=target),
            f"The share of the test images of {target} that is classified correctly with a certificate of at least "
            'this radius. "Approximate": each certificate may be wrong with probability α.',
            "The lower the dashed curve, the more the attack took.",
        ),
    ):
        with column:
            st.plotly_chart(figure, alt=alt(figure), config=SAVE)
            st.caption(f"{explanation} {of_attack}" if attacked else explanation)
            _export.data(figure, f"start {figure.layout.title.text}")


def colours() -> None:
    with st.expander("What do the colours mean?"):
        names = {
            "clean": "victims trained on unchanged images.",
            "poisoned": "victims trained on the attacker's images.",
            "random_noise": "control: victims trained on images with random noise of the same ε (L∞).",
            "shuffled_signs": "control: the poison's own sizes, each pixel's sign drawn at random.",
        }
        lines = [f"- **{ARM_STYLE[arm].name}** ({ARM_STYLE[arm].in_words}): {what}" for arm, what in names.items()]
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
    steps = (
        ("pages/lesson.py", "Lesson", ":material/school:",
         "From noise and votes to certificates and poison, a question at each step."),
        ("pages/explore.py", "Explore", ":material/explore:",
         "Move sliders over finished experiments: another class, a smaller ε, another noise level."),
        ("pages/inspect.py", "Inspect", ":material/search:",
         "Every poisoned image beside its original, magnified, measured, wiped over it or blinking."),
        ("pages/certify.py", "Certify", ":material/verified:",
         "From votes under noise to a radius, image by image; change α and n and see radii move."),
        ("pages/poison.py", "Poison", ":material/science:",
         "Another attack, fewer poisoned images, a defence: what is left of the effect?"),
    )  # fmt: skip
    for column, (page, label, icon, text) in zip(st.columns(len(steps)), steps, strict=True):
        with column.container(border=True, height="stretch"):
            _shared.page_link(page, f"**{label}**", icon)
            st.caption(text)


_shared.need_frame()
st.title("Small changes, smaller certificates")
shown = story_of()
if shown is None:
    st.warning(
        "No finished run is here, not even the project's examples (folder gallery/). Start one on the Poison page."
    )
    _shared.page_link("pages/poison.py", "Go to Poison", ":material/science:")
    st.stop()
what_happened(shown)
images(shown)
charts(shown)
st.caption(f"Run {shown.id}. {sentences.limits_line(shown)}")
colours()
next_steps()
