"""The questions that studies answer: transfer, sweeps, rivals, and the paper's whole table, each with its axes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from engine import paper, presets
from engine.choices import FOLDER, Architecture, AttackName
from engine.config import Config, ConfigError, lower_level
from engine.overrides import differences, field_names, with_overrides
from engine.presets import PRESETS
from engine.studies.study import Axis, Point, Study, checked

# Architectures for MNIST and the embedded digits, from a perceptron on; and for all others, the authors' own first.
_SMALL: tuple[Architecture, ...] = ("mlp", "lenet", "resnet8")
_LARGE: tuple[Architecture, ...] = ("resnet20-pacd", "resnet20", "resnet56", "resnet18")
_ONE_CONTROL = 'controls=["random_noise"]'


@dataclass(frozen=True)
class Kind:
    """A question that a study answers, with its axes where nothing else is said: field → values (None: see `axis`)."""

    sentence: str
    rows: tuple[str, tuple[Any, ...] | None]
    columns: tuple[str, tuple[Any, ...] | None]


KINDS = {
    "transfer-procedure": Kind(
        "Poison made against one training procedure, victims trained with another.",
        ("attack.procedure", None),
        ("procedure", None),
    ),
    "transfer-architecture": Kind(
        "Poison made on one architecture, victims of another.",
        ("attack.surrogate", None),
        ("architecture", None),
    ),
    "transfer-sigma": Kind(
        "Poison made for one noise level σ, victims trained and certified at another.",
        ("attack.sigma", None),
        ("sigma", None),
    ),
    "sweep": Kind(
        "Any two settings against each other: by default the budget ε (L∞) and the noise level σ.",
        ("threat.epsilon", (0.025, 0.05, 0.1, 0.2)),
        ("sigma", None),
    ),
    "rivals": Kind(
        "Every attack at the same ε (L∞), made against one procedure and architecture, victims of several.",
        ("attack.name", None),
        ("architecture", None),
    ),
}
REPRODUCE = "reproduce"
REPRODUCED = ("clean", "poisoned", "control")  # of a reproduction; the control is random noise
LABELS = {
    "attack.procedure": "poison made against procedure",
    "procedure": "victims trained with",
    "attack.surrogate": "poison made on architecture",
    "architecture": "architecture of the victims",
    "attack.sigma": "poison made for σ",
    "sigma": "σ of the victims",
    "threat.epsilon": "ε (L∞)",
    "attack.name": "attack",
    "threat.poison_fraction": "poison fraction",
    "threat.target_class": "target class",
}


def make(
    kind: str,
    *,
    preset: str = "quick",
    overrides: tuple[str, ...] | list[str] = (),
    rows: str | None = None,
    columns: str | None = None,
) -> Study:
    """A study of one of KINDS around a preset.

    Args:
        overrides: "field=value", for every cell.
        rows, columns: "field=v1,v2,…" in place of the kind's own axes.
    Raises: ConfigError.
    """
    if kind not in KINDS:
        raise ConfigError(f"a kind of study is one of {', '.join(KINDS)}, got {kind!r}")
    found, base = KINDS[kind], presets.find_preset(preset).config
    base = with_overrides(base, [_ONE_CONTROL, *overrides])
    axes = {"rows": _parsed(rows) if rows else found.rows, "columns": _parsed(columns) if columns else found.columns}
    if kind == "rivals":  # other columns shall not move the attack too
        if base.attack.procedure is None:
            base = with_overrides(base, [f"attack.procedure={base.procedure.model_dump_json()}"])
        if base.attack.sigma is None and axes["columns"][0] == "sigma":
            base = with_overrides(base, [f"attack.sigma={base.sigma}"])
    chosen = {name: axis(*values, base=base, preset=preset) for name, values in axes.items()}
    return checked(kind=kind, base=base, **chosen)


def axis(field: str, values: tuple[Any, ...] | None, *, base: Config, preset: str) -> Axis:
    """The axis on which one field takes these values, or those that suit the base. Raises: ConfigError."""
    if field not in field_names():
        raise ConfigError(f"there is no field {field!r}; the fields are {', '.join(field_names())}")
    if values is None:
        values = _default_values(field, base, preset)
    if not values:
        raise ConfigError(f"an axis is field=v1,v2,…, got no value for {field}")
    return Axis(label=LABELS.get(field, field), points=tuple(_point(field, value, base, preset) for value in values))


def _default_values(field: str, base: Config, preset: str) -> tuple[Any, ...]:
    leaf = field.rpartition(".")[2]
    if leaf == "procedure":
        return tuple(presets.family(preset, base.sigma))
    if leaf in ("surrogate", "architecture"):
        return _SMALL if base.dataset in ("mnist", "digits") else _LARGE
    if leaf == "sigma":
        return paper.SIGMAS["cifar10" if base.dataset == "cifar10" else "mnist"]
    beside_each = "none", "random-noise"  # the clean arm and the control
    return tuple(name for name in get_args(AttackName) if name not in (*beside_each, "from-file"))


def _parsed(text: str) -> tuple[str, tuple[Any, ...]]:
    """ "field=v1,v2" as (field, values); a value is JSON or a plain word, and all may be one JSON list."""
    field, equals, listed = text.partition("=")
    if not equals:
        raise ConfigError(f"an axis is field=v1,v2,…, got {text!r}")
    if listed.startswith("["):
        try:
            return field, tuple(json.loads(listed))
        except ValueError as error:
            raise ConfigError(f"the values of {field} are no JSON list: {error}") from None
    return field, tuple(_value(part.strip()) for part in listed.split(",") if part.strip())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _point(field: str, value: Any, base: Config, preset: str) -> Point:
    """A value of a field; a procedure brings along what the preset of its name changes for its side of the game.

    In the authors' settings a victims' σ brings what depends on it.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    known = presets.family(preset, base.sigma)
    if field == "sigma" and isinstance(value, int | float):
        victims = presets.victims_at(preset, value)
        asked_otherwise = base.procedure != PRESETS[preset].config.procedure
        brings = [] if asked_otherwise or victims == base.procedure else [f"procedure={victims.model_dump_json()}"]
        return Point(name=text, overrides=(f"{field}={text}", *brings))
    if field.rpartition(".")[2] != "procedure" or value not in list(known):
        name = value["name"] if isinstance(value, dict) and "name" in value else text
        return Point(name=name, overrides=(f"{field}={text}",))
    tuned, own = known[value], PRESETS[preset].config
    if field == "procedure":
        procedure, section = tuned.procedure, "training."
    else:  # a preset's attacker may train otherwise than its victims
        procedure, section = lower_level(own if value == own.procedure.name else tuned)[0], "attack."
    reference = known.get(own.procedure.name, next(iter(known.values())))
    changes = [change for change in differences(reference, tuned) if change.startswith(section)]
    others = tuple(change for change in changes if not change.startswith(("attack.procedure", "attack.sigma")))
    if section == "attack." and len({each.training.augmentation for each in known.values()}) > 1:
        others += (f"attack.augmentation={tuned.training.augmentation}",)  # not that of the column's victims
    return Point(name=value, overrides=(f"{field}={procedure.model_dump_json()}", *others))


