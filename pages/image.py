"""One image, alone: a poisoned training image and what victims answer to it, or a test image and its certificates."""

import numpy as np
import streamlit as st

from engine import datasets, metrics
from engine.figures import images
from engine.figures.style import ARM_STYLE
from engine.report import sentences
from pages import (
    _certificate,
    _draw_on,
    _images,
    _links,
    _pinned,
    _poisoned,
    _selection,
    _shared,
    _test_images,
    _victims,
)
from pages._export import chart_and_data
from pages._show import chart

KINDS = ("training", "test")
PAIR = ("clean image", "poisoned image")


def take_link(numbers: dict[str, list[int]]) -> None:
    """Chooses what ?kind=…&number=… asks for, or says why not; the address then carries the choice as all pages do."""
    kind, number = st.query_params.get("kind"), st.query_params.get("number")
    _links.check(kind=list(numbers))
    if number is None:
        return
    allowed = numbers.get(kind or "training", [])
    if number in map(str, allowed):
        key = _selection.KEYS[kind or "training"]
        st.session_state[key] = int(number)
        st.query_params[key] = number
    elif kind in (None, *numbers):
        st.error(
            f"This link asks for {_selection.NAMES[kind or 'training']} {_links.plainly(repr(number[:40]))}, and run "
            f"{run.id} has "
            + (f"{len(allowed)} of them, from {min(allowed)} to {max(allowed)}." if allowed else "none.")
        )
    del st.query_params["number"]


def move(kind: str, to: int) -> None:
    st.session_state[_selection.KEYS[kind]] = to


def steps_beside(kind: str, order: list[int], number: int) -> None:
    """Previous and next in the order that the chooser has."""
    place = order.index(number)
    with st.container(horizontal=True):
        for label, there, icon in (("Previous", place - 1, "arrow_back"), ("Next", place + 1, "arrow_forward")):
            inside = 0 <= there < len(order)
            st.button(
                label,
                key=f"{label} {kind}",
                on_click=move,
                args=(kind, order[there] if inside else number),
                disabled=not inside,
                icon=f":material/{icon}:",
            )


def training() -> None:
    poison, k, limit, scale_words = _poisoned.controls(run)
    steps_beside("training", list(range(len(poison))), k)
    _selection.row(run, "training", k, link=False)
    clean = poison.originals()[k]
    poisoned = clean + poison.change(k)
    chart(images.image_triple(clean, poisoned, limit=limit), "image_triple")
    st.caption(
        f"Poison image {k} is training image {poison.indices[k]} of {target}, {poison.when(k)}. {scale_words}; "
        f"{_images.change_words(clean[None])}. δ = poisoned − clean: largest change "
        f"{np.abs(poisoned - clean).max():.4f} (L∞), length {np.linalg.norm(poisoned - clean):.3f} (L2), pixel units."
    )
    _pinned.show(run, limit=limit, step=poison.step)
    st.header("Votes under noise")
    asked = _victims.to_ask(run, "image_victim", clean.shape)
    if not asked:
        return
    pair = np.stack([clean, poisoned]).astype(np.float32)
    votes_for_both(asked, pair, k)
    st.header("Without noise")
    told = {victim.arm: _victims.answers(victim, pair) for victim in asked}
    chart_and_data(
        images.shares_by_class(
            {name: {arm: found[place] for arm, found in told.items()} for place, name in enumerate(PAIR)},
            names,
            title="Confidence, without noise",
            subtitle="softmax of the base classifier, one victim per arm; numbers in %",
            quantity="softmax confidence",
            label=config.threat.target_class,
        ),
        "image_confidence",
    )
    st.caption("Softmax is what the network claims, not a guarantee. Only votes under noise make a certificate.")


