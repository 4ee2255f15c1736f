"""A study's results, made from the reports of its cells alone, and what is asked of them."""

from collections.abc import Callable, Mapping
from typing import Any

from engine import datasets, spread
from engine.config import Config, lower_level
from engine.overrides import with_overrides
from engine.records import Run
from engine.report import wording
from engine.report.sentences import is_the_papers, of_hundred
from engine.studies.process import StudyRecord
from engine.studies.study import Cell, place_name

Summary = spread.Summary | None
PLAIN: dict[str, Callable[[str], str]] = {  # by the field that an axis sets
    "attack.name": wording.attack_name,
    "procedure": wording.PROCEDURE_NAMES.__getitem__,
    "attack.procedure": wording.PROCEDURE_NAMES.__getitem__,
    "architecture": wording.ARCHITECTURE_NAMES.__getitem__,
    "attack.surrogate": wording.ARCHITECTURE_NAMES.__getitem__,
    "dataset": wording.dataset_name,
    "attack.poison_moments": lambda name: wording.MOMENTS_NAMES.get(name, name),
    "attack.sigma": "σ = {}".format,
    "sigma": "σ = {}".format,
    "threat.epsilon": "ε = {}".format,
    "threat.poison_fraction": lambda name: f"{of_hundred(float(name))} poisoned",
    "seed": lambda name: name if name.startswith("seed") else f"seed {name}",
}


def of(record: StudyRecord) -> dict[str, Any]:
    """Everything that tables, figures and a copy in the gallery show: {"id", "preset", "study", "cells"}; JSON."""
    study = record.study
    of_the_paper = study.kind.startswith("reproduce")  # which may ask for the control alone: the attack is noise then
    return {
        "id": record.id,
        "preset": record.request.get("preset"),
        "study": study.model_dump(mode="json"),
        "cells": [_result(cell, record.run(cell), noise_is_control=of_the_paper) for cell in study.cells()],
    }


def _result(cell: Cell, run: Run, *, noise_is_control: bool) -> dict[str, Any]:
    """One cell: where it is, what it asked for, and what there is of an answer."""
    config, report = cell.config, run.report or {}
    attacker, attack_sigma = lower_level(config)
    noise_alone = noise_is_control and config.attack.name == "random-noise"
    poisoned, control = ("", "poisoned") if noise_alone else ("poisoned", "random_noise")
    arms, drops, seconds = report.get("arms", {}), report.get("relative_drop", {}), report.get("seconds", {})

    def of(arm: str, what: str) -> Summary:
        return arms.get(arm, {}).get(what, {}).get("target")

    environment = run.environment
    return {
        "row": cell.row,
        "column": cell.column,
        "run": cell.run_id,
        "state": run.status().state if run.exists() else "not started",
        "complete": bool(report.get("complete")),
        "dataset": config.dataset,
        "procedure": config.procedure.name,
        "architecture": config.architecture,
        "sigma": config.sigma,
        "attack": config.attack.name,
        "attack_procedure": attacker.name,
        "surrogate": config.attack.surrogate,
        "attack_sigma": attack_sigma,
        "epsilon": config.threat.epsilon,
        "target_class": config.threat.target_class,
        "seed": config.seed,
        "victim_seeds": config.victim_seeds,
        "drop": drops.get(poisoned),
        "control_drop": drops.get(control),
        "acr_clean": of("clean", "average_certified_radius"),
        "acr_poisoned": of(poisoned, "average_certified_radius"),
        "acr_control": of(control, "average_certified_radius"),
        "accuracy_clean": of("clean", "accuracy"),
        "accuracy_poisoned": of(poisoned, "accuracy"),
        "accuracy_control": of(control, "accuracy"),
        "radius_cap": report.get("radius_cap"),
        "images": report.get("certified_images", {}).get("target"),
        "n0": config.certification.n0,
        "n": config.certification.n,
        "alpha": config.certification.alpha,
        "precision": config.training.precision,
        "protocol": config.protocol_version,
        "upper_steps": config.attack.upper_steps,
        "linear_solver": config.attack.linear_solver,
        "perturbation": report.get("perturbation"),
        "attack_seconds": None if "poison" in report.get("reused", ()) else seconds.get("poison"),
        "seconds": seconds.get("total"),
        "reused": bool(report.get("reused")),
        **{name: environment.get(name) for name in ("device", "device_name", "torch", "commit")},
    }


def finished(found: dict[str, Any]) -> tuple[int, int]:
    """(cells with a whole result, cells)."""
    return sum(cell["complete"] for cell in found["cells"]), len(found["cells"])


def names(found: dict[str, Any], axis: str) -> list[str]:
    """Names of the points of an axis ("rows" or "columns")."""
    return [point["name"] for point in found["study"][axis]["points"]]