def reproduction(
    procedures: list[str],
    datasets: list[str],
    sigmas: list[float] | None = None,
    *,
    arms: Sequence[str] = REPRODUCED,
    scale: str = "full",
    seeds: int = 1,
    victims: int | None = None,
    overrides: tuple[str, ...] | list[str] = (),
) -> Study:
    """The paper's table: a row per procedure, data set and sigma, a column per seed of the whole protocol.

    Args:
        sigmas: the paper's grid for each data set if None.
        arms: any of REPRODUCED; clean victims are trained in any case, since drops are relative to them.
        scale: "full", the authors' setting, or "small", for CPUs (presets.small).
        victims: victims for each arm, the setting's own number if None.
    Raises: ConfigError.
    """
    if scale not in ("full", "small"):
        raise ConfigError(f"--scale is full or small, got {scale!r}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if not arms or not set(arms) <= set(REPRODUCED):
        raise ConfigError(f"--arms is any of {', '.join(REPRODUCED)}, got {','.join(arms) or 'nothing'}")
    setting = paper.paper if scale == "full" else presets.small
    more = [_ONE_CONTROL if {"poisoned", "control"} <= set(arms) else "controls=[]"]
    if "poisoned" not in arms:
        more += ["attack.name=random-noise" if "control" in arms else "attack.name=none"]
    more = [*more, *([] if victims is None else [f"victim_seeds={victims}"]), *overrides]
    wanted = {}
    for dataset in datasets:
        for procedure in procedures:
            for sigma in paper.SIGMAS.get(dataset, (0.25,)) if sigmas is None else sigmas:
                config = with_overrides(setting(procedure, dataset, sigma), more)
                images = config.dataset.removeprefix(FOLDER)  # a folder of one's own may take the place of a data set
                wanted[f"{procedure}, {images}, σ = {sigma:g}"] = config
    if not wanted:
        raise ConfigError("there is nothing to reproduce: name at least one procedure, data set and sigma")
    base = next(iter(wanted.values()))
    rows = [Point(name=name, overrides=tuple(differences(base, config))) for name, config in wanted.items()]
    columns = [Point(name=f"seed {seed}", overrides=(f"seed={seed}",)) for seed in range(seeds)]
    return checked(
        kind=f"{REPRODUCE}-{scale}",
        base=base,
        rows=Axis(label="setting", points=tuple(rows)),
        columns=Axis(label="seed of the whole protocol", points=tuple(columns)),
    )
