"""The lesson's views of finished runs: training with noise, poisoned images, transfer, defences, limits."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine import records
from engine.certification import radius_cap
from engine.config import PROTOCOL_VERSION
from engine.figures import lesson, radii, study
from engine.overrides import differences
from engine.records import GALLERY, GRID, Run
from engine.report import commands, sentences, wording
from engine.report.sentences import dataset_words
from engine.studies import results
from engine.studies import tables as study_tables
from pages import _images, _lesson_questions, _shared
from pages._comparison import incomparable
from pages._show import chart

SHOWN_IMAGES = 8
DEFENCE_FIELDS = ("sigma", "training.squeezing", "threat.attacker_share", "threat.poison_fraction")
SQUEEZING = {"median": "median filter (3×3)", "one-bit": "only black and white", "three-bit": "only eight shades"}
TRY = (  # what a reader may compute
    *("training.squeezing=median", "training.squeezing=one-bit", "training.squeezing=three-bit"),
    *("threat.attacker_share=0.25", "threat.poison_fraction=0.5"),
)


def finished_runs() -> Iterator[Run]:
    """All of this protocol that can be shown: one's own, and those that come with the project."""
    for folder in (GALLERY, GRID, _shared.runs_root()):
        for run in records.all_runs(folder):
            certified = (run.directory / "certificates.parquet").is_file()
            finished = certified and run.status().state == "done" and run.report
            if finished and _shared.protocol_of(run) == PROTOCOL_VERSION:
                yield run


def command(run: Run, *overrides: str) -> str:
    """The command line for a run like this one with other settings."""
    preset, changed = commands.asked_for(run)
    return commands.command(preset, [*changed, *overrides])


# --- what training with noise buys ---


def without_noise(run: Run) -> Run | None:
    """A run like this one but for victims that were trained without noise, certified alike."""
    for other in finished_runs():
        config = other.config
        if config.procedure.name != "standard" or config.dataset != run.config.dataset:
            continue
        if incomparable([run.config, config]).keys() <= {"procedure", "victim_seeds"}:
            return other
    return None


def training(run: Run, revealed: bool) -> None:
    """Certified accuracy of two ways of training, and a radius to read both at."""
    config, other = run.config, without_noise(run)
    if other is None:
        st.info(
            "Here two curves appear as soon as there is a run whose victims were trained without noise and certified "
            f"like those of run {run.id}. This computes one:"
        )
        st.code(
            command(run, "procedure=standard", "attack.name=none", "victim_seeds=1"), language=None, wrap_lines=True
        )
        return
    if not revealed:
        waiting("The two curves stay covered until the answer is revealed.")
        return
    cap = radius_cap(n=config.certification.n, sigma=config.sigma, alpha=config.certification.alpha)
    with st.container(key="lesson-controls"):
        left, right = st.columns([3, 2], vertical_alignment="bottom")
        with left:
            r = st.slider("Read the curves at radius r (L2, pixel units)", 0.0, round(cap, 2), round(cap / 2, 2), 0.01)
        with right:
            scope = st.segmented_control(
                "Test images of", ["target", "all"], default="target", required=True, key="lesson_scope",
                format_func=lambda scope: "all classes" if scope == "all" else sentences.target_of(run),
            )  # fmt: skip
    tables = {
        "trained with noise": _shared.open_certificates(run).query("arm == 'clean'"),
        "trained without": _shared.open_certificates(other).query("arm == 'clean'"),
    }
    figure = lesson.curves(tables, config, scope=str(scope), radius=r)
    chart(figure, "lesson_curves")
    acr = [(each.report or {})["arms"]["clean"]["average_certified_radius"] for each in (run, other)]
    noisy, plain = (found[str(scope)] for found in acr)
    gain = noisy["mean"] / plain["mean"] - 1 if plain["mean"] else 0.0
    st.markdown(
        f"Average certified radius of {'all classes' if scope == 'all' else sentences.target_of(run)} (L2): "
        f"**{sentences.with_spread(noisy)}** with noise in training, **{sentences.with_spread(plain)}** without: "
        f"{gain:+.0%}."
        + ("" if gain > 0 else " Here it bought nothing: how much it buys depends on data, σ and how long one trains.")
    )
    st.caption(
        f"Runs {run.id} and {other.id}: same data, same σ in certification, same draws and test images. Certificates "
        "of victims that trained without noise are just as valid."
    )


# --- real images ---


