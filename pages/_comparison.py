"""Two or more runs on the same axes, with what differs between them and whether they may be compared at all."""

from collections.abc import Callable, Container, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from engine.config import Config, TrainingConfig
from engine.datasets import class_in_words
from engine.figures.comparison import RUN_STYLE, several_runs
from engine.records import Run
from engine.report import commands, sentences, wording
from engine.report.numbers import of_scope
from engine.studies import results
from pages import _form, _links, _shared
from pages._export import chart_and_data

ASPECTS = {  # field → its words, of all that runs must agree in to be set side by side
    "dataset": "data set",
    "threat.target_class": "target class (target_class)",
    "sigma": "noise level σ (sigma)",
    "certification.n": "estimation draws n, which cap the radius",
    "certification.n0": "selection draws n0",
    "certification.alpha": "failure probability α (alpha)",
    "certification.target_images": "number of test images (target_images)",
    "certification.other_images": "number of test images (other_images)",
    "procedure": "victims' procedure",
    "architecture": "victims' architecture",
    **{f"training.{name}": f"victims' training ({name})" for name in TrainingConfig.model_fields},
    "data.train_size": "victims' training (train_size)",
    "data.validation_size": "held-out images, hence other training images (validation_size)",
    "seed": "seed, hence other test images, training images and weights",
    "victim_seeds": "number of victim seeds",
}


ANOTHER_SCALE = {"dataset", "threat.target_class", "sigma"} | {f"certification.{name}" for name in ("n", "n0", "alpha")}


def incomparable(configs: Sequence[Config]) -> dict[str, str]:
    """Why numbers of these runs must not be set side by side, by ASPECTS that differ; empty where they may be."""
    reasons = {}
    for aspect, words in ASPECTS.items():
        different = list(dict.fromkeys(_aspect(config, aspect) for config in configs))
        if len(different) > 1:
            reasons[aspect] = f"different {words}: {', '.join(different)}"
    return reasons


def _aspect(config: Config, aspect: str) -> str:
    return wording.procedure_line(config.procedure) if aspect == "procedure" else _value(config, aspect)


def labels_of(runs: Sequence[Run], configs: Sequence[Config]) -> list[str]:
    """The runs by what differs between them, three settings at most, and by their ids where that is not enough."""
    different = [name for name in commands.NAMES if len({_value(config, name) for config in configs}) > 1]
    heads = [name for name in different if name.rpartition(".")[0] not in different]  # not how procedures are set
    labels = [", ".join(_setting(config, name) for name in heads[:3]) for config in configs]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({run.id[:4]})".strip() for run, label in zip(runs, labels, strict=True)]
    return labels


def _setting(config: Config, name: str) -> str:
    """The value, and of what it is where that needs saying."""
    value, words = commands.value_of(config, name), _value(config, name)
    if name == "threat.target_class":
        return words
    if name in results.PLAIN and isinstance(value, str | int | float):
        return results.PLAIN[name](str(value))
    return f"{wording.field_name(name).partition(' (')[0]} {words}"


def _value(config: Config, name: str) -> str:
    value = commands.value_of(config, name)
    return class_in_words(config.dataset, value) if name == "threat.target_class" else _form.value_words(name, value)


def asked() -> list[str]:
    """The ids of the runs to compare: the session's, at its beginning those that the link asks for (?compare=id,id)."""
    linked = st.query_params.get("compare", "").split(",")
    return st.session_state.get("compare", [identifier for identifier in linked if identifier])


def begin_comparison(known: Container[str]) -> None:
    """Chooses those of the runs asked for that are here; what a link asks for in vain is said."""
    missing = [identifier[:40] for identifier in asked() if identifier not in known]
    if missing and "compare" not in st.session_state:
        st.warning(f"The link compares runs that are not here: {_links.plainly(', '.join(missing))}.")
    st.session_state["compare"] = list(dict.fromkeys(identifier for identifier in asked() if identifier in known))


