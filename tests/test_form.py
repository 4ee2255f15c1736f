"""What the form of a run says of settings that cannot be run, without its page."""

import pytest

from engine.config import ConfigError
from engine.overrides import with_overrides
from engine.presets import PRESETS
from pages import _form


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["threat.epsilon=-1"], "Budget ε must be a number between 0 and 1, got -1"),
        (["seed=-1"], "Seed must be a whole number between 0 and 9,223,372,036,854,775,807, got -1"),
        (["procedure.draws=99"], "Noise draws per image must be a whole number between 0 and 64, got 99"),
        (
            ["data.validation_size=5000"],
            "Training images + Held-out images must be at most 1437 for digits, got 5800",
        ),
        (
            ["attack.procedure.draws=2"],
            "Noise draws per image it assumes cannot be set before Procedure it assumes, which is null: "
            "set Procedure it assumes first",
        ),
        (["procedure=evil"], "a procedure is one of standard, "),  # the word, not the field
        (["threat.epsilon=7", "sigma=9"], "up to 4, got 9; Budget ε must be a number"),
    ],
)
def test_every_field_that_a_message_names_goes_by_its_label(typed: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_overrides(PRESETS["smoke"].config, typed)
    assert said in _form.in_words(refused.value)