def images(run: Run, revealed: bool) -> None:
    poison = run.tensors("poison")
    assert poison is not None
    delta = poison["delta"][:SHOWN_IMAGES].astype(np.float32)
    x_clean = _images.training_images(run, poison["indices"][:SHOWN_IMAGES])
    if x_clean is not None:
        _images.triple_mosaic(x_clean, delta, epsilon=run.config.threat.epsilon, columns=len(delta))
    if not revealed:
        st.caption(sentences.limits_line(run))
        return
    report = run.report
    assert report is not None
    figure = radii.acr_by_arm(report)
    chart(figure, "lesson_acr")
    st.caption(f"{sentences.numbers_line(report)} {sentences.limits_line(run)}")


def waiting(words: str) -> None:
    st.info(words, icon=":material/visibility_off:")


# --- transfer ---


def transfer(run: Run, revealed: bool) -> None:
    found = _lesson_questions.transfer_study()
    if found is None:
        st.info("No study of transfer comes with this copy. The Studies page can compute one.")
        return
    rows, columns = (results.names(found, axis) for axis in ("rows", "columns"))
    st.markdown(
        f"Somebody computed all {len(rows) * len(columns)} pairs: poison made against one training procedure (rows), "
        "victims trained by another (columns)."
    )
    if not revealed:
        waiting("The table of drops stays covered until the answer is revealed.")
        return
    row = _lesson_questions.surprising_row(found)
    drops = [results.cell_at(found, row, column)["drop"]["mean"] for column in range(len(columns))]
    figure = study.heat_map(found, (row, drops.index(max(drops))))
    chart(figure, "lesson_transfer")
    st.caption(
        "Drop of the target class's average certified radius, mean ± standard deviation over victims; beneath it what "
        f"random noise of the same ε (L∞) takes. Framed: the largest of the row asked for. "
        f"{study_tables.grounds(found)}"
    )
    _shared.page_link("pages/studies.py", "More of this: Studies", ":material/grid_view:")


# --- what a defender can do ---


def defence_rows(run: Run) -> list[dict[str, Any]]:
    """A row per finished run that differs from this one in one thing that a defender can change, this one first."""
    rows = [_row(run, "as it was")]
    for other in finished_runs():
        changed = differences(run.config, other.config)
        field, _, value = changed[0].partition("=") if len(changed) == 1 else ("", "", "")
        if field in DEFENCE_FIELDS:
            row = _row(other, _words_of(field, json.loads(value)))
            known = row["name"] in {each["name"] for each in rows}
            if not known and row["drop"]["mean"] is not None:  # clean victims of ACR 0 have nothing to lose
                rows.append(row)
    return rows[:1] + sorted(rows[1:], key=lambda row: row["drop"]["mean"])


def _words_of(field: str, value: Any) -> str:
    if field == "training.squeezing":
        return SQUEEZING.get(value, str(value))
    return {
        "sigma": f"noise σ = {value}", "threat.attacker_share": f"attacker has {value:.0%} of the data",
        "threat.poison_fraction": f"{value:.0%} of the class poisoned",
    }[field]  # fmt: skip


def _row(run: Run, name: str) -> dict[str, Any]:
    report = run.report or {}
    acr = {arm: report["arms"][arm]["average_certified_radius"]["target"] for arm in ("clean", "poisoned")}
    return {
        "name": name, "run": run, "clean": acr["clean"]["mean"], "poisoned": acr["poisoned"]["mean"],
        "cap": report["radius_cap"], "drop": report["relative_drop"]["poisoned"], "acr": acr,
    }  # fmt: skip


