"""The lesson's ABX test: A is clean, B is poisoned. Which of them is X? The score comes when all is answered."""

import secrets
from typing import Any

import numpy as np
import streamlit as st

from engine import abx
from engine.figures import lesson, pictures
from engine.records import Run
from pages import _images, _lesson_runs, _selection
from pages._show import chart, picture

LENGTHS = (10, 20, 40)
PAIRS = 60  # of the run's poison images, the first
ANSWERED = "lesson abx answered"  # of the session: the open run, and what was answered so far of its test
SIZES = {"small": 56, "medium": 140, "large": 280}  # pixels on the screen


def can_you_tell(run: Run, revealed: bool) -> None:
    if st.session_state.get(ANSWERED, ("",))[0] != run.id:
        st.session_state[ANSWERED] = (run.id, [])
    answered: list[dict[str, Any]] = st.session_state[ANSWERED][1]
    test = st.container()  # above its settings, which most readers leave alone
    run, seed, count, size = settings(_lesson_runs.by_epsilon(run), run.config.threat.epsilon, fixed=bool(answered))
    poison = run.tensors("poison")
    assert poison is not None
    delta = poison["delta"][:PAIRS].astype(np.float32)
    clean = _images.training_images(run, poison["indices"][:PAIRS])
    if clean is None:
        return
    trials = abx.trials(seed, count=count, images=len(delta))
    with test:
        if len(answered) >= count:
            result(trials, answered)
        else:
            ask(trials, answered, clean, delta, size)


def ask(trials: list[abx.Trial], answered: list[Any], clean: np.ndarray, delta: np.ndarray, size: str) -> None:
    """The next trial: A, B and X side by side at the size that was chosen."""
    count, k = len(trials), len(answered)
    trial = trials[k]
    pair = np.stack([clean[trial.image], clean[trial.image] + delta[trial.image]])
    st.markdown(f"**Trial {k + 1} of {count}.** A is clean, B is poisoned. Which of them is X?")
    tiles = pictures.shown(np.concatenate([pair, pair[[int(trial.x_is_poisoned)]]]))
    scale = pictures.enlargement(tiles.shape[1], pixels=SIZES[size])
    with st.container(horizontal=True, key="lesson-abx"):  # where there is no room for three, the third is below
        for tile, label in zip(tiles, ("A, clean", "B, poisoned", "X"), strict=True):
            text = f"Image {label} of trial {k + 1}"
            picture(tile, scale=scale, caption=label, text=text, width=scale * tiles.shape[2])
    with st.container(horizontal=True):
        for label, poisoned in (("X is A", False), ("X is B", True)):
            st.button(label, on_click=answer, args=(k, poisoned, size), key=f"lesson_abx_{label[-1]}", width=140)
        if answered:
            st.button(
                "Start over", on_click=again, key="lesson_abx_over", icon=":material/replay:", type="tertiary",
                help="Drops your answers; then you may also change the budget, the seed and the number of trials.",
            )  # fmt: skip
    st.caption(
        "True brightness; pixels are only enlarged. A projector that crushes dark greys to black hides the change: use "
        "a monitor. You see your score only at the end, because stopping when it looks good would bias it."
    )


def settings(runs: dict[float, Run], at_first: float, *, fixed: bool) -> tuple[Run, int, int, str]:
    """(Run of the chosen ε, seed, number of trials, size on the screen); fixed: all but the size stay as they are."""
    st.session_state.setdefault("lesson_abx_seed", secrets.randbelow(10_000))
    epsilon = at_first
    with st.container(key="lesson-controls"):
        budget, first, second, third = st.columns([3, 2, 3, 4], vertical_alignment="bottom")
        if len(runs) > 1:
            _selection.forget("lesson_abx_epsilon", list(runs))
            epsilon = budget.segmented_control(
                "Budget ε (L∞, pixel units)", list(runs), default=at_first, required=True, key="lesson_abx_epsilon",
                persist_state="session", disabled=fixed, help="Each has a run of its own: the same but for ε.",
            )  # fmt: skip
        seed = first.number_input(
            "Seed", 0, 9_999, key="lesson_abx_seed", persist_state="session", disabled=fixed,
            help="The same seed asks the same trials.",
        )  # fmt: skip
        count = second.segmented_control(
            "Trials", LENGTHS, default=LENGTHS[0], required=True, key="lesson_abx_count", persist_state="session",
            disabled=fixed,
        )  # fmt: skip
        size = third.segmented_control(
            "Size on screen", list(SIZES), default="medium", required=True, key="lesson_abx_size",
            persist_state="session", help="Recorded with each answer: what you see enlarged you may miss when small.",
        )  # fmt: skip
    return runs[epsilon], int(seed), int(count or LENGTHS[0]), str(size or "medium")


def answer(k: int, says_poisoned: bool, size: str) -> None:
    """Callback: the answer to trial k; a second click on the same trial is none."""
    _, answered = st.session_state[ANSWERED]
    if len(answered) == k:
        answered.append({"says_poisoned": says_poisoned, "size": size})


def result(trials: list[abx.Trial], answered: list[dict[str, Any]]) -> None:
    count = len(trials)
    hits = sum(given["says_poisoned"] == trial.x_is_poisoned for given, trial in zip(answered, trials, strict=True))
    low, high = abx.hit_rate_interval(hits, count)
    p, needed = abx.p_value(hits, count), abx.hits_needed(count)
    st.markdown(f"## {hits} of {count} correct")
    left, middle, right = st.columns(3)
    left.metric("Hit rate", f"{100 * hits / count:.0f} %", border=True)
    middle.metric("Its 95 % interval", interval(low, high), border=True, help="Clopper–Pearson, exact.")
    right.metric(
        "By guessing",
        f"{100 * p:.1f} %",
        border=True,
        help="How often mere guessing does at least this well: the one-sided p-value, exact.",
    )
    st.markdown(verdict(hits, count))
    figure = lesson.guessing(hits, count)
    chart(figure, "lesson_guessing")
    sizes = sorted({given["size"] for given in answered}, key=list(SIZES).index)
    st.caption(
        f"With {count} trials you need {needed} correct to pass (p ≤ 0.05). Somebody who is right 3 times out of 4 "
        f"needs at least {abx.trials_needed(0.75)} trials to pass with probability 0.8; fewer than 5 are never enough. "
        f"Size on screen: {', '.join(sizes)}."
    )
    st.button("Again, with new trials", on_click=again, key="lesson_abx_again", icon=":material/replay:")


def again() -> None:
    """Callback: another seed, and no answers to it."""
    st.session_state.pop(ANSWERED, None)
    st.session_state["lesson_abx_seed"] = secrets.randbelow(10_000)


def verdict(hits: int, count: int) -> str:
    """What to conclude, in a sentence."""
    p = abx.p_value(hits, count)
    if p <= 0.05:
        return (
            f"**You can tell**, at this size and on these images: guessing does this well only {100 * p:.1f} % of the "
            "time. "
            "The poison is not imperceptible to you when the clean image is next to it."
        )
    low, high = abx.hit_rate_interval(hits, count)
    return (
        f"**This does not show that you can tell**: guessing does this well {100 * p:.1f} % of the time. Nor does it "
        f"show that you cannot: any hit rate in {interval(low, high)} fits."
    )


def interval(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %"
