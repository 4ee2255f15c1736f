"""Certify: how far the guarantee shrank, over all test images and for a single one, from votes to radius."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import metrics
from engine.certification import radius_cap
from engine.choices import ARMS
from engine.config import Config, arms_of, smallest_useful_n
from engine.figures import images, radii, training
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.report import numbers, sentences, wording
from pages import _certificate, _drops, _links, _pinned, _selection, _shared, _test_images
from pages._export import chart_and_data

PARTS = ("All test images", "One test image", "From votes to radius")
VOTES = ["selection_votes", "estimation_votes"]
ALPHAS = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001)


@st.cache_data(max_entries=32, show_spinner=False)
def what_if(directory: str, stamp: int, values: str, n: int, alpha: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(certificate table without votes, report), both at n of the recorded draws and this alpha."""
    config = with_settings(Config.model_validate_json(values), n, alpha)
    table = _shared.certificates(directory, stamp).drop(columns=VOTES, errors="ignore")
    table = metrics.recertify(table, sigma=config.sigma, alpha=alpha, n=n)
    names = sentences.class_names_of(Run(Path(directory)))
    return table, numbers.build_report(table, config, class_names=names)


def with_settings(config: Config, n: int, alpha: float) -> Config:
    """The configuration with other certification settings, unvalidated: too few draws may be looked at too."""
    settings = config.certification.model_copy(update={"n": n, "alpha": alpha})
    return config.model_copy(update={"certification": settings})


def check_link(recorded: pd.DataFrame) -> None:
    present = set(recorded["arm"])
    arms = {arm: ARM_STYLE[arm].name for arm in ARMS if arm in present}
    _links.declare(arms=arms)
    if st.query_params.get("arms"):  # it is empty where all were switched off
        _links.check(arms=arms)
    _links.check(
        what_if_n=draws_to_offer(int(recorded["n"].iloc[0])),
        what_if_alpha={value: f"{value:g}" for value in alphas_to_offer()},
        scope=wording.SCOPE_NAMES,
        scatter_arm={arm: ARM_STYLE[arm].name for arm in ARMS[1:] if arm in present},
    )


def alphas_to_offer() -> list[float]:
    return sorted({*ALPHAS, run.config.certification.alpha}, reverse=True)


def draws_to_offer(recorded: int) -> list[int]:
    steps = [factor * 10**power for power in range(1, 7) for factor in (1, 2, 5)]
    return [n for n in [5, *steps] if n < recorded] + [recorded]


def reset_what_if() -> None:
    st.session_state["what_if_n"] = run.config.certification.n
    st.session_state["what_if_alpha"] = run.config.certification.alpha


def choose_settings(recorded: pd.DataFrame) -> tuple[int, float]:
    """n and alpha to certify with, as recorded unless the reader moves a slider."""
    most, alpha_then = int(recorded["n"].iloc[0]), run.config.certification.alpha
    draws, alphas = draws_to_offer(most), alphas_to_offer()
    _selection.forget("what_if_n", draws)
    _selection.forget("what_if_alpha", alphas)
    with st.container(border=True):
        first, second, third = st.columns([3, 3, 2], vertical_alignment="bottom", gap="large")
        with first:
            n = int(
                st.select_slider(
                    "Estimation draws n",
                    draws,
                    value=most,
                    key="what_if_n",
                    bind="query-params",
                    help="Radii at fewer draws come from a random subset of the recorded draws: exactly as valid as if "
                    "only that many had been drawn. More draws than were recorded would need new sampling.",
                )
            )
        with second:
            alpha = float(
                st.select_slider(
                    "Failure probability α of one certificate",
                    alphas,
                    value=alpha_then,
                    format_func=lambda value: f"{value:g}",
                    key="what_if_alpha",
                    bind="query-params",
                    help="A certificate's radius is too large with at most this probability. The noise level σ cannot "
                    "be moved: the votes were recorded at one σ, and another needs new votes.",
                )
            )
        with third:
            st.button(
                "Back to recorded",
                on_click=reset_what_if,
                disabled=(n, alpha) == (most, alpha_then),
                icon=":material/undo:",
            )
        cap = radius_cap(n=n, sigma=run.config.sigma, alpha=alpha)
        if not cap:
            st.warning(
                f"n = {n} is too small for α = {alpha:g}: even a unanimous vote certifies nothing, so every image "
                f"abstains. At least {smallest_useful_n(alpha)} draws are needed."
            )
        st.caption(
            f"All certificates on this page are at n = {n:,} and α = {alpha:g}, from the stored votes. No "
            f"radius can exceed the cap σ·Φ⁻¹(α^(1/n)) = {cap:.3f} (L2, pixel units), so do not compare radii across "
            "different n or α."
        )
    return n, alpha


def at(config: Config) -> str:
    """What certificates are made with, in words."""
    return f"n = {config.certification.n:,}, α = {config.certification.alpha:g}"