def defender(run: Run, revealed: bool) -> None:
    st.markdown(
        "Three ways: make the attacker's **share smaller** (more sources, trusted data), **squeeze** training images "
        "so that faint changes vanish, or choose **another noise level**. Each may have its price."
    )
    known = defence_rows(run)
    first, others = known[0], [row["name"] for row in known[1:]]
    if others:
        with st.container(key="lesson-controls"):
            chosen = st.multiselect("Defences to show", others, default=others, key="lesson_defences")
        rows = [first, *(row for row in known[1:] if row["name"] in chosen)]
        figure = lesson.defences([row for row in rows if row["cap"] == first["cap"]])
        chart(figure, "lesson_defence")
    else:
        rows = known
    st.dataframe(
        pd.DataFrame(
            {
                "defence": [row["name"] for row in rows],
                "drop left": [sentences.percent(row["drop"]) for row in rows],
                "ACR clean": [sentences.with_spread(row["acr"]["clean"]) for row in rows],
                "ACR poisoned": [sentences.with_spread(row["acr"]["poisoned"]) for row in rows],
                "change of clean ACR": [_price(row, first) for row in rows],
            }
        ),
        hide_index=True,
        height="content",
        alt="Defences: drop left, average certified radius of clean and poisoned victims",
    )
    worse = [row["name"] for row in rows[1:] if row["drop"]["mean"] > first["drop"]["mean"] + 0.05]
    if worse:
        st.warning(
            f"**A defence can backfire.** More is lost than without: {', '.join(worse)}. Few shades turn a faint "
            "change into a whole step between shades.",
            icon=":material/warning:",
        )
    other = any(row["cap"] != first["cap"] for row in rows)
    st.caption(
        f"Target class {sentences.target_of(run)}, mean ± standard deviation over victims; ACR: L2, pixel units. "
        "Change of clean ACR: what the defence alone does to victims of clean data; what it costs to get and check "
        "more data is not in it. "
        "**The attacker here does not know the defence**; one who does may find a way around it, so these are upper "
        "bounds of what a defence is worth."
        + (" Runs at another σ have another cap: compare their drops only. The chart leaves them out." if other else "")
    )
    missing = [item for item in TRY if _words_of_override(item) not in others]
    if missing:
        with st.expander("Compute what is missing", icon=":material/terminal:"):
            st.code("\n".join(command(run, item) for item in missing), language=None, wrap_lines=True)


def _words_of_override(item: str) -> str:
    field, _, value = item.partition("=")
    return _words_of(field, value if field == "training.squeezing" else float(value))


def _price(row: dict[str, Any], first: dict[str, Any]) -> str:
    if row is first:
        return "–"
    percent = round(100 * (row["clean"] / first["clean"] - 1))
    return "another cap" if row["cap"] != first["cap"] else f"{percent:+d} %" if percent else "0 %"


# --- limits and ethics ---

LINKS = """
- The attack: Mehra, Kailkhura, Chen, Hamm, *How Robust are Randomized Smoothing based Defenses to Data Poisoning?*
  CVPR 2021, [arXiv:2012.01274](https://arxiv.org/abs/2012.01274)
- Certificates: Cohen, Rosenfeld, Kolter, *Certified Adversarial Robustness via Randomized Smoothing*, ICML 2019,
  [arXiv:1902.02918](https://arxiv.org/abs/1902.02918)
- Training for larger radii: SmoothAdv [arXiv:1906.04584](https://arxiv.org/abs/1906.04584), MACER
  [arXiv:2001.02378](https://arxiv.org/abs/2001.02378)
"""


def limits(run: Run, revealed: bool) -> None:
    report = run.report or {}
    drop, victims = sentences.percent(report["relative_drop"]["poisoned"]), run.config.victim_seeds
    st.markdown(
        f"**What the {drop} of this run does not say**\n"
        f"- *Other data.* {dataset_words(run.config)}; one class, {report['certified_images']['target']} test "
        f"images, {victims} victims an arm.\n"
        "- *A weaker attacker.* This one owns the images of a whole class and knows how victims train.\n"
        f"- *The full radius.* With n = {run.config.certification.n} draws no radius exceeds "
        f"{report['radius_cap']:.3f}.\n"
        "- *That it takes a bilevel attack.* On MNIST, making every pixel of the class brighter by ε, which optimises "
        "nothing, takes as much (attack *Brightness*; docs/reproduction.md, section 5).\n"
        "- *That certificates lie.* Each holds as promised, around the test image, for the model that was trained.\n\n"
        "**What to do with it**\n"
        "- Know where training data come from; keep some that nobody else could touch, and compare radii on models "
        "trained "
        "on them alone.\n"
        "- Report average certified radius class by class: a single class can be hit.\n"
        "- When you claim that a defence works, attack it yourself, and show controls.\n\n"
        "**What not to do.** Changing data that others train on, without their consent, does harm and is illegal in "
        "many places. This program works on copies on your own machine and sends nothing anywhere."
    )
    with st.container(key="lesson-controls"):
        said = st.text_area(
            "In one sentence of your own: what may one conclude from this run? (kept in this session only)",
            key="lesson_sentence", max_chars=500, persist_state="session",
        )  # fmt: skip
        if said:
            st.caption(f"{len(said.split())} words. Does it name data set, class, ε and what the attacker knew?")
    st.markdown(f"**To read**\n{LINKS}")
    st.caption(wording.attack_of(run.config).name + ", " + sentences.limits_line(run))
