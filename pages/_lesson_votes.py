"""The lesson's first three views: noise, votes, and from votes to a radius; of one victim that answers now."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
from scipy.special import ndtri

from engine.certification import certified_radius, lower_confidence_bound, radius_cap
from engine.config import smallest_useful_n
from engine.figures import lesson, pictures
from engine.figures.images import vote_histogram
from engine.records import Run
from engine.report import sentences
from engine.report.sentences import of_hundred
from pages import _images, _links, _selection, _shared, _victims
from pages._show import chart, picture
from pages._victims import Victim

COPIES = 8
DRAWS = (10, 100, 1000)
POLLS = 10  # whose shares are shown together
MANY_DRAWS = (5, 10, 20, 50, 100, 200, 500, 1000)
ALPHAS = (0.1, 0.01, 0.001, 0.0001)
N0 = 20  # selection draws
ARM, NUMBER = "clean", 0  # the victim whose weights a run in the gallery keeps


@dataclass(frozen=True)
class Subject:
    """The chosen test image: number, pixels [C, H, W], label, row of certificates; the victim, if it can be asked."""

    image: int
    pixels: np.ndarray
    label: int
    row: pd.Series
    victim: Victim | None
    class_names: tuple[str, ...]

    def name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)


def check_link(run: Run) -> None:
    """Refuses what the link asks of these views and they cannot show, whichever step it opens."""
    _links.check(
        lesson_image=range(1, len(certified(run)) + 1),
        lesson_sigma=_links.Interval(0, most_noise(run)),
        lesson_draws=DRAWS,
        lesson_n=draws_to_offer(run),
        lesson_alpha={alpha: f"{alpha:g}" for alpha in alphas_to_offer(run)},
    )


def certified(run: Run) -> pd.DataFrame:
    """Certificates of the victim for the target class's test images, a row each."""
    table = _shared.open_certificates(run)
    of_victim = (table["arm"] == ARM) & (table["victim"] == NUMBER)
    return table[of_victim & (table["label"] == run.config.threat.target_class)].reset_index(drop=True)


def victim_of(run: Run) -> Victim | None:
    return next((each for each in _victims.kept(run) if (each.arm, each.k) == (ARM, NUMBER)), None)


def most_noise(run: Run) -> float:
    return max(2.0, 4 * run.config.sigma)  # that of the question


def draws_to_offer(run: Run) -> list[int]:
    """Without the victim's weights no more than were recorded."""
    recorded, most = run.config.certification.n, MANY_DRAWS[-1]
    return sorted({n for n in (*MANY_DRAWS, min(recorded, most)) if n <= recorded or victim_of(run) is not None})


def alphas_to_offer(run: Run) -> list[float]:
    return sorted({*ALPHAS, run.config.certification.alpha}, reverse=True)


def choose_subject(run: Run) -> Subject:
    """A certified test image of the target class, chosen by the reader; at first one whose votes are not unanimous."""
    rows = certified(run)
    share = rows["n_top"] / rows["n"]
    contested = np.flatnonzero((rows["selected_class"] == rows["label"]) & (share < 0.99) & (share > 0.7))
    at_first = int(contested[0]) + 1 if len(contested) else 1
    _selection.forget("lesson_image", range(1, len(rows) + 1))
    k = st.number_input(
        f"Test image of {sentences.target_of(run)}, 1 to {len(rows)}", 1, len(rows), at_first, key="lesson_image",
        bind="query-params",
    )  # fmt: skip
    row = rows.iloc[int(k) - 1]
    images, _ = _images.images_of(run, train=False)
    victim = victim_of(run)
    if victim is None:
        st.info(f"Run {run.id} keeps no weights of this victim, so you see recorded votes instead of fresh ones.")
    image = int(row["image"])
    return Subject(image, images[image], int(row["label"]), row, victim, sentences.class_names_of(run))


