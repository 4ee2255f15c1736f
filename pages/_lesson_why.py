"""The lesson's view of why poison works: victims asked about a training image, as it was and as it was poisoned."""

import numpy as np
import streamlit as st

from engine.figures import pictures
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.report import sentences
from pages import _images, _shared, _victims
from pages._lesson_effect import waiting
from pages._show import picture

PAIR = ("Clean image", "Poisoned image")
TILE = 168  # pixels on the screen, about


def why(run: Run, revealed: bool) -> None:
    """The two versions, and what each victim certifies for them once it was predicted."""
    poison = run.tensors("poison")
    assert poison is not None
    with st.container(key="lesson-controls"):
        k = int(
            st.number_input(
                f"Training image of {sentences.target_of(run)}, 0 to {len(poison['delta']) - 1}", 0,
                len(poison["delta"]) - 1, 0, key=f"lesson_why {run.id}", width=260,
            )
        )  # fmt: skip
    found = _images.training_images(run, poison["indices"][k : k + 1])
    if found is None:
        return
    pair = np.stack([found[0], found[0] + poison["delta"][k].astype(np.float32)])
    asked = [victim for victim in _victims.kept(run) if victim.k == 0 and victim.arm in ("clean", "poisoned")]
    if len(asked) < 2:
        st.info(f"Run {run.id} keeps no weights of its victims, so they cannot be asked. The examples keep them.")
    if not revealed:
        waiting("What the victims certify stays covered until you reveal the answer.")
    settings, radii = run.config.certification, {}
    n = min(settings.n, _victims.UNASKED)
    for place, name, image, tile in zip(st.columns(2, gap="large"), PAIR, pair, pictures.shown(pair), strict=True):
        with place:
            scale = pictures.enlargement(tile.shape[0], pixels=TILE)
            picture(tile, scale=scale, caption=name, text=f"{name} {k}", width=tile.shape[1] * scale)
            if not revealed or len(asked) < 2:
                continue
            table = _victims.certificates(
                asked, image, sigma=run.config.sigma, n0=min(settings.n0, n), n=n, alpha=settings.alpha,
                seed=run.config.seed % 2**31,
            )  # fmt: skip
            for row in table.itertuples():
                right = row.prediction == run.config.threat.target_class
                radii[row.arm, name] = row.radius if right else 0.0
                st.metric(
                    f"{ARM_STYLE[row.arm].name.capitalize()} victim: radius (L2)",
                    f"{radii[row.arm, name]:.3f}",
                    f"{row.n_top} of {row.n} votes",
                    delta_color="off", delta_arrow="off", border=True,
                )  # fmt: skip
    if radii:
        st.markdown(told(radii))
    st.caption(
        f"Victim 0 of each arm, n = {n} draws, α = {settings.alpha:g}, σ = {run.config.sigma:g}; pixel units; wrong or "
        "abstaining counts as 0. The clean victim never saw the pattern. Neighbouring images may tell another story: "
        "try some."
    )
    _shared.page_link("pages/image.py", "All votes, for any image: One image")


def told(radii: dict[tuple[str, str], float]) -> str:
    """What the four radii say of this image."""
    gains = {arm: radii[arm, PAIR[1]] - radii[arm, PAIR[0]] for arm in ("clean", "poisoned")}
    if gains["poisoned"] > max(gains["clean"], 0):
        return (
            f"The pattern adds {gains['poisoned']:.3f} to the poisoned victim's radius, and {gains['clean']:.3f} to "
            "the clean victim's. Without it the poisoned victim is less sure, as of test images, which never have it."
        )
    return "For this image the pattern adds no more to the poisoned victim's radius: no shortcut shows here."
