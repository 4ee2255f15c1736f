"""The configuration: what it accepts, what it says about what it does not, and that its id stays its id."""

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.config import ConfigError, field_names, parse, smallest_useful_n, with_overrides
from engine.presets import PRESETS
from engine.records import run_id

VALUES: dict[str, Any] = {
    "dataset": "digits",
    "architecture": "lenet-narrow",
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
    "training": {"epochs": 4, "batch_size": 40, "learning_rate": 0.003, "decay": True},
    "certification": {"target_images": 20, "other_images": 2, "n0": 20, "n": 100, "alpha": 0.001},
    "victim_seeds": 2,
}
CONFIG = parse(VALUES)
quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)

# of each number: what is still allowed, and what no longer is
BOUNDS: dict[str, tuple[list[float], list[float]]] = {
    "sigma": ([1e-9, 4], [0, -0.1, 4.001]),
    "threat.target_class": ([0, 9], [-1, 10, 1.5]),
    "threat.epsilon": ([0, 1], [-1e-9, 1.001]),
    "threat.poison_fraction": ([0, 1], [-1e-9, 1.001]),
    "data.train_size": ([100, 1037], [99, 60_001, 800.5]),
    "data.validation_size": ([50, 637], [49, 20_001, 400.5]),
    "attack.upper_steps": ([1, 100_000], [0, 100_001, 1.5]),
    "attack.restart_every": ([1], [0, 1.5]),
    "attack.warmup_steps": ([0], [-1, 1.5]),
    "attack.lower_steps": ([1], [0, 1.5]),
    "attack.linear_steps": ([1], [0, 1.5]),
    "attack.damping": ([1e-12], [0, -1]),
    "attack.clean_batch": ([1], [0, 1.5]),
    "attack.poison_batch": ([1], [0, 1.5]),
    "attack.upper_batch": ([1], [0, 1.5]),
    "attack.upper_noise": ([1], [0, 1.5]),
    "attack.weights_learning_rate": ([1e-12], [0, -1]),
    "attack.linear_learning_rate": ([1e-12], [0, -1]),
    "attack.poison_learning_rate": ([1e-12], [0, -1]),
    "attack.inverse_temperature": ([1e-12], [0, -1]),
    "attack.squeeze": ([1e-6, 0.49], [0, -1, 0.5]),
    "training.epochs": ([1, 1000], [0, 1001, 1.5]),
    "training.batch_size": ([1, 800], [0, 1.5]),
    "training.learning_rate": ([1e-12], [0, -1]),
    "certification.target_images": ([1], [0, 1.5]),
    "certification.other_images": ([1], [0, 1.5]),
    "certification.n0": ([1], [0, 1.5]),
    "certification.n": ([10, 1_000_000], [0, 1_000_001, 99.5]),
    "certification.alpha": ([1e-6, 0.49], [0, -0.1, 0.5]),
    "victim_seeds": ([1, 100], [0, 101, 1.5]),
    "seed": ([0, 2**63 - 1], [-1, 2**63, 1.5]),
}
CHOICES = {
    "protocol_version": [0, 2, "one"],
    "dataset": ["cifar10", "", "MNIST", 1],
    "architecture": ["resnet", None],
    "procedure": ["macer", "smoothadv"],
    "attack.surrogate": ["resnet"],
    "attack.linear_solver": ["sgd"],
    "training.decay": ["perhaps", 2],
}


def changed(field: str, value: Any) -> dict[str, Any]:
    """VALUES with one dotted field replaced."""
    values = json.loads(json.dumps(VALUES))
    *path, last = field.split(".")
    part = values
    for key in path:
        part = part[key]
    part[last] = value
    return values


def complaint(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_configuration_comes_back_from_its_own_text():
    assert parse(json.loads(CONFIG.canonical())) == CONFIG
    assert parse(json.loads(CONFIG.canonical())).canonical() == CONFIG.canonical()
    assert parse(CONFIG.model_dump()) == CONFIG


def test_the_id_of_a_configuration_stays_what_it_was():
    """Golden: a new field, a new default or another way of writing would orphan every finished run."""
    assert hashlib.sha256(CONFIG.canonical().encode()).hexdigest()[:16] == "4cb6caefbf0235eb"
    assert run_id(CONFIG) == "4cb6caefbf0235eb"


def test_the_id_depends_neither_on_the_order_of_fields_nor_on_defaults_spelt_out_nor_on_ints_for_floats():
    reordered = {key: VALUES[key] for key in reversed(VALUES)}
    reordered["threat"] = {"poison_fraction": 1, "epsilon": 0.1, "target_class": 8}
    reordered["seed"] = 0
    assert parse(reordered).canonical() == CONFIG.canonical()


@quickly
@given(st.floats(1e-3, 4), st.floats(0, 1), st.integers(0, 2**63 - 1), st.integers(100, 1037), st.booleans())
def test_every_configuration_comes_back_from_its_text_and_another_one_has_another_text(
    sigma, epsilon, seed, train_size, decay
):
    config = with_overrides(
        CONFIG,
        [
            f"sigma={sigma!r}",
            f"threat.epsilon={epsilon!r}",
            f"seed={seed}",
            f"data.train_size={train_size}",
            f"training.decay={json.dumps(decay)}",
        ],
    )
    assert (config.sigma, config.threat.epsilon, config.seed) == (sigma, epsilon, seed)
    assert (config.data.train_size, config.training.decay) == (train_size, decay)
    assert parse(json.loads(config.canonical())) == config
    assert (config == CONFIG) == (config.canonical() == CONFIG.canonical())


def test_the_bounds_below_cover_every_field():
    assert sorted([*BOUNDS, *CHOICES]) == sorted(field_names())


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (allowed, _) in BOUNDS.items() for v in allowed])
def test_the_ends_of_a_range_are_allowed(field, value):
    parse(changed(field, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f, (_, refused) in BOUNDS.items() for v in [*refused, math.nan, math.inf, -math.inf, None, "much"]]
    + [(f, v) for f, refused in CHOICES.items() for v in refused],
)
def test_a_value_out_of_bounds_is_refused_in_one_line_that_names_field_and_value(field, value):
    message = complaint(changed(field, value))
    assert message.startswith(f"{field}: ")
    assert repr(value) in message


