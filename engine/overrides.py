"""Configurations from what somebody gives: values, or "field=value" over another; and what differs between two."""

import json
from functools import cache
from operator import attrgetter
from typing import Any, get_args

from pydantic import ValidationError

from engine.config import Config, ConfigError, ProcedureConfig, Settings


def parse(values: dict[str, Any]) -> Config:
    """A validated configuration. Raises: ConfigError, one line, naming field, what is allowed, and what was given."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(problem) for problem in error.errors())) from None


def _in_words(problem: Any) -> str:
    field = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"there is no field {field}; the fields are {', '.join(field_names())}"
    if problem["type"] == "value_error":
        return message
    if problem["type"] == "tuple_type":
        message = 'input should be a list, as ["random_noise"]'
    message = message[0].lower() + message[1:]
    return f"{field}: {message}" if problem["type"] == "missing" else f"{field}: {message}, got {problem['input']!r}"


@cache
def field_names(settings: type[Settings] = Config, prefix: str = "") -> tuple[str, ...]:
    """All fields, dotted, as --set takes them. A procedure is set by its name; its settings follow from that."""
    names: list[str] = []
    for name, field in settings.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        nested = next((kind for kind in kinds if issubclass(kind, Settings)), None)
        if nested is None or nested is ProcedureConfig:
            names.append(prefix + name)
        if nested is not None:
            inner = field_names(nested, f"{prefix}{name}.")
            names += [each for each in inner if not each.endswith("procedure.name")]
    return tuple(names)


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """The configuration with dotted fields replaced, each given as "field=value" (value: JSON, or a plain word).

    Raises: ConfigError.
    """
    values = config.model_dump()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"an override is field=value, got {override!r}")
        if name not in field_names():
            raise ConfigError(f"there is no field {name!r}; the fields are {', '.join(field_names())}")
        *path, last = name.split(".")
        part = values
        for depth, key in enumerate(path, start=1):
            if part[key] is None:
                outer = ".".join(path[:depth])
                raise ConfigError(f"{name} cannot be set before {outer}, which is null: set {outer} first")
            if not isinstance(part[key], dict):  # a procedure by its name
                part[key] = {"name": part[key]}
            part = part[key]
        try:
            part[last] = json.loads(text)
        except (ValueError, RecursionError):
            part[last] = text
    return parse(values)


def differences(base: Config, other: Config) -> list[str]:
    """The overrides "field=value" that make `other` of `base`."""
    inner = ("procedure.", "attack.procedure.")
    changed = []
    for name in field_names():
        if name.startswith(inner):
            continue
        before, after = (_get(config, name) for config in (base, other))
        if before != after:
            changed.append(f"{name}={json.dumps(after)}")
    return changed


def _get(config: Config, name: str) -> Any:
    value = attrgetter(name)(config)
    return value.model_dump(mode="json") if isinstance(value, Settings) else value
