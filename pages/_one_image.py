"""One poison image closely: scales and what they mean, wipe and blink, and its size in numbers."""

import numpy as np
import pandas as pd
import streamlit as st

from engine import perception
from engine.choices import CONTROLS
from engine.figures import images, pictures
from engine.figures.style import ARM_STYLE
from engine.records import Run
from pages import _links, _selection, _shared
from pages._show import chart, picture

COLOURS = """
- **Images**: black is 0 and white is 1 in every image (in a coloured one, for red, green and blue each). No picture is
  brightened or stretched on its own.
- **Change δ = poisoned − clean** of grey images: orange pixels became brighter, violet ones darker, white ones did not
  change. In coloured images each channel is shown by itself: mid-grey pixels did not change, and there is more red,
  green or blue where that channel rose, less where it fell.
- **The scale of δ**: zero is always in the middle, and its ends depend only on the budget ε and the magnification,
  never on the image, so the maps of two images can be compared.
- **Magnification**: ×1 draws δ on the images' own scale (±1), so it looks as faint as it is; ×5 and ×10 magnify it;
  *full range* ends the scale at ±ε.
- All values are in pixel units of [0, 1]; ε bounds the change of every pixel (L∞).
"""


def colours() -> None:
    with st.expander("What do the colours mean?", icon=":material/palette:"):
        st.markdown(COLOURS)


def magnification(key: str, epsilon: float) -> tuple[float, str]:
    """(end of the δ scale, words for the caption) as chosen."""
    ways = ["×1", "×5", "×10", "full range"]
    _links.check(**{key: ways})
    chosen = _selection.segmented("Magnify the change δ", ways, default="full range", key=key)
    limit = (epsilon or 1e-3) if chosen == "full range" else 1 / int(chosen[1:])
    factor = f"{1 / limit:.3g}"
    words = "δ is not magnified" if factor == "1" else f"δ is magnified ×{factor}"
    return limit, f"{words}: the ends of its scale are ±{limit:g} (pixel units)"


@st.fragment
def comparator(clean: np.ndarray, poisoned: np.ndarray, k: int) -> None:
    """One place for two images [C, H, W]: an edge that wipes over them, or a blink."""
    st.header("Can you see the difference?")
    ways = ["Wipe", "Blink"]
    _links.check(compare_by=ways)
    way = _selection.segmented("Compare by", ways, default="Wipe", key="compare_by")
    if way == "Blink":
        chart(images.blink(clean, poisoned), "blink")
        st.caption("Blink switches between the two images once a second, in the same place. Stop ends it.")
        return
    height, width = clean.shape[1:]
    _links.check(wipe=range(width + 1))
    _selection.forget("wipe", range(width + 1))
    words = "Columns from the clean image; the rest is poisoned"
    position = st.slider(words, 0, width, width // 2, key="wipe", bind="query-params")
    both = pictures.wipe(*pictures.shown(np.stack([clean, poisoned])), position=position)
    scale = pictures.enlargement(height, pixels=336)
    picture(
        both,
        scale=scale,
        caption=f"Left {position} columns clean, right {width - position} poisoned, true brightness",
        text=f"Poison image {k}: {position} columns clean, then poisoned",
        width=scale * width,
    )
    st.caption("Move the slider, with the arrow keys if you like: what changes as the edge passes is the poison.")


def numbers_of(run: Run, k: int, table: pd.DataFrame) -> None:
    """This image's numbers beside the set's and the controls'."""
    st.header("How large is it?")
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
            "PSNR (dB)": st.column_config.NumberColumn(
                format="%.1f", help="higher: less visible; none where nothing changed"
            ),
            "SSIM": st.column_config.NumberColumn(format="%.3f", help="structural similarity, 1: identical"),
            "changed": st.column_config.NumberColumn(format="percent", help="share of pixels that changed at all"),
        },
        alt="Size of the change: this image, all poison images, and the controls",
    )
    st.caption(
        "L∞ of a set is its maximum; the rest are means over its images. The controls are a random perturbation of the "
        "same L∞ budget and the poison with its signs shuffled. Both are clipped where a pixel would leave [0, 1], "
        "which on a black background is half of the time, so they are shorter. Only these numbers of them were "
        "recorded, not their images."
        f"{rounding(run)}"
    )


def _perturbation(table: pd.DataFrame) -> perception.Perturbation:
    columns = ("linf", "l2", "psnr", "ssim", "changed_share")
    return perception.Perturbation(**{name: table[name].to_numpy() for name in columns})


def rounding(run: Run) -> str:
    """The examples hold δ in 255 steps, which a reader of the numbers should know."""
    step = run.config.threat.epsilon / 254
    return f" The bundled copy stores changes rounded to within {step:.4f}." if _shared.is_example(run) else ""
