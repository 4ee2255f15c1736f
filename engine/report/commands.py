"""A configuration as somebody types it: a preset's name, what is set otherwise, as a command or a link."""

import json
import shlex
from typing import Any
from urllib.parse import urlencode

from engine.choices import PROCEDURES
from engine.config import Config, ProcedureConfig
from engine.overrides import field_names
from engine.presets import PRESETS
from engine.records import Run

NAMES = [name for name in field_names() if name != "protocol_version"]
OPTIONAL = ("attack.procedure", "attack.sigma", "attack.augmentation")  # null: as the victims
HEADS = ("procedure", "attack.procedure")  # what has settings of a procedure below it


def value_of(config: Config, name: str) -> Any:
    """The field's value as it is chosen: a procedure by its name."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value.name if isinstance(value, ProcedureConfig) else value


def values_of(config: Config) -> dict[str, Any]:
    """Every field that can be chosen, by its dotted name."""
    return {name: value_of(config, name) for name in NAMES}


def changes(values: dict[str, Any], preset: Config) -> list[str]:
    """The fields (see `value_of`) that differ from the preset's, as --set takes them."""
    changed = []
    for name, value in values.items():
        before = value_of(preset, name)
        head, _, setting = name.rpartition(".")
        if head in HEADS:
            procedure = values[head]
            if setting not in PROCEDURES.get(procedure, {}):
                continue
            if procedure != value_of(preset, head):
                before = PROCEDURES[procedure][setting]
        if name == "controls":
            value, before = list(value), list(before)
        if value != before and (value is not None or name in OPTIONAL):
            changed.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return changed


def asked_for(run: Run) -> tuple[str, list[str]]:
    """(the preset that a run started from, what was set otherwise), from which anyone gets the same configuration."""
    config, preset = run.config, run.request.get("preset")
    base = preset if preset in PRESETS else "quick" if config.dataset == "mnist" else "smoke"
    return base, changes(values_of(config), PRESETS[base].config)


def command(preset: str, changed: list[str]) -> str:
    """The command line that runs the same."""
    return " ".join(["python -m engine run --preset", preset, *(f"--set {shlex.quote(item)}" for item in changed)])


def query(preset: str, changed: list[str]) -> str:
    """The same as the query of a link: the Poison page takes it, and every page beside the id of a run."""
    fields = [(name, value) for name, _, value in (item.partition("=") for item in changed)]
    return urlencode([("preset", preset), *fields])
