"""The ABX test as the lesson asks it, in Streamlit's own harness: trials, score, settings."""

import re
from pathlib import Path

import pytest

from engine import abx
from engine.overrides import with_overrides
from pages import _images, _lesson_abx, _lesson_questions, _lesson_runs
from tests.app import EXAMPLE, button, opened, own_copy, words
from tests.test_lesson_page import PAGE, RUN, step_of

SCORE = re.compile(r"^#+ (\d+) of 10 correct", re.MULTILINE)
pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.parametrize("honest", [True, False])
def test_the_abx_test_scores_what_was_answered_and_only_at_the_end(honest: bool) -> None:
    test = opened(PAGE, step=str(step_of("Can you tell?")))
    test.number_input(key="lesson_abx_seed").set_value(5).run()
    pairs = min(60, len((RUN.tensors("poison") or {})["delta"]))
    for k, trial in enumerate(abx.trials(5, count=10, images=pairs)):
        assert f"Trial {k + 1} of 10" in words(test)
        assert not SCORE.search(words(test))
        button(test, "X is B" if trial.x_is_poisoned == honest else "X is A").click().run()
    score = SCORE.search(words(test))
    assert score is not None
    assert int(score[1]) == (10 if honest else 0)
    assert ("You can tell" in words(test)) == honest
    assert all(metric.value.endswith(" %") for metric in test.metric)
    assert not test.exception


def test_the_question_about_the_abx_test_tells_what_the_test_would() -> None:
    told = _lesson_questions.can_you_tell(RUN).because
    assert f"({100 * abx.p_value(7, 10):.0f} % of the time)" in told
    assert _lesson_abx.interval(*abx.hit_rate_interval(7, 10)) in told


def test_after_the_first_answer_only_starting_over_changes_the_abx_test(place: Path) -> None:
    own_copy(place, config=with_overrides(RUN.config, ["threat.epsilon=0.05"]))
    test = opened(PAGE, step=str(step_of("Can you tell?")), run=EXAMPLE)

    def settings() -> list[bool]:
        found = [test.number_input(key="lesson_abx_seed")]
        return [each.disabled for each in found + [test.segmented_control(key=key) for key in keys]]

    keys = [f"lesson_abx_{name}" for name in ("epsilon", "count", "size")]
    assert settings() == [False] * 4
    button(test, "X is A").click().run()
    assert "Trial 2 of 10" in words(test)
    assert settings() == [True, True, True, False]
    seed = test.number_input(key="lesson_abx_seed").value
    button(test, "Start over").click().run()
    assert "Trial 1 of 10" in words(test)
    assert settings() == [False] * 4
    assert test.number_input(key="lesson_abx_seed").value != seed


def test_the_abx_test_offers_runs_that_differ_in_epsilon_alone(place: Path) -> None:
    own_copy(place, config=with_overrides(RUN.config, ["threat.epsilon=0.05"]))
    own_copy(place, config=with_overrides(RUN.config, ["threat.epsilon=0.2", "seed=3"]))
    assert list(_lesson_runs.by_epsilon(RUN)) == [0.05, 0.1]
    test = opened(PAGE, step=str(step_of("Can you tell?")), run=EXAMPLE)
    test.segmented_control(key="lesson_abx_epsilon").set_value(0.05).run()
    assert not test.exception
    assert "Trial 1 of 10" in words(test)


def test_the_abx_test_can_show_an_epsilon_of_zero(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing, shown = own_copy(place, config=with_overrides(RUN.config, ["threat.epsilon=0"])), []
    found = _images.training_images
    monkeypatch.setattr(_images, "training_images", lambda run, places: shown.append(run.id) or found(run, places))
    test = opened(PAGE, step=str(step_of("Can you tell?")), run=EXAMPLE)
    test.segmented_control(key="lesson_abx_epsilon").set_value(0.0).run()
    assert not test.exception
    assert shown[-1] == nothing.id