def headline(now: dict[str, Any], table: pd.DataFrame, moved: str) -> None:
    """The drop in the target class's ACR, arm by arm, and how sure it is; moved: n and α if not as recorded."""
    drops = now["relative_drop"]
    words = f"**What if {moved}** (recorded: {at(run.config)}): " * bool(moved) + sentences.headline(now)
    if run.config.attack.name == "none":
        st.markdown(words)
    elif not now["radius_cap"]:
        st.info("With so few draws nothing can be certified, so nothing is known of what was lost.")
    elif not drops:
        st.info("The drop needs clean victims and others. This partial run has certificates of one arm only.")
    else:
        st.markdown(words)
        _drops.cards(now, moved)
    with st.expander("How sure is this?", icon=":material/straighten:"):
        how_sure(now, table)


def how_sure(now: dict[str, Any], table: pd.DataFrame) -> None:
    """The three uncertainties of these numbers, a sentence each, and a table of the last."""
    victims = sentences.several(run.config.victim_seeds, "victim seed")
    over_victims = sentences.victims_line(now)
    st.markdown(
        f"- **± in the headline and in the charts**: the standard deviation over {victims}. This is how much "
        "single victims differ.\n"
        + (
            f"- **Interval over victims**: where the mean over very many would be. {over_victims}\n"
            * bool(over_victims)
        )
        + "- **Brackets in the table**: approximate 95 % intervals, treating test images as independent (normal for "
        "ACR and its drop, Wilson for the accuracy of the smoothed classifier). This is how much depends on which "
        "images were tested."
    )
    st.dataframe(estimates(table), hide_index=True, alt="ACR and accuracy by arm, of the target class and of all")
    st.caption(
        "Means over victims. Drop in ACR (L2, pixel units): against the clean victim of the same seed. The controls, "
        "random noise and the poison with its signs shuffled, show what changes of the same budget cost that are "
        "independent from pixel to pixel."
    )


def missing_arms(table: pd.DataFrame) -> None:
    """Says what a run that was stopped early lacks."""
    counts = table.groupby("arm")["victim"].nunique()
    lacking = [
        f"{ARM_STYLE[arm].name} ({counts.get(arm, 0)} of {run.config.victim_seeds})"
        for arm in arms_of(run.config)
        if counts.get(arm, 0) < run.config.victim_seeds
    ]
    if lacking:
        st.warning(f"This run is {run.status().state}, and victims are missing: {', '.join(lacking)}.")


def estimates(table: pd.DataFrame) -> pd.DataFrame:
    """ACR and accuracies with their intervals in words, a row for each arm on the target's images and on all."""
    lines = []
    for scope, name in wording.SCOPE_NAMES.items():
        found = numbers.estimates(table, scope, run.config)
        lines += [
            {
                "test images": name,
                "arm": ARM_STYLE[str(arm)].name,
                "drop in ACR": ""
                if np.isnan(row.drop)
                else f"{100 * row.drop:z.0f} % ({100 * row.drop_low:z.0f} to {100 * row.drop_high:z.0f})",
                "ACR": f"{row.acr:.3f} ({row.acr_low:.3f}–{row.acr_high:.3f})",
                "accuracy": f"{100 * row.accuracy:.0f} % ({100 * row.accuracy_low:.0f}–{100 * row.accuracy_high:.0f})",
                "abstain": sentences.of_hundred(row.abstains),
            }
            for arm, row in zip(found.index, found.itertuples(), strict=True)
        ]
    return pd.DataFrame(lines)


def whole_set(table: pd.DataFrame, now: dict[str, Any], settings: Config) -> None:
    """ACR by arm; certified accuracy and radii of the chosen scope and arms."""
    st.header(PARTS[0])
    chart_and_data(radii.acr_by_arm(now, run.report if moved else None), "acr")
    left, right = st.columns([2, 3])
    with left:
        scope = _selection.segmented(
            "Test images",
            list(wording.SCOPE_NAMES),
            default="target",
            key="scope",
            format_func=wording.SCOPE_NAMES.__getitem__,
        )
    with right:
        present = [arm for arm in ARMS if arm in set(table["arm"])]
        forget_arms(present)
        arms = st.pills(
            "Arms",
            present,
            selection_mode="multi",
            default=present,
            format_func=lambda arm: ARM_STYLE[arm].name,
            key="arms",
            bind="query-params",
        )
    if not arms:
        st.info("Choose at least one arm to see its curve and its radii.")
        return
    left, right = st.columns(2, gap="medium")
    with left:
        chart_and_data(
            radii.certified_accuracy(table, settings, scope, arms, target=target, widest=recorded_cap), "accuracy"
        )
        st.caption(
            "Height at r: the share of images that are classified correctly, provably so under any change smaller than "
            "r (L2). Approximate: each certificate alone holds with probability ≥ 1 − α, not all at once."
        )
    with right:
        two = [arm for arm in arms if arm in ("clean", "poisoned")] or arms
        chart_and_data(radii.radius_histogram(table, settings, scope, two, target=target, widest=recorded_cap), "radii")
        st.caption(
            "Left of the line: wrong answers and abstentions, whose radius counts as 0. The cap's own bin "
            "holds unanimous votes, whose true radius may be larger. "
            + ("Controls are left out of this chart while clean or poisoned is chosen." if len(two) < len(arms) else "")
        )


