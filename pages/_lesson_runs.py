"""Finished runs that the lesson sets beside its own: trained without noise, with a defence, at another ε."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streamlit as st

from engine import records
from engine.overrides import differences
from engine.records import GALLERY, GRID, Run
from engine.report.sentences import of_hundred
from pages import _shared
from pages._comparison import incomparable

NO_DEFENCE = "no defence"
EIGHT = "eight grey levels"
SQUEEZING = {"median": "median filter (3×3)", "one-bit": "two grey levels", "three-bit": EIGHT}
ON_THE_SAME_DATA = ("sigma", "training.squeezing")  # defences that need no other data
DEFENCE_FIELDS = (*ON_THE_SAME_DATA, "threat.attacker_share", "threat.poison_fraction")


def finished_runs() -> Iterator[Run]:
    """All of this protocol that can be shown: one's own, and those that come with the project."""
    for folder in (GALLERY, GRID, _shared.runs_root()):
        for run in records.all_runs(folder):
            certified = (run.directory / "certificates.parquet").is_file()
            finished = certified and run.status().state == "done" and run.report
            if finished and run.readable:
                yield run


def without_noise(run: Run) -> Run | None:
    """A run like this one but for victims that were trained without noise, certified alike."""
    for other in finished_runs():
        config = other.config
        if config.procedure.name != "standard" or config.dataset != run.config.dataset:
            continue
        if incomparable([run.config, config]).keys() <= {"procedure", "victim_seeds"}:
            return other
    return None


def by_epsilon(run: Run) -> dict[float, Run]:
    """This run, and those that differ from it in ε alone, the smallest ε first."""
    others = {epsilon: Run(Path(path)) for epsilon, path in _others_by_epsilon(str(run.directory), _root())}
    return dict(sorted((others | {run.config.threat.epsilon: run}).items()))


def defences(run: Run) -> list[dict[str, Any]]:
    """A row per finished run that differs from this one in one thing that a defender can change, this one first."""
    return _defences(str(run.directory), _root())


def of_defence(field: str, value: Any) -> str:
    """The name of a defence."""
    if field == "training.squeezing":
        return SQUEEZING.get(value, str(value))
    return {
        "sigma": f"noise σ = {value}", "threat.attacker_share": f"attacker supplies {of_hundred(value)} of all images",
        "threat.poison_fraction": f"attacker changes {of_hundred(value)} of the class",
    }[field]  # fmt: skip


def _root() -> str:
    return str(_shared.runs_root())


# Looking through all runs takes half a second, and a step asks several times: a minute old is new enough.


@st.cache_data(ttl=60, max_entries=16, show_spinner=False)
def _others_by_epsilon(directory: str, root: str) -> list[tuple[float, str]]:
    found = []
    for other in finished_runs():
        changed = differences(Run(Path(directory)).config, other.config)
        if [each.partition("=")[0] for each in changed] == ["threat.epsilon"] and other.tensors("poison"):
            found.append((other.config.threat.epsilon, str(other.directory)))
    return found


@st.cache_data(ttl=60, max_entries=16, show_spinner=False)
def _defences(directory: str, root: str) -> list[dict[str, Any]]:
    run = Run(Path(directory))
    rows = [_row(run, "", NO_DEFENCE)]
    for other in finished_runs():
        changed = differences(run.config, other.config)
        field, _, value = changed[0].partition("=") if len(changed) == 1 else ("", "", "")
        if field in DEFENCE_FIELDS:
            row = _row(other, field, of_defence(field, json.loads(value)))
            known = row["name"] in {each["name"] for each in rows}
            if not known and row["drop"]["mean"] is not None:  # clean victims of ACR 0 have nothing to lose
                rows.append(row)
    return rows[:1] + sorted(rows[1:], key=lambda row: row["drop"]["mean"])


def _row(run: Run, field: str, name: str) -> dict[str, Any]:
    report = run.report or {}
    acr = {arm: report["arms"][arm]["average_certified_radius"]["target"] for arm in ("clean", "poisoned")}
    return {
        "field": field, "name": name, "clean": acr["clean"]["mean"], "poisoned": acr["poisoned"]["mean"],
        "cap": report["radius_cap"], "drop": report["relative_drop"]["poisoned"], "acr": acr,
    }  # fmt: skip