def comparison(rows: list[dict[str, Any]]) -> None:
    listed = {row["id"] for row in rows}
    of_grid = [_shared.grid_run(identifier) for identifier in asked() if identifier not in listed]
    everything = [*rows, *(row for row in of_grid if row)]
    with_result = [row for row in everything if (_shared.run_of(row).directory / "certificates.parquet").is_file()]
    by_id = {row["id"]: row for row in with_result}
    begin_comparison(by_id)
    chosen = st.multiselect(
        "Runs to compare (two or more)",
        list(by_id),
        format_func=lambda known: _shared.row_label(by_id[known]) if known in by_id else known,
        key="compare",
        max_selections=len(RUN_STYLE),
        persist_state="session",
    )
    if chosen:
        st.query_params["compare"] = ",".join(chosen)
    elif "compare" in st.query_params:
        del st.query_params["compare"]
    if len(chosen) < 2:
        st.caption("Choose two or more runs to see their curves on the same axes, and what differs between them.")
        return
    runs = [_shared.run_of(by_id[identifier]) for identifier in chosen]
    configs = [run.config for run in runs]
    labels = labels_of(runs, configs)
    reasons = incomparable(configs)
    if reasons:
        verdict = "Not comparable" if ANOTHER_SCALE & set(reasons) else "Compare with care"
        st.warning(
            f"**{verdict}.** A difference between these curves need not come from the attack:\n"
            + "\n".join(f"- {reason}" for reason in reasons.values()),
            icon=":material/warning:",
        )
    else:
        st.success(
            "Comparable: same data set, target class, σ, n0, n, α, test images, victims' procedure, architecture and "
            "training, seed and number of victim seeds.",
            icon=":material/check_circle:",
        )
    for run, label in zip(runs, labels, strict=True):
        if run.config.attack.name != "none" and "poisoned" not in (run.report or {}).get("arms", {}):
            st.caption(f"{label} has no poisoned victims yet.")
    tables = [of_scope(_shared.read_certificates(run), "target", run.config) for run in runs]
    caps = [float((run.report or {}).get("radius_cap", 0)) for run in runs]
    figure = several_runs(dict(zip(labels, zip(tables, caps, strict=True), strict=True)))
    chart_and_data(figure, "comparison")
    st.caption(
        "Target class, mean over victim seeds. Colour and marker: the run. Solid: clean victims, drawn once where runs "
        "share them; dashed: poisoned. "
        "Dotted vertical lines: each run's cap σ·Φ⁻¹(α^(1/n)). Radii: L2, pixel units of [0, 1]."
    )
    only_different = st.toggle("Show only settings that differ", value=True, key="diff_only")
    differences(runs, configs, only_different=only_different)


def differences(runs: Sequence[Run], configs: Sequence[Config], *, only_different: bool) -> None:
    """Settings, environment and headline numbers, a column per run, under its id: what else its label says is a row."""
    facts: list[tuple[str, Callable[[Run], Any]]] = [
        ("device", lambda run: run.environment.get("device")),
        ("torch", lambda run: run.environment.get("torch")),
        ("commit", lambda run: run.environment.get("commit")),
        ("state", lambda run: run.status().state),
    ]
    rows = [(wording.field_name(name), [_value(config, name) for config in configs]) for name in commands.NAMES]
    rows += [(name, [str(fact(run)) for run in runs]) for name, fact in facts]
    if only_different:
        rows = [(name, values) for name, values in rows if len(set(values)) > 1]
    for arm in ("clean", "poisoned"):
        rows.append((f"ACR {arm} (L2, mean ± sd)", [acr_of(run, arm) for run in runs]))
    drops = [((run.report or {}).get("relative_drop") or {}).get("poisoned") for run in runs]
    rows.append(("drop in ACR, poisoned (mean ± sd)", [sentences.percent(drop) for drop in drops]))
    heads = ["field", *(f"run {run.id}" for run in runs)]
    table = pd.DataFrame([[name, *values] for name, values in rows], columns=heads)
    st.dataframe(table, hide_index=True, height="content", alt="Settings and headline numbers of the compared runs.")
    st.caption("ACR and its drop: of the target class.")


def acr_of(run: Run, arm: str) -> str:
    values = (run.report or {}).get("arms", {}).get(arm)
    return sentences.with_spread(values["average_certified_radius"]["target"]) if values else "–"
