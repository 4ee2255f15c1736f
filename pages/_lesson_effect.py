"""The lesson's views of finished runs: training with noise, poisoned images, transfer, defences, limits."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import spread
from engine.certification import radius_cap
from engine.config import Config
from engine.figures import lesson, study
from engine.records import Run
from engine.report import commands, sentences, wording
from engine.report.sentences import dataset_words
from engine.studies import results
from engine.studies import tables as study_tables
from pages import _images, _lesson_questions, _lesson_runs, _shared
from pages._show import chart

SHOWN_IMAGES = 8
TRY = (  # what a reader may compute
    *(("training.squeezing", value) for value in _lesson_runs.SQUEEZING),
    *(("threat.attacker_share", 0.25), ("threat.poison_fraction", 0.5)),
)


def command(run: Run, *overrides: str) -> str:
    """The command line for a run like this one with other settings."""
    preset, changed = commands.asked_for(run)
    return commands.command(preset, [*changed, *overrides])


def limits_line(run: Run) -> str:
    """What a picture rests on, as far as the lesson has come."""
    images = (run.report or {})["certified_images"]["target"]
    return (
        f"{dataset_words(run.config)}; {images} test images of {sentences.target_of(run)}; "
        f"{sentences.several(run.config.victim_seeds, 'victim')} trained on clean and on poisoned images each."
    )


# --- training with noise ---


def training(run: Run, revealed: bool) -> None:
    """Certified accuracy of two ways of training, and a radius to read both at."""
    config, other = run.config, _lesson_runs.without_noise(run)
    if other is None:
        st.info(
            "Two curves appear here once there is a run whose victims were trained without noise and certified like "
            f"those of run {run.id}. This command computes one:"
        )
        st.code(
            command(run, "procedure=standard", "attack.name=none", "victim_seeds=3"), language=None, wrap_lines=True
        )
        return
    if not revealed:
        waiting("The two curves stay covered until you reveal the answer.")
        return
    cap = radius_cap(n=config.certification.n, sigma=config.sigma, alpha=config.certification.alpha)
    tables = {
        "trained with noise": _shared.open_certificates(run).query("arm == 'clean'"),
        "trained without": _shared.open_certificates(other).query("arm == 'clean'"),
    }
    with st.container(key="lesson-controls"):
        left, right = st.columns([3, 2], vertical_alignment="bottom")
        with right:
            scope = str(
                st.segmented_control(
                    "Test images of", ["target", "all"], default="target", required=True, key="lesson_scope",
                    format_func=lambda scope: "all classes" if scope == "all" else sentences.target_of(run),
                )
            )  # fmt: skip
        with left:
            r = st.slider("Read the curves at radius r (L2, pixel units)", 0.0, round(cap, 2), config.sigma, 0.01)
    chart(lesson.curves(tables, config, scope=scope, radius=r), "lesson_curves")
    acr = [(each.report or {})["arms"]["clean"]["average_certified_radius"] for each in (run, other)]
    noisy, plain = (found[scope] for found in acr)
    gain = noisy["mean"] / plain["mean"] - 1 if plain["mean"] else 0.0
    st.markdown(
        f"Average certified radius of {'all classes' if scope == 'all' else sentences.target_of(run)} (L2): "
        f"**{sentences.with_spread(noisy)}** with noise in training, **{sentences.with_spread(plain)}** without: "
        f"{'+' * (gain > 0)}{sentences.of_hundred(gain)}."
        + ("" if gain > 0 else " Here it gained nothing: how much it gains depends on the data, σ and training time.")
    )
    single = " and ".join(name for name, table in tables.items() if table["victim"].nunique() == 1)
    st.caption(
        f"Runs {run.id} and {other.id}: same data, σ, draws and test images in certification. The certificates of "
        "victims trained without noise are just as valid."
        + (f" The curve “{single}” is of a single victim, so its spread over victims is unknown." if single else "")
    )


# --- real images ---


def images(run: Run, revealed: bool) -> None:
    poison = run.tensors("poison")
    assert poison is not None
    delta = poison["delta"][:SHOWN_IMAGES].astype(np.float32)
    x_clean = _images.training_images(run, poison["indices"][:SHOWN_IMAGES])
    if x_clean is not None:
        _images.triple_mosaic(x_clean, delta, epsilon=run.config.threat.epsilon, columns=len(delta))
    report = run.need_report()
    st.markdown(sentences.headline(report))
    st.caption(f"{dataset_words(run.config)}. {sentences.numbers_line(report)}")
    compared = _lesson_questions.brightness_study()
    if compared is None:
        return
    if not revealed:
        waiting("What brightness takes stays covered until you reveal the answer.")
        return
    chart(lesson.rivals(compared), "lesson_rivals")
    words = "This study, and ten attacks at the same ε: Studies"
    _shared.page_link("pages/studies.py", words, study=compared[0]["study"])


def waiting(words: str) -> None:
    st.info(words, icon=":material/visibility_off:")


# --- transfer ---


def transfer(run: Run, revealed: bool) -> None:
    found = _lesson_questions.transfer_study()
    if found is None:
        st.info("This copy comes without a study of transfer. The Studies page can compute one.")
        return
    rows, columns = (results.names(found, axis) for axis in ("rows", "columns"))
    st.markdown(
        f"All {len(rows) * len(columns)} combinations were computed: poison made against one training procedure "
        "(rows), victims trained by another (columns)."
    )
    if not revealed:
        waiting("The table of drops stays covered until you reveal the answer.")
        return
    row = _lesson_questions.surprising_row(found)
    drops = [results.cell_at(found, row, column)["drop"]["mean"] for column in range(len(columns))]
    figure, largest = study.heat_map(found), (row, drops.index(max(drops)))
    figure.update_traces(showscale=False, selector=dict(type="heatmap"))  # each cell has its number
    cells = figure.data[1]
    cells.text = [
        "★ " * (tuple(place) == largest) + text for place, text in zip(cells.customdata, cells.text, strict=True)
    ]
    with st.container(key="lesson-whole"):
        chart(figure, "lesson_transfer")
    st.caption(
        "Share of its average certified radius that the target class loses, mean ± standard deviation over victims; "
        "below it, what random noise of the same ε (L∞) takes. ★: the largest drop of the row in question."
    )
    with st.expander("What the numbers rest on", icon=":material/info:"):
        st.markdown(study_tables.grounds(found))
    _shared.page_link("pages/studies.py", "More of this: Studies")


# --- what a defender can do ---


def defender(run: Run, revealed: bool) -> None:
    st.markdown(
        "Three ways: **shrink the attacker's share** (more sources, trusted data), **squeeze** the training images so "
        "that faint changes vanish, or choose **another noise level**."
    )
    rows = _lesson_runs.defences(run)
    if not revealed and _lesson_questions.of_the_same_data(rows):
        waiting("The comparison stays covered until you reveal the answer.")
        return
    first, others = rows[0], [row["name"] for row in rows[1:]]
    with st.container(key="lesson-whole"):
        if others:
            chart(lesson.defences([row for row in rows if row["cap"] == first["cap"]]), "lesson_defence")
    st.dataframe(
        pd.DataFrame(
            {
                "defence": [row["name"] for row in rows],
                "drop left": [sentences.percent(row["drop"]) for row in rows],
                "price": [_price(row, first) for row in rows],
                "ACR clean": [sentences.with_spread(row["acr"]["clean"]) for row in rows],
                "ACR poisoned": [sentences.with_spread(row["acr"]["poisoned"]) for row in rows],
            }
        ),
        hide_index=True,
        height="content",
        alt="Defences: drop left, average certified radius of clean and poisoned victims",
    )
    worse = [row["name"] for row in rows[1:] if row["drop"]["mean"] > first["drop"]["mean"] + 0.05]
    if worse:
        st.warning(
            f"**A defence can backfire.** With {' or '.join(worse)} the attack takes more than with no defence."
            + (" A faint change can push a pixel a whole grey level up." if _lesson_runs.EIGHT in worse else ""),
            icon=":material/warning:",
        )
    alike = [row for row in rows[1:] if row["cap"] == first["cap"]]
    if alike and not any(spread.is_above_zero(_lost(row, first)) for row in alike):
        st.markdown("At this σ no defence here has a price that can be measured.")
    other = len(alike) < len(rows) - 1
    st.caption(
        f"Target class {sentences.target_of(run)}, mean ± standard deviation over victims; ACR: L2, pixel units. "
        "Price: the change of clean ACR, which the defence causes with nobody attacking; getting and checking more "
        "data costs extra. **This attacker does not know the defence**; one who does may find a way around it, so "
        "read these as upper bounds on what a defence is worth."
        + (
            " Another σ has another cap, so that its price cannot be compared: the chart leaves it out."
            if other
            else ""
        )
    )
    missing = [f"{field}={value}" for field, value in TRY if _lesson_runs.of_defence(field, value) not in others]
    if missing:
        with st.expander("Compute what is missing", icon=":material/terminal:"):
            st.code("\n".join(command(run, item) for item in missing), language=None, wrap_lines=True)


def _lost(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any] | None:
    """Clean ACR that a defence costs, over pairs of victims."""
    return spread.difference(first["acr"]["clean"], row["acr"]["clean"])


def _price(row: dict[str, Any], first: dict[str, Any]) -> str:
    if row is first:
        return "–"
    percent = round(100 * (row["clean"] / first["clean"] - 1))
    return "–" if row["cap"] != first["cap"] else f"{percent:+d} %" if percent else "0 %"


# --- limits and ethics ---

LINKS = """
- The attack: Mehra, Kailkhura, Chen, Hamm, *How Robust are Randomized Smoothing based Defenses to Data Poisoning?*
  CVPR 2021, [arXiv:2012.01274](https://arxiv.org/abs/2012.01274)
- Certificates: Cohen, Rosenfeld, Kolter, *Certified Adversarial Robustness via Randomized Smoothing*, ICML 2019,
  [arXiv:1902.02918](https://arxiv.org/abs/1902.02918)
- Training for larger radii: SmoothAdv [arXiv:1906.04584](https://arxiv.org/abs/1906.04584), MACER
  [arXiv:2001.02378](https://arxiv.org/abs/2001.02378)
"""


def _attacker(config: Config) -> str:
    """How much this run's attacker has in its hands, and knows of victims."""
    share = config.threat.poison_fraction * config.threat.attacker_share
    of_class = (
        "the images of a whole class"
        if share == 1
        else f"{sentences.of_hundred(share)} of the training images of a class"
    )
    if not config.attack.traits.surrogates:
        return f"This one controls {of_class}."
    wrong = sentences.taken_wrongly(config)
    return (
        f"This one controls {of_class} and knows how victims train"
        + (f", except for their {' and '.join(wrong)}" if wrong else "")
        + "."
    )


def _other_classes() -> str:
    """How much the same attack takes from other classes: the least and the most."""
    compared = sorted(_lesson_questions.brightness_study() or [], key=lambda row: row["pacd"]["mean"])
    ends = [f"{sentences.percent(row['pacd'])} from {row['name']}" for row in (*compared[:1], *compared[-1:])]
    return f" In one study the same attack takes {' and '.join(ends)}." if compared else ""


def limits(run: Run, revealed: bool) -> None:
    report = run.report or {}
    drop, victims = sentences.percent(report["relative_drop"]["poisoned"]), run.config.victim_seeds
    st.markdown(
        f"**What the {drop} of this run does not show**\n"
        f"- *Other data.* {dataset_words(run.config)}; one class, {report['certified_images']['target']} test "
        f"images, {sentences.several(victims, 'victim')} for each arm.{_other_classes()}\n"
        f"- *A weaker attacker.* {_attacker(run.config)}\n"
        f"- *The full radius.* With n = {run.config.certification.n} draws no radius exceeds "
        f"{report['radius_cap']:.3f}.\n"
        "- *That it takes a bilevel attack.* Brightness, which optimises nothing, takes as much or more (step 7), and "
        "most of it at the authors' scale.\n"
        "- *That certificates are wrong.* Each one still holds, around its test image, for the model that was "
        "trained.\n\n"
        "**What to do with it**\n"
        "- Know where your training data come from. Keep some that nobody else could touch, and compare with the radii "
        "of models trained on them alone.\n"
        "- Report the average certified radius class by class: an attack may hit a single class.\n"
        "- Before you claim that a defence works, attack it yourself, and show controls.\n\n"
        "**What not to do.** Changing data that others train on, without their consent, does harm and is illegal in "
        "many places. This program works on copies on your own machine and sends nothing anywhere."
    )
    with st.container(key="lesson-controls"):
        said = st.text_area(
            "In one sentence of your own: what can you conclude from this run? (kept in this session only)",
            key="lesson_sentence", max_chars=500, persist_state="session",
        )  # fmt: skip
        if said:
            st.caption(
                f"{sentences.several(len(said.split()), 'word')}. Does it name the data set, the class, ε and what the "
                "attacker knew?"
            )
    st.markdown(f"**To read**\n{LINKS}")
    st.caption(wording.attack_of(run.config).name + ", " + sentences.limits_line(run))
