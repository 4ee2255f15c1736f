"""The configuration's procedures: names, settings of their own, and what the attacker assumes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.choices import PROCEDURES
from engine.config import ConfigError, ProcedureConfig, attackers_augmentation, lower_level, poison_depends_on
from engine.overrides import differences, parse, with_overrides
from tests.configuring import CONFIG, changed, complaint

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)


@pytest.mark.parametrize("name", list(PROCEDURES))
@pytest.mark.parametrize("where", ["procedure", "attack.procedure"])
def test_a_procedures_name_stands_for_it_with_its_own_settings_by_default(name, where):
    found = parse(changed(where, name))
    procedure = found.procedure if where == "procedure" else found.attack.procedure
    assert procedure is not None
    given = PROCEDURES[name]
    assert procedure.model_dump() == dict.fromkeys(ProcedureConfig.model_fields, 0) | given | {"name": name}
    assert parse(changed(where, {"name": name})) == parse(changed(where, {"name": name, **given})) == found


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_a_procedure_takes_its_own_settings_and_no_others(name):
    for setting in ProcedureConfig.model_fields:
        values = changed("procedure", {"name": name, setting: 1})
        if setting in PROCEDURES[name]:
            assert getattr(parse(values).procedure, setting) == 1
        elif setting != "name":
            assert f"procedure {name} takes no {setting}" in complaint(values)
            values["procedure"][setting] = 0
            assert parse(values) == parse(changed("procedure", name))


@pytest.mark.parametrize("procedure", ["sgd", {"name": "sgd"}])
def test_a_procedure_that_does_not_exist_is_refused_with_those_that_do(procedure):
    for where in ("procedure", "attack.procedure"):
        message = complaint(changed(where, procedure))
        assert f"a procedure is one of {', '.join(PROCEDURES)}" in message
        assert "'sgd'" in message


@pytest.mark.parametrize("procedure", [5, [], None, {}, {"draws": 2}])
def test_a_procedure_that_is_none_is_refused(procedure):
    assert complaint(changed("procedure", procedure)).startswith("procedure")


def test_noise_draws_must_be_at_least_one_where_there_are_any():
    assert "needs draws of at least 1" in complaint(changed("procedure.draws", 0))
    assert parse(changed("procedure", "standard")).procedure.draws == 0


def test_a_procedures_settings_can_follow_its_name_among_overrides_and_another_name_forgets_them():
    found = with_overrides(CONFIG, ["procedure=macer", "procedure.draws=8"])
    assert found.procedure == ProcedureConfig(name="macer", draws=8)
    assert with_overrides(found, ["procedure.weight=2"]).procedure == ProcedureConfig(name="macer", draws=8, weight=2)
    assert with_overrides(found, ["procedure=smoothadv"]).procedure == ProcedureConfig(name="smoothadv")
    with pytest.raises(ConfigError, match="procedure gaussian takes no weight"):
        with_overrides(CONFIG, ["procedure.weight=2"])


def test_what_the_attacker_assumes_is_the_victims_procedure_and_sigma_unless_said_otherwise():
    assert CONFIG.attack.procedure is None
    assert lower_level(CONFIG) == (CONFIG.procedure, CONFIG.sigma)
    other = with_overrides(CONFIG, ["attack.procedure=macer", "attack.procedure.draws=4", "attack.sigma=1"])
    assert lower_level(other) == (ProcedureConfig(name="macer", draws=4), 1.0)
    assert with_overrides(other, ["attack.procedure=null", "attack.sigma=null"]) == CONFIG
    with pytest.raises(ConfigError, match=r"draws cannot be set before attack\.procedure, which is null"):
        with_overrides(CONFIG, ["attack.procedure.draws=4"])


@quickly
@given(st.data())
def test_every_procedure_with_settings_of_its_own_comes_back_from_its_text(data):
    name = data.draw(st.sampled_from(list(PROCEDURES)))
    numbers = {"draws": st.integers(1, 64), "adversary_steps": st.integers(0, 100), "warmup": st.floats(0, 1)}
    given = {setting: data.draw(numbers.get(setting, st.floats(0, 100))) for setting in PROCEDURES[name]}
    typed = [f"procedure={name}", *(f"procedure.{setting}={value!r}" for setting, value in given.items())]
    config = with_overrides(CONFIG, typed)
    assert config.procedure.model_dump(include=set(given)) == given
    assert parse(json.loads(config.canonical())) == config


def test_an_attacker_that_assumes_the_victims_augmentation_is_the_same_configuration_as_ever() -> None:
    assert "augmentation" not in CONFIG.model_dump()["attack"]
    other = with_overrides(CONFIG, ["attack.augmentation=crop-flip"])
    assert (attackers_augmentation(CONFIG), attackers_augmentation(other)) == ("none", "crop-flip")
    assert differences(CONFIG, other) == ['attack.augmentation="crop-flip"']
    assert differences(other, CONFIG) == ["attack.augmentation=null"]
    assert with_overrides(other, ["attack.augmentation=null"]) == CONFIG
    victims = with_overrides(CONFIG, ["training.augmentation=crop-flip"])
    assert poison_depends_on(victims) == poison_depends_on(other) != poison_depends_on(CONFIG)