def training_of_victims() -> None:
    """How far each victim had learned its own training images, epoch by epoch."""
    epochs = run.metrics("training")
    with st.expander("How the victims trained", icon=":material/show_chart:"):
        if not epochs:
            st.caption("This run took its victims from an earlier run, which kept no curves.")
            return
        chart_and_data(training.training_curves(epochs), "training")
        drawn = {record["victim"] for record in epochs if not record["victim"].startswith("before-")}
        lacking = len(arms_of(run.config)) * run.config.victim_seeds - len(drawn)
        st.caption(
            "Each arm learns its own training images: those of poisoned victims are poisoned. Where all curves lie "
            "together, training does not give the poison away."
            + " Victims that were taken from an earlier run may be missing here."
            * (lacking > 0)
        )


def forget_arms(present: list[str]) -> None:
    chosen = st.session_state.get("arms")
    if chosen is not None and not set(chosen) <= set(present):
        st.session_state["arms"] = [arm for arm in chosen if arm in present]


@st.fragment
def single_image(recorded: pd.DataFrame, table: pd.DataFrame, settings: Config) -> None:
    """The scatter of all target images, and one of them: picture, noisy copies, votes, and the way to its radius."""
    st.header(PARTS[1])
    means = radii.radii_by_image(table, settings)
    others = [arm for arm in ARMS if arm in means.columns and arm != "clean"]
    left, right = st.columns([3, 2], gap="medium")
    with right:
        words = f"Test image ({target} first" + (", most radius lost first)" if others else ")")
        image = _selection.test_image(_test_images.in_order(run), words)
        _selection.row(run, "test", image)
        victims = sorted(int(k) for k in recorded["victim"].unique())
        victim = _selection.victim(victims)
        place = st.container()
    with left:
        if "clean" in means.columns and others:
            _selection.forget("scatter_arm", others)
            arm = _selection.segmented(
                "Against clean",
                others,
                default=others[0],
                key="scatter_arm",
                format_func=lambda key: ARM_STYLE[key].name,
            )
            figure = radii.radius_before_after(table, settings, arm, target=target, widest=recorded_cap)
            chart_and_data(
                figure,
                "before_after",
                on_select=lambda: _selection.take("before_after", "test"),
                selection_mode="points",
            )
            st.caption(
                "A point is a test image: click one to choose it. "
                f"None is beyond the cap, {radius_cap(n=n, sigma=run.config.sigma, alpha=alpha):.3f}."
            )
        else:
            st.info(
                "Only clean victims are in this run, so nothing is lost: no chart of before and after."
                if run.config.attack.name == "none"
                else "The scatter needs clean victims and others. This partial run lacks one of them."
            )
    st.subheader(PARTS[2])
    one = recorded["image"].eq(image) & recorded["victim"].eq(victim)
    if not one.any():
        st.info(f"Victim seed {victim} has no certificate of image {image} yet.")
        return
    votes, chain = st.columns(2, gap="medium")
    with votes:
        chart_and_data(
            images.vote_histogram(metrics.with_fewer_votes(recorded[one], table[one.to_numpy()]), class_names), "votes"
        )
        st.caption(
            "Each arm's victim saw the same noisy copies. "
            f"★: the class selected by {settings.certification.n0} earlier draws; only its share counts "
            "for the certificate."
        )
    with chain:
        _certificate.from_votes_to_radius(table[one.to_numpy()], settings, class_names, titled=False)
    with place:
        _certificate.noisy_pictures(run, image, class_names)
    _pinned.show(run, limit=run.config.threat.epsilon or 1e-3, victim=victim)


run = _shared.open_run()
class_names, target = sentences.class_names_of(run), sentences.target_of(run)
st.title("Certify")
st.markdown(" · ".join(f"[{part}](#{part.lower().replace(' ', '-')})" for part in PARTS))
recorded = _shared.open_certificates(run)
stamp = (run.directory / "certificates.parquet").stat().st_mtime_ns
missing_arms(recorded)
check_link(recorded)
top = st.container()
n, alpha = choose_settings(recorded)
settings = with_settings(run.config, n, alpha)
table, now = what_if(str(run.directory), stamp, run.config.canonical(), n, alpha)
recorded_cap = radius_cap(n=int(recorded["n"].iloc[0]), sigma=run.config.sigma, alpha=run.config.certification.alpha)
moved = "" if at(settings) == at(run.config) else at(settings)
with top:
    st.caption(sentences.limits_line(run, what_if=bool(moved)))
    headline(now, table, moved)
whole_set(table, now, settings)
training_of_victims()
single_image(recorded, table, settings)
