"""A small configuration as it is typed, with one field replaced, and what is said of one that is wrong."""

import json
from typing import Any

import pytest

from engine.config import ConfigError
from engine.overrides import parse

VALUES: dict[str, Any] = {
    "dataset": "digits",
    "architecture": "lenet-narrow",
    "procedure": "gaussian",
    "sigma": 0.25,
    "threat": {"target_class": 8, "epsilon": 0.1},
    "data": {"train_size": 800, "validation_size": 400},
    "attack": {
        "surrogate": "lenet-narrow",
        "upper_steps": 12,
        "restart_every": 12,
        "lower_steps": 3,
        "linear_steps": 1,
        "linear_solver": "cg",
        "damping": 0.001,
        "clean_batch": 60,
        "poison_batch": 40,
        "upper_batch": 50,
        "upper_noise": 10,
        "weights_learning_rate": 0.001,
        "linear_learning_rate": 0.01,
        "poison_learning_rate": 0.1,
    },
    "training": {"epochs": 4, "batch_size": 40, "learning_rate": 0.003, "schedule": "linear"},
    "certification": {"target_images": 20, "other_images": 2, "n0": 20, "n": 100, "alpha": 0.001},
    "victim_seeds": 2,
}
CONFIG = parse(VALUES)


def changed(field: str, value: Any) -> dict[str, Any]:
    """VALUES with one dotted field replaced."""
    values = json.loads(json.dumps(VALUES))
    *path, last = field.split(".")
    part = values
    for key in path:
        part[key] = {"name": "gaussian"} if part.get(key) in (None, "gaussian") else part[key]
        part = part[key]
    part[last] = value
    return values


def complaint(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(values)
    message = str(caught.value)
    assert "\n" not in message
    return message