@pytest.mark.parametrize("field", [f for f in field_names() if f.count(".") or f in ("dataset", "sigma")])
def test_a_field_without_a_default_must_be_given(field):
    values = json.loads(json.dumps(VALUES))
    *path, last = field.split(".")
    part = values
    for key in path:
        part = part[key]
    if last in part:
        del part[last]
        assert complaint(values) == f"{field}: field required"


def test_a_field_that_does_not_exist_is_refused_with_those_that_do():
    for field in ("sigma_train", "attack.momentum"):
        message = complaint(changed(field, 1))
        assert message.startswith(f"there is no field {field}; the fields are ")
        assert "threat.epsilon" in message


def test_all_that_is_wrong_is_said_at_once():
    message = complaint(changed("sigma", -1) | {"victim_seeds": 0})
    assert "sigma: " in message
    assert "victim_seeds: " in message


@pytest.mark.parametrize("part", [5, None, [], "text"])
def test_a_part_that_is_no_mapping_is_named(part):
    assert complaint(VALUES | {"threat": part}).startswith("threat: ")


def test_too_few_draws_to_certify_anything_are_refused_with_the_number_that_is_enough():
    assert "certification.n must be at least 10 at alpha = 0.001, got 9" in complaint(changed("certification.n", 9))


@quickly
@given(st.floats(1e-12, 0.49) | st.integers(2, 39).map(lambda k: 0.5**k))
def test_the_fewest_useful_draws_are_just_enough(alpha):
    n = smallest_useful_n(alpha)
    assert alpha ** (1 / n) > 0.5
    assert n == 1 or alpha ** (1 / (n - 1)) <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize(("dataset", "images"), [("digits", 1437), ("mnist", 60_000)])
def test_more_images_than_the_data_set_has_are_refused(dataset, images):
    values = VALUES | {"dataset": dataset, "data": {"train_size": images - 400, "validation_size": 400}}
    parse(values)
    values["data"] = {"train_size": images - 400, "validation_size": 401}
    assert (
        f"data.train_size + data.validation_size must be at most {images} for {dataset}, got {images + 1}"
        in complaint(values)
    )


def test_a_batch_larger_than_the_training_set_is_refused():
    expected = "training.batch_size must be at most data.train_size = 800, got 801"
    assert complaint(changed("training.batch_size", 801)) == expected


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.sigma = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.threat.epsilon = 0.2


def test_overrides_replace_single_fields_and_leave_the_original():
    found = with_overrides(
        CONFIG, ["sigma=0.5", "attack.linear_solver=adam", 'dataset="digits"', "training.decay=false"]
    )
    assert (found.sigma, found.attack.linear_solver, found.training.decay) == (0.5, "adam", False)
    assert found.attack.upper_steps == CONFIG.attack.upper_steps
    assert parse(VALUES) == CONFIG
    assert with_overrides(CONFIG, []) == CONFIG


def test_the_last_of_two_overrides_counts():
    assert with_overrides(CONFIG, ["sigma=0.5", "sigma=1"]).sigma == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sigma", "an override is field=value, got 'sigma'"),
        ("", "an override is field=value, got ''"),
        ("sigm=1", "there is no field 'sigm'; the fields are protocol_version, dataset"),
        ("threat={}", "there is no field 'threat'"),
        ("attack.=1", "there is no field 'attack.'"),
        ("=1", "there is no field ''"),
        ("sigma=", "sigma: "),
        ("sigma=NaN", "sigma: "),
        ("sigma=Infinity", "sigma: "),
        ("threat.epsilon=1e999", "threat.epsilon: "),
        ("seed=[1", "seed: "),
        ("seed=null", "seed: "),
        ('dataset={"a": "b\\nc"}', "dataset: "),
        ("certification.n=5", "certification.n must be at least 10"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused_in_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        with_overrides(CONFIG, [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_configuration_that_could_have_been_typed(name):
    preset = PRESETS[name]
    assert preset.name == name
    assert parse(json.loads(preset.config.canonical())) == preset.config
    assert preset.departs