def votes_of(run: Run, subject: Subject, n: int, poll: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(selection, estimation) votes [K]: n fresh ones, or what was recorded (n of them at most) without weights.

    Each poll has noise of its own.
    """
    if subject.victim is not None:
        seed = subject.image + 100_000 * poll
        return _victims.votes(subject.victim, subject.pixels, run.config.sigma, N0, n, seed)
    recorded = np.asarray(subject.row["estimation_votes"])
    rng = np.random.default_rng([run.config.seed % 2**32, subject.image, n, poll])
    few = rng.multivariate_hypergeometric(recorded, min(n, int(recorded.sum())))
    return np.asarray(subject.row["selection_votes"]), few


def noise(run: Run) -> None:
    """Noisy copies of one image, and what the victim says of each."""
    with st.container(key="lesson-controls"):
        left, middle, right = st.columns([3, 4, 2], vertical_alignment="bottom")
        with left:
            subject = choose_subject(run)
        with middle:
            sigma = st.slider(
                "Noise level σ (pixel units)", 0.0, most_noise(run), run.config.sigma, 0.05,
                key="lesson_sigma", bind="query-params",
            )  # fmt: skip
        with right:
            drawn = new_noise("lesson_again", "lesson drawn")
    seed = [run.config.seed % 2**32, subject.image, drawn]
    draws = np.random.default_rng(seed).standard_normal((COPIES, *subject.pixels.shape), dtype=np.float32)
    noisy = subject.pixels + np.float32(sigma) * draws
    said = answers(subject, noisy)
    tiles = pictures.shown(noisy)
    scale = pictures.enlargement(tiles.shape[1], pixels=112)
    together = st.container(key="lesson-tiles")
    for start in range(0, COPIES, 4):
        for k, place in zip(range(start, start + 4), together.columns(4), strict=True):
            with place:
                picture(
                    tiles[k],
                    scale=scale,
                    caption=None if said is None else verdict(subject, int(said[k])),
                    text=f"Noisy copy {k + 1} of test image {subject.image}",
                    width=tiles.shape[2] * scale,
                )
    if said is not None:
        right_ones = int((said == subject.label).sum())
        st.markdown(f"**{right_ones} of {COPIES}** copies are classified correctly ({subject.name(subject.label)}).")
    st.caption(
        f"Test image {subject.image}, noise of standard deviation σ = {sigma:g} on every pixel; clipped to [0, 1] only "
        f"for display. The victim is one network, trained on clean images with noise of σ = {run.config.sigma:g}."
    )


def new_noise(key: str, counter: str) -> int:
    """A button for it, drawn; and how often it was pressed."""
    if st.button("New noise", key=key, icon=":material/casino:"):
        st.session_state[counter] = st.session_state.get(counter, 0) + 1
    return int(st.session_state.get(counter, 0))


def answers(subject: Subject, noisy: np.ndarray) -> np.ndarray | None:
    """The victim's classes [N] of images [N, C, H, W]."""
    return None if subject.victim is None else _victims.answers(subject.victim, noisy).argmax(axis=1)


def verdict(subject: Subject, said: int) -> str:
    return f"says {subject.name(said)} {'✓ correct' if said == subject.label else '✗ wrong'}"


def voting(run: Run) -> None:
    """Votes of more and more noisy copies."""
    with st.container(key="lesson-controls"):
        left, middle, right = st.columns([3, 3, 2], vertical_alignment="bottom")
        with left:
            subject = choose_subject(run)
        with middle:
            n = _selection.segmented("Noisy copies that vote", DRAWS, default=DRAWS[0], key="lesson_draws")
        with right:
            drawn = new_noise("lesson_vote_again", "lesson voted")
    polls = [votes_of(run, subject, n, k) for k in range(max(0, drawn + 1 - POLLS), drawn + 1)]
    selection, estimation = polls[-1]
    counted, top = int(estimation.sum()), int(estimation.argmax())
    row = pd.DataFrame(
        {
            "arm": [ARM], "victim": [NUMBER], "image": [subject.image], "label": [subject.label], "n": [counted],
            "selected_class": [int(selection.argmax())], "estimation_votes": [estimation],
        }
    )  # fmt: skip
    shares = [float(votes[top] / votes.sum()) for _, votes in polls]
    chart(lesson.with_polls(vote_histogram(row, subject.class_names), top, shares), "lesson_votes")
    st.markdown(
        f"**{estimation[top]} of {counted}** copies voted for {subject.name(top)}: "
        f"{of_hundred(estimation[top] / counted, 1)}."
        + (
            f" The last {len(shares)} draws: {of_hundred(min(shares), 1)} to {of_hundred(max(shares), 1)}."
            if len(shares) > 1
            else ""
        )
    )
    st.caption(
        f"Test image {subject.image}, σ = {run.config.sigma:g}. Lines beside the bar: the shares with the last {POLLS} "
        f"noises. ★: the class that {N0 if subject.victim is not None else run.config.certification.n0} earlier "
        "votes selected. Selecting and counting on the same votes would be cheating: the winner would look too good."
    )


def radius(run: Run, revealed: bool) -> None:
    """The chain votes → bound → radius, each symbol beside its number; the cap once it was predicted."""
    sigma, place = run.config.sigma, st.container(key="lesson-controls")
    with place:
        left, middle, right = st.columns(3, vertical_alignment="bottom")
        with left:
            subject = choose_subject(run)
        draws, alphas = draws_to_offer(run), alphas_to_offer(run)
        _selection.forget("lesson_n", draws)
        _selection.forget("lesson_alpha", alphas)
        with middle:
            n = st.select_slider(
                "Draws n", draws, min(run.config.certification.n, draws[-1]), key="lesson_n", bind="query-params"
            )
        with right:
            alpha = st.select_slider(
                "Failure probability α", alphas, run.config.certification.alpha, format_func=lambda a: f"{a:g}",
                key="lesson_alpha", bind="query-params",
            )  # fmt: skip
    selection, estimation = votes_of(run, subject, int(n))
    selected, counted = int(selection.argmax()), int(estimation.sum())
    k = int(estimation[selected])
    p_lower = float(lower_confidence_bound(k, n=counted, alpha=alpha))
    found = float(certified_radius(k, n=counted, sigma=sigma, alpha=alpha))
    cap = radius_cap(n=counted, sigma=sigma, alpha=alpha)
    widest = radius_cap(n=draws[-1], sigma=sigma, alpha=alphas[0])
    with place:
        moved = st.slider(
            "Move the image towards the boundary by (L2, pixel units)", 0.0, float(np.ceil(10 * widest) / 10), 0.0,
            0.01, key=f"lesson_moved {run.id}",
        )  # fmt: skip
    chart(lesson.cloud(p_lower, moved, sigma=sigma, cap=cap if revealed else 0, widest=widest), "lesson_cloud")
    if found:
        st.markdown(
            f"At least **{of_hundred(p_lower, 1)}** of the cloud is on this side (α = {alpha:g}). It must move "
            f"**{ndtri(p_lower):.2f} σ** before less than half is left: **R = {found:.3f}**. A flat boundary this near "
            "is the worst case; any other lets the image move at least as far."
        )
        as_far(subject, found)
    st.markdown(symbols(k, counted, alpha, p_lower, sigma, found))
    st.caption(
        f"Test image {subject.image}. Selected class: {subject.name(selected)}, which is "
        f"{'correct' if selected == subject.label else 'wrong, so its radius counts as 0'}."
    )
    if not cap:
        st.warning(
            f"With α = {alpha:g}, {counted} draws are too few: even if all agree, the bound stays below one half. At "
            f"least {smallest_useful_n(alpha)} are needed."
        )
    # not st.latex, whose block scrolls where the keyboard cannot reach it
    st.markdown(f"${chain(k, counted, alpha, p_lower, sigma, found)}$")


def as_far(subject: Subject, distance: float) -> None:
    """The image, and two changes of this length (L2): of all pixels, and of four."""
    every, four = (np.zeros_like(subject.pixels) for _ in range(2))
    every += distance / every.size**0.5
    corner = four[:, 1:3, 1:3]
    corner += distance / corner.size**0.5
    tiles = pictures.shown(subject.pixels + np.stack([0 * every, every, four]))
    words = (
        f"Test image {subject.image}",
        f"every pixel brighter by {every.max():.3f}",
        f"four pixels brighter by {four.max():.3f}",
    )
    scale = pictures.enlargement(tiles.shape[1], pixels=112)
    for place, tile, caption in zip(st.columns(3), tiles, words, strict=True):
        with place:
            picture(tile, scale=scale, caption=caption, text=caption, width=tile.shape[1] * scale)
    st.caption(f"How far is {distance:.3f}? Both changes have this length (L2); so have very many others.")


def symbols(k: int, n: int, alpha: float, p_lower: float, sigma: float, found: float) -> str:
    """A Markdown table: symbol, its meaning, its number for this image."""
    lines = [
        ("$n$", "noisy copies that voted", f"{n}"),
        ("$k$", "votes for the selected class", f"{k}"),
        (r"$\alpha$", "probability that the bound is wrong, at most", f"{alpha:g}"),
        (r"$p_{\text{lower}}$", "the true share is at least this", f"{p_lower:.4f}"),
        (r"$\sigma$", "noise level", f"{sigma:g}"),
        ("$R$", "certified radius (L2)", f"{found:.3f}" if found else "none: abstains"),
    ]
    return "| symbol | in words | here |\n|:-:|---|--:|\n" + "\n".join(
        f"| {symbol} | {words} | **{number}** |" for symbol, words, number in lines
    )


def chain(k: int, n: int, alpha: float, p_lower: float, sigma: float, found: float) -> str:
    """The two formulas, first with symbols and then with numbers, in lines short enough for a narrow window."""
    lines = [
        r"p_{\text{lower}} &= \mathrm{Beta}^{-1}(\alpha;\,k,\,n-k+1)",
        rf"&= \mathrm{{Beta}}^{{-1}}({alpha:g};\,{k},\,{n - k + 1}) = {p_lower:.4f}",
    ]
    if found:
        lines += [
            r"R &= \sigma\,\Phi^{-1}(p_{\text{lower}})",
            rf"&= {sigma:g}\cdot\Phi^{{-1}}({p_lower:.4f}) = {sigma:g}\cdot{ndtri(p_lower):.3f} = {found:.3f}",
        ]
    else:
        lines.append(r"&\le \tfrac12:\ \text{no certain majority: abstain}")
    return r"\begin{aligned} " + r" \\ ".join(lines) + r" \end{aligned}"