def titles(found: dict[str, Any], axis: str) -> list[str]:
    """The same in plain words, for figures and pages; of `found` this needs the study alone."""
    if axis == "rows" and found["study"]["kind"].startswith("reproduce"):
        try:
            return [_setting(config) for config in _configs(found, axis)]
        except ValueError:  # of an older protocol
            return names(found, axis)
    return [_title(found, point) for point in found["study"][axis]["points"]]


def has_the_papers_settings(found: dict[str, Any]) -> bool:
    """Whether each row of a reproduction is a setting of the authors; one without the attack's arm may be, too."""

    def with_pacd(config: Config) -> Config:
        if config.attack.name not in ("none", "random-noise"):
            return config
        return config.model_copy(update={"attack": config.attack.model_copy(update={"name": "pacd"})})

    try:
        return all(is_the_papers(with_pacd(config)) for config in _configs(found, "rows"))
    except ValueError:  # of an older protocol
        return False


def _configs(found: dict[str, Any], axis: str) -> list[Config]:
    """The base at each point of an axis. Raises: ValueError."""
    base = Config.model_validate(found["study"]["base"])
    return [with_overrides(base, point["overrides"]) for point in found["study"][axis]["points"]]


def _setting(config: Config) -> str:
    procedure, dataset = wording.PROCEDURE_NAMES[config.procedure.name], wording.dataset_name(config.dataset)
    return f"{procedure}, {dataset}, σ = {config.sigma:g}"


def _title(found: dict[str, Any], point: dict[str, Any]) -> str:
    field, name = point["overrides"][0].partition("=")[0] if point["overrides"] else "", point["name"]
    if field == "threat.target_class" and name.isdigit():
        return datasets.class_in_words(found["study"]["base"]["dataset"], int(name))
    return PLAIN.get(field, str)(name)


def label(axis: Mapping[str, Any]) -> str:
    """What an axis of a study's JSON shows, in plain words; a field is stored by its own name."""
    name = wording.FIELD_NAMES.get(axis["label"], axis["label"])
    return name[0].upper() + name[1:] if name[:1].isascii() and name else name


def field(axis: Mapping[str, Any]) -> str:
    """The setting that changes along an axis, as in a form; its label where the axis changes several or none."""
    fields = {override.partition("=")[0] for point in axis["points"] for override in point["overrides"]}
    return wording.FIELD_NAMES.get(fields.pop(), label(axis)) if len(fields) == 1 else label(axis)


def cell_at(found: dict[str, Any], row: int, column: int) -> dict[str, Any]:
    return found["cells"][row * len(names(found, "columns")) + column]


def cell_name(found: dict[str, Any], cell: dict[str, Any]) -> str:
    return place_name(
        found["study"]["kind"], names(found, "rows")[cell["row"]], names(found, "columns")[cell["column"]]
    )


def cell_title(found: dict[str, Any], cell: dict[str, Any]) -> str:
    return place_name(
        found["study"]["kind"], titles(found, "rows")[cell["row"]], titles(found, "columns")[cell["column"]]
    )


def beyond_control(cell: dict[str, Any]) -> Summary:
    """By how much the poison takes more than random noise, over pairs of victims."""
    return spread.difference(cell["drop"], cell["control_drop"])


def victims(cell: dict[str, Any]) -> int:
    """How many pairs of victims the cell's drops rest on; how many clean ones there are where nothing is changed."""
    counted = cell["acr_clean"] if cell["attack"] == "none" else cell["drop"] or cell["control_drop"]
    return len((counted or {}).get("seeds", ()))


def at_home(found: dict[str, Any]) -> int:
    """The index of the column whose victims are the base's, which attacks assume; 0 if there is none."""
    try:
        base, configs = Config.model_validate(found["study"]["base"]), _configs(found, "columns")
    except ValueError:  # of an older protocol
        return 0
    return next((k for k, config in enumerate(configs) if config == base), 0)


def by_row(found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each row: the drop at home, the other columns' mean, victim by victim (transfer), seconds, visibility.

    The attack's seconds are those of the cell that computed it: the others reused its poison.
    """
    summaries, home = [], at_home(found)
    for r, _ in enumerate(names(found, "rows")):
        cells = [cell for cell in found["cells"] if cell["row"] == r]
        others = [*cells[:home], *cells[home + 1 :]]
        moved = [cell["drop"] for cell in others if cell["drop"] and cell["drop"]["mean"] is not None]
        seconds = [cell["attack_seconds"] for cell in cells if cell["attack_seconds"] is not None]
        summaries.append(
            {
                "drop": cells[home]["drop"],
                "control_drop": cells[home]["control_drop"],
                "transfer": spread.together(moved),
                "attack_seconds": max(seconds) if seconds else None,
                "cell": next((cell for cell in cells if cell["perturbation"]), cells[home]),
            }
        )
    return summaries
