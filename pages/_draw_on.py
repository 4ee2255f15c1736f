"""One test image certified anew, with as many draws as the question takes: sequential certificates on a page."""

import math
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from engine.certification import ABSTAIN, radius_cap
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.report import sentences
from pages import _links, _selection, _shared, _victims

MOST, SELECTING = 10_000, 100  # n and n0: a second or two of a visitor's patience
PRECISION = 0.05  # of the radius, relatively
AT, NEAR = "Certified at radius r?", f"Radius within {sentences.of_hundred(PRECISION)}?"


@st.fragment
def until_settled(run: Run, image: int, shape: tuple[int, ...], victim: int, names: Sequence[str]) -> None:
    """A question about a test image of shape (C, H, W), answered by the run's victims of one number."""
    st.header("How many draws does it take?")
    asked = [each for each in _victims.kept(run) if each.k == victim and _victims.sound(each, shape)]
    if not asked:
        st.info(f"Run {run.id} keeps no weights of victims {victim}, so they cannot be asked again.")
        return
    st.markdown(
        "**Look for this:** a large certified radius takes very many draws, but not every question needs them all. "
        "Here votes are counted along the way, and drawing stops as soon as the answer is settled, at the same failure "
        "probability. Move r towards the radius itself: what does a close call cost?"
    )
    sigma, alpha = run.config.sigma, run.config.certification.alpha
    step = sigma / 10
    top = math.floor(radius_cap(n=MOST, sigma=sigma, alpha=alpha) / step) * step
    _links.check(draw_question=(AT, NEAR), draw_radius=_links.Interval(step, top))
    left, right = st.columns([3, 2], vertical_alignment="bottom", gap="large")
    with left:
        question = _selection.segmented("Question", (AT, NEAR), default=AT, key="draw_question")
    stop = {"precision": PRECISION}
    if question == AT:
        radius = right.slider("Radius r (L2)", step, top, sigma, step, key="draw_radius", bind="query-params")
        stop = {"radius": radius}
    wanted = (run.id, image, victim, *stop.items())
    if st.button("Draw", icon=":material/casino:", key="draw until settled"):
        st.session_state["drawn until settled"] = wanted
    if st.session_state.get("drawn until settled") != wanted:
        return
    rows, root = [], str(_shared.data_root())
    for each in asked:
        answer, bound, draws = _victims.certified_again(each, image, root, n0=SELECTING, n=MOST, alpha=alpha, **stop)
        rows.append(
            {"arm": ARM_STYLE[each.arm].name, "answer so far": "none" if answer == ABSTAIN else names[answer]}
            | ({f"certified at {radius:g}": "yes" if bound >= radius else "no"} if question == AT else {})
            | {"radius so far": f"{bound:.3f}", "settled": "yes" if draws < MOST else "all draws used"}
            | {"draws": f"{draws:,}", f"of {MOST:,}": sentences.of_hundred(draws / MOST, 1)}
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Answer, radius and number of draws by arm")
    st.caption(
        f"Drawn now, n0 = {SELECTING}, n = {MOST:,} at most. With probability ≥ 1 − α = {1 - alpha:g} for each row, "
        "no bound along the way is too large, whenever drawing stops. So the radius so far is valid, though more draws "
        "could make it larger. The same for one victim:"
    )
    option, value = next(iter(stop.items()))
    settings = f"--image {image} --{option} {value:g} --n {MOST} --n0 {SELECTING} --alpha {alpha:g}"
    command = f"python -m engine certify {run.id} --arm {asked[-1].arm} --victim {victim} {settings}"
    st.code(command, language=None, wrap_lines=True)
