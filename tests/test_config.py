"""The configuration: what it accepts, what it says about what it does not, and that its id stays its id."""

import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.choices import PROCEDURES
from engine.config import ConfigError, arms_of, smallest_useful_n
from engine.overrides import field_names, parse, with_overrides
from engine.presets import PRESETS
from engine.records import run_id
from tests.configuring import CONFIG, VALUES, changed, complaint

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)

# of each number: what is still allowed, and what no longer is
BOUNDS: dict[str, tuple[list[float], list[float]]] = {
    "sigma": ([1e-9, 4], [0, -0.1, 4.001]),
    "threat.target_class": ([0, 9], [-1, 1000, 1.5]),
    "threat.epsilon": ([0, 1], [-1e-9, 1.001]),
    "threat.poison_fraction": ([0, 1], [-1e-9, 1.001]),
    "threat.attacker_share": ([1e-9, 1], [0, -0.1, 1.001]),
    "procedure.draws": ([1, 64], [-1, 65, 1.5]),
    "procedure.weight": ([0], [-1e-9]),
    "procedure.adversary_steps": ([0], [-1, 101, 1.5]),
    "procedure.adversary_size": ([0], [-1e-9]),
    "procedure.warmup": ([0], [-1e-9, 1.001]),
    "attack.procedure.draws": ([1, 64], [-1, 65, 1.5]),
    "attack.procedure.weight": ([0], [-1e-9]),
    "attack.procedure.adversary_steps": ([0], [-1, 101, 1.5]),
    "attack.procedure.adversary_size": ([0], [-1e-9]),
    "attack.procedure.warmup": ([0], [-1e-9, 1.001]),
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
    "training.weight_decay": ([0], [-1e-9]),
    "training.fine_tune_epochs": ([0, 1000], [-1, 1001, 1.5]),
    "certification.target_images": ([1], [0, 1.5]),
    "certification.other_images": ([1], [0, 1.5]),
    "certification.n0": ([1], [0, 1.5]),
    "certification.n": ([10, 1_000_000], [0, 1_000_001, 99.5]),
    "certification.alpha": ([1e-6, 0.49], [0, -0.1, 0.5]),
    "victim_seeds": ([1, 100], [0, 101, 1.5]),
    "seed": ([0, 2**63 - 1], [-1, 2**63, 1.5]),
}
CHOICES = {
    "protocol_version": [0, 1, 2, "three"],
    "dataset": [1],
    "architecture": ["resnet", None],
    "attack.name": ["fgsm", None],
    "attack.augmentation": ["crop"],
    "attack.surrogate": ["resnet"],
    "attack.linear_solver": ["sgd"],
    "attack.poison_moments": ["pixel", None],
    "attack.fixed_lower_noise": ["perhaps", 2],
    "attack.fixed_upper_noise": ["perhaps", 2],
    "training.schedule": ["cosine", True],
    "training.precision": ["half", 16],
    "training.squeezing": ["blur", 1],
    "attack.file": [1],
    "training.optimiser": ["lion"],
    "training.augmentation": ["mixup"],
}
ELSEWHERE = [
    "procedure",
    "attack.procedure",
    "attack.sigma",
    "controls",
]  # tested on their own, below and in test_config_procedures


def test_a_configuration_comes_back_from_its_own_text():
    assert parse(json.loads(CONFIG.canonical())) == CONFIG
    assert parse(json.loads(CONFIG.canonical())).canonical() == CONFIG.canonical()
    assert parse(CONFIG.model_dump()) == CONFIG


def test_the_id_of_a_configuration_stays_what_it_was():
    """Golden: a new field, a new default or another way of writing would orphan every finished run."""
    assert hashlib.sha256(CONFIG.canonical().encode()).hexdigest()[:16] == "715e5029ee715289"
    assert run_id(CONFIG) == "715e5029ee715289"


def test_the_id_depends_neither_on_the_order_of_fields_nor_on_defaults_spelt_out_nor_on_ints_for_floats():
    reordered = {key: VALUES[key] for key in reversed(VALUES)}
    reordered["threat"] = {"poison_fraction": 1, "epsilon": 0.1, "target_class": 8}
    reordered["procedure"] = {"draws": 1, "name": "gaussian", "weight": 0}
    reordered["seed"] = 0
    assert parse(reordered).canonical() == CONFIG.canonical()


@quickly
@given(
    st.floats(1e-3, 4),
    st.floats(0, 1),
    st.integers(0, 2**63 - 1),
    st.integers(100, 1037),
    st.sampled_from(list(PROCEDURES)),
)
def test_every_configuration_comes_back_from_its_text_and_another_one_has_another_text(
    sigma, epsilon, seed, train_size, procedure
):
    config = with_overrides(
        CONFIG,
        [
            f"sigma={sigma!r}",
            f"threat.epsilon={epsilon!r}",
            f"seed={seed}",
            f"data.train_size={train_size}",
            f"procedure={procedure}",
        ],
    )
    assert (config.sigma, config.threat.epsilon, config.seed) == (sigma, epsilon, seed)
    assert (config.data.train_size, config.procedure.name) == (train_size, procedure)
    assert parse(json.loads(config.canonical())) == config
    assert (config == CONFIG) == (config.canonical() == CONFIG.canonical())