def votes_for_both(asked: list[_victims.Victim], pair: np.ndarray, k: int) -> None:
    """Votes under noise on both images [2, C, H, W], with what would be certified."""
    st.markdown(
        "**Look for this:** compare the *poisoned* victim's votes for the two images. Where more noisy copies of the "
        "poisoned image are classified correctly than of the clean one, it has learned the added pattern, which test "
        "images lack. The *clean* victim never saw the change: does it notice?"
    )
    left, right = st.columns(2, gap="medium")
    for place, image, name in zip((left, right), pair, PAIR, strict=True):
        with place:
            rng = np.random.default_rng([config.seed % 2**32, k])  # the same noise on both
            _images.noisy_row(image, name.capitalize(), sigma=config.sigma, rng=rng)
    settings = config.certification
    n, n0 = min(settings.n, _victims.UNASKED), min(settings.n0, _victims.UNASKED)
    tables = {
        name: _victims.certificates(
            asked, image, sigma=config.sigma, n0=n0, n=n, alpha=settings.alpha, seed=config.seed % 2**31
        )
        for name, image in zip(PAIR, pair, strict=True)
    }
    rows = [(name, row) for name, table in tables.items() for row in table.itertuples()]
    chart_and_data(
        images.shares_by_class(
            {name: {row.arm: row.estimation_votes / n for row in table.itertuples()} for name, table in tables.items()},
            names,
            title="Votes under noise",
            subtitle=f"{n:,} fresh draws for each image, the same for all victims; ★ selected class; "
            "a certificate needs more than half",
            quantity="share of the noise draws",
            selected={(name, row.arm): row.selected_class for name, row in rows},
            label=config.threat.target_class,
        ),
        "image_votes",
    )
    st.markdown("\n".join(f"- {name.capitalize()}: {_victims.verdict(row, names)}" for name, row in rows))
    st.caption(
        f"Counted now, n0 = {n0}, n = {n:,}, α = {settings.alpha:g} for each. A certificate for a training image "
        "says nothing about other images."
    )


def test() -> None:
    order = _test_images.in_order(run)
    left, right = st.columns([2, 3], vertical_alignment="bottom", gap="large")
    with left:
        image = _selection.test_image(order, "Test image (target class first, most radius lost first)")
    with right:
        steps_beside("test", order, image)
    _selection.row(run, "test", image, link=False)
    table = _shared.open_certificates(run)
    rows = table[table["image"] == image]
    victims = sorted(int(k) for k in rows["victim"].unique())
    radii = metrics.correct_radius(rows).groupby(rows["arm"]).mean()
    left, right = st.columns([2, 3], gap="large")
    with left:
        if datasets.available(config.dataset, _shared.data_root()):
            _certificate.noisy_pictures(run, image, names)
    with right:
        st.markdown(
            "**Look for this:** nobody changed this image. Only the training set was poisoned, and yet the radius "
            "within which its answer is guaranteed differs from arm to arm, because different numbers of noisy copies "
            "are classified correctly."
        )
        arms = [arm for arm in ARM_STYLE if arm in radii.index]
        for first in range(0, len(arms), 2):
            for place, arm in zip(st.columns(2), arms[first : first + 2], strict=False):
                drop = f"{radii[arm] - radii['clean']:+.3f}" if arm != "clean" and "clean" in arms else None
                place.metric(
                    f"Mean radius, {ARM_STYLE[arm].name}", f"{radii[arm]:.3f}", drop, border=True, height="stretch"
                )
        st.caption(
            f"L2, pixel units of [0, 1], as recorded, mean over {len(victims)} victims; wrong or abstaining counts as "
            "0. Below each: its difference from clean."
        )
    victim = _selection.victim(victims)
    one = rows[rows["victim"] == victim]
    votes, chain = st.columns(2, gap="medium")
    with votes:
        chart_and_data(images.vote_histogram(one, names), "image_recorded")
        st.caption(
            "As recorded: each arm's victim saw the same noisy copies. ★: the class that earlier draws selected."
        )
    with chain:
        _certificate.from_votes_to_radius(one, config, names)
    _pinned.show(run, limit=config.threat.epsilon or 1e-3, victim=victim)
    pixels, _ = _images.images_of(run, train=False)
    _draw_on.until_settled(run, image, pixels.shape[1:], victim, names)


run = _shared.open_run()
config = run.config
names = sentences.class_names_of(run) or tuple(str(k) for k in range(10))
target = sentences.target_of(run)
st.title("One image")
st.caption(sentences.limits_line(run))
changed = run.tensors("poison") if _poisoned.stamp_of(run, "poison") is not None else None
certified = _test_images.in_order(run) if (run.directory / "certificates.parquet").exists() else []
take_link({"training": list(range(len(changed["delta"]))) if changed else [], "test": certified})
kind = _selection.segmented("Kind of image", KINDS, default="training", key="kind")
{"training": training, "test": test}[kind]()