def test_the_bounds_below_cover_every_field():
    assert sorted([*BOUNDS, *CHOICES, *ELSEWHERE]) == sorted(field_names())


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


@pytest.mark.parametrize(
    "overrides",
    [["attack.name=from-file"], ["attack.file=" + "0" * 63], ["attack.name=universal", "attack.file=" + "a" * 64]]
    + [["attack.name=from-file", f"attack.file={file}"] for file in ("poison.npz", '"' + "0" * 63 + '"', "A" * 64)],
)
def test_a_poison_file_belongs_to_the_attacks_from_a_file_and_pacd_and_to_no_other(overrides):
    with pytest.raises(ConfigError, match="attack from-file, that or empty for pacd"):
        with_overrides(CONFIG, overrides)
    for attack in ("from-file", "pacd"):
        with_overrides(CONFIG, [f"attack.name={attack}", "attack.file=" + "0" * 64])


@pytest.mark.parametrize(
    "field",
    [
        "dataset",
        "procedure",
        "sigma",
        "victim_seeds",
        "threat.epsilon",
        "attack.damping",
        "data.train_size",
        "training.schedule",
        "certification.n",
    ],
)
def test_a_field_without_a_default_must_be_given(field):
    values = json.loads(json.dumps(VALUES))
    *path, last = field.split(".")
    part = values
    for key in path:
        part = part[key]
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


@pytest.mark.parametrize(("dataset", "images"), [("digits", 1437), ("mnist", 60_000), ("cifar10", 50_000)])
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
        CONFIG, ["sigma=0.5", "attack.linear_solver=adam", 'dataset="digits"', "training.schedule=step"]
    )
    assert (found.sigma, found.attack.linear_solver, found.training.schedule) == (0.5, "adam", "step")
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
        ('procedure={"name":[1]}', "a procedure is one of"),
        ("sigma=" + "[" * 3000, "sigma: "),
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


# --- arms, data sets ---


@pytest.mark.parametrize(
    ("typed", "arms"),
    [
        ([], ("clean", "poisoned", "random_noise", "shuffled_signs")),
        (["controls=[]"], ("clean", "poisoned")),
        (['controls=["shuffled_signs"]'], ("clean", "poisoned", "shuffled_signs")),
        (["attack.name=none"], ("clean",)),
        (["attack.name=none", "controls=[]"], ("clean",)),
    ],
)
def test_arms_are_those_that_the_attack_and_the_controls_ask_for(typed, arms):
    assert arms_of(with_overrides(CONFIG, typed)) == arms


@pytest.mark.parametrize("field", [field for field in BOUNDS if not field.startswith("attack.procedure")])
def test_true_is_no_number(field):
    with pytest.raises(ConfigError, match=f"{field.split('.')[-1]} must be a number, got true"):
        with_overrides(CONFIG, [f"{field}=true"])


def test_a_list_is_asked_for_where_there_is_none():
    with pytest.raises(ConfigError, match=r'controls: input should be a list, as \["random_noise"\], got \'random_noi'):
        with_overrides(CONFIG, ["controls=random_noise"])


@pytest.mark.parametrize("controls", ['["random_noise", "random_noise"]', '["zeros"]', "random_noise", "null", "1"])
def test_controls_are_different_and_known(controls):
    with pytest.raises(ConfigError, match="controls"):
        with_overrides(CONFIG, [f"controls={controls}"])


@pytest.mark.parametrize("value", [0, -0.5, 4.001, math.nan, "much"])
def test_the_attackers_sigma_is_a_noise_level_or_null(value):
    assert complaint(changed("attack.sigma", value)).startswith("attack.sigma: ")
    assert parse(changed("attack.sigma", None)) == CONFIG


@pytest.mark.parametrize("name", ["cats", "cats_and-dogs.2", "-", "A" * 80])
def test_a_folder_of_images_is_a_data_set_whose_size_and_classes_are_checked_later(name):
    values = changed("dataset", f"folder:{name}") | {"threat": {"target_class": 999, "epsilon": 0.1}}
    config = parse(values)
    assert parse(json.loads(config.canonical())) == config


@pytest.mark.parametrize(
    "name",
    ["imagenet", "", "MNIST", "mnist\n", "folder:", "folder:.hidden", "folder:a/b", "folder:a b", "folder:ünïcode ☃"],
)
def test_a_name_that_no_data_set_can_have_is_refused_in_words(name):
    assert complaint(VALUES | {"dataset": name}) == (
        "dataset must be mnist, digits, cifar10 or folder:NAME, where NAME has only letters a-z and A-Z, digits, _, - "
        f"and ., and does not begin with a dot, got {name!r}"
    )


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_a_class_that_the_data_set_does_not_have_is_refused(dataset):
    values = VALUES | {"dataset": dataset, "threat": {"target_class": 10, "epsilon": 0.1}}
    assert complaint(values) == f"threat.target_class must be less than 10 for {dataset}, got 10"
