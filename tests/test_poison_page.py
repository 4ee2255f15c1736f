"""The Poison page: every field, every preset, links, beliefs, threat cards, folders of images, the live view."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import records
from engine.overrides import field_names, with_overrides
from engine.presets import PRESETS
from engine.records import Run
from engine.report import commands, sentences, wording
from engine.status import Status
from pages import _form, _live
from tests.app import button, opened, own_copy, words

pytestmark = pytest.mark.usefixtures("place")


def test_poison_offers_every_field_of_the_configuration() -> None:
    test = opened("pages/poison.py")
    assert [name for name in field_names() if f"field {name}" not in test.session_state] == ["protocol_version"]


def test_poison_submits_what_the_form_says_and_prints_the_same_command(submitted: list[Any]) -> None:
    test = opened("pages/poison.py")
    test.selectbox(key="preset").set_value("smoke").run()
    test.number_input(key="field threat.epsilon").set_value(0.05).run()
    test.number_input(key="field attack.upper_steps").set_value(7).run()
    assert "python -m engine run --preset smoke --set threat.epsilon=0.05 --set attack.upper_steps=7" in words(test)
    button(test, "Start poisoning").click().run()
    wanted = with_overrides(PRESETS["smoke"].config, ["threat.epsilon=0.05", "attack.upper_steps=7"])
    assert submitted == [wanted]
    assert test.session_state["run"] == records.run_id(wanted)
    assert not test.exception


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_filled_into_the_form_and_read_out_of_it_unchanged(name: str) -> None:
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in commands.values_of(PRESETS[name].config).items()
    }
    assert _form.changes(values, PRESETS[name].config) == []
    for other in PRESETS.values():  # what the form of one preset prints on top of another gives the same again
        assert with_overrides(other.config, _form.changes(values, other.config)) == PRESETS[name].config


def test_the_order_of_controls_is_part_of_what_was_asked_for() -> None:
    turned = with_overrides(PRESETS["smoke"].config, ['controls=["shuffled_signs","random_noise"]'])
    changed = commands.changes(commands.values_of(turned), PRESETS["smoke"].config)
    assert with_overrides(PRESETS["smoke"].config, changed) == turned


def test_a_preset_fills_the_whole_form() -> None:
    test = opened("pages/poison.py")
    for name in ("quick", "smoke", "paper-macer-mnist"):
        test.selectbox(key="preset").set_value(name).run()
        assert f"--preset {name}\n" in words(test) + "\n"  # and nothing set
        assert test.session_state["field certification.n"] == PRESETS[name].config.certification.n
        assert not test.exception


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"threat.epsilon": "99"}, "Budget ε must be"),
        ({"threat.epsilon": "NaN"}, "Budget ε must be"),
        ({"seed": "-1"}, "Seed must be"),
        ({"sigma": "1e999"}, "Noise level σ must be"),
        ({"preset": "<b>nope</b>"}, "preset"),
        ({"certification.n": "3"}, "Estimation draws n"),
        ({"dataset": "imagenet"}, "Data set"),
    ],
)
def test_a_link_with_values_out_of_range_gives_the_preset_and_a_sentence(query: dict[str, str], said: str) -> None:
    test = opened("pages/poison.py", **query)
    assert not test.exception
    assert any(said in warning.value for warning in test.warning)
    assert test.session_state["preset"] == "smoke"
    assert test.session_state["field threat.epsilon"] == PRESETS["smoke"].config.threat.epsilon


def test_a_number_that_no_field_can_hold_is_said_whatever_brings_it(place: Path) -> None:
    """A seed may be larger than a browser's number field: never another seed without a word."""
    allowed, largest = 2**53 - 1, 2**63 - 1
    said = f"numbers up to {allowed}, so the preset's value stands in for seed = {largest}."
    assert opened("pages/poison.py", preset="smoke", seed=str(allowed)).session_state["field seed"] == allowed
    linked = opened("pages/poison.py", preset="smoke", seed=str(largest))
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"seed={largest}"]))
    copied = opened("pages/poison.py", run=run.id, preset="smoke")
    assert said not in words(copied)
    for test in (linked, button(copied, "Copy its settings into the form").click().run()):
        assert not test.exception
        assert said in words(test)
        assert "python -m engine run --preset smoke\n" in words(test) + "\n"
        test.selectbox(key="preset").set_value("quick").run()
        assert said not in words(test)


def test_a_link_restores_every_field() -> None:
    test = opened("pages/poison.py", **{"preset": "smoke", "threat.target_class": "3", "attack.linear_solver": "adam"})
    assert not test.warning
    assert test.session_state["field threat.target_class"] == 3
    made = "python -m engine run --preset smoke --set threat.target_class=3 --set attack.linear_solver=adam"
    assert made in words(test)


@pytest.mark.parametrize(
    ("field", "value", "low", "high"),
    [
        ("sigma", 99.0, 0, 4),
        ("threat.epsilon", -1.0, 0, 1),
        ("victim_seeds", 0, 1, 100),
    ],
)
def test_an_impossible_number_is_refused_in_words_and_starts_nothing(
    field: str, value: Any, low: float, high: float, submitted: list[Any]
) -> None:
    """The browser knows no bounds, so that it sends what was typed, and does not go on with what was there before."""
    test = opened("pages/poison.py")
    test.number_input(key=f"field {field}").set_value(value).run()
    assert not test.exception
    label = wording.FIELD_NAMES[field].partition(" (")[0]
    (said,) = [error.value for error in test.error if f"{label} must be a" in error.value]
    assert any(f"{limit:g}" in said for limit in (low, high))
    (below,) = [below.value for below in test.markdown if f"{label} must be a" in below.value]
    assert below.startswith(":small[:red[")
    assert "Start poisoning" not in [found.label for found in test.button]
    assert submitted == []
    test.number_input(key=f"field {field}").set_value(1).run()
    assert not [below for below in test.markdown if below.value.startswith(":small[:red[")]


def test_a_link_with_nonsense_is_refused_in_the_words_of_the_form() -> None:
    test = opened("pages/poison.py", **{"preset": "smoke", "threat.epsilon": "abc"})
    assert any("Budget ε must be a number between 0 and 1, got 'abc'" in warning.value for warning in test.warning)


def test_a_configuration_that_cannot_be_run_is_explained(submitted: list[Any]) -> None:
    test = opened("pages/poison.py")
    test.selectbox(key="preset").set_value("smoke").run()
    test.number_input(key="field certification.n").set_value(5).run()
    assert any("Estimation draws n must be at least 10" in error.value for error in test.error)
    assert [below.value for below in test.markdown if "must be at least 10" in below.value]
    (marked,) = [part.label for part in test.expander if part.icon == ":material/error:"]
    assert marked == "Data, certification, seeds"
    assert "Start poisoning" not in [found.label for found in test.button]
    assert submitted == []


def test_mnist_runs_do_not_start_where_there_is_no_mnist(submitted: list[Any]) -> None:
    test = opened("pages/poison.py")
    test.selectbox(key="preset").set_value("quick").run()
    assert button(test, "Compute it here all the same").disabled  # these settings are those of an example
    assert any("not on this machine" in warning.value for warning in test.warning)


def test_a_procedure_comes_with_its_own_settings_and_no_others(submitted: list[Any]) -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert "field procedure.draws" in [found.key for found in test.number_input]
    assert "field procedure.weight" not in [found.key for found in test.number_input]
    test.selectbox(key="field procedure").set_value("macer").run()
    assert test.number_input(key="field procedure.draws").value == 16
    assert "--set procedure=macer" in words(test)
    test.number_input(key="field procedure.draws").set_value(4).run()
    assert "--set procedure=macer --set procedure.draws=4" in words(test)
    button(test, "Start poisoning").click().run()
    assert submitted == [with_overrides(PRESETS["smoke"].config, ["procedure=macer", "procedure.draws=4"])]
    test.selectbox(key="field procedure").set_value("standard").run()
    assert not test.exception
    assert "procedure.draws" not in words(test)


def test_what_the_attacker_assumes_can_differ_from_what_is_true() -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert "as victims are trained" in words(test)
    test.selectbox(key="field attack.procedure").set_value("smoothadv").run()
    test.number_input(key="field attack.procedure.draws").set_value(2).run()
    test.number_input(key="field attack.sigma").set_value(0.5).run()
    assert "--set attack.procedure=smoothadv --set attack.procedure.draws=2 --set attack.sigma=0.5" in words(test)
    assert "SmoothAdv (draws 2), σ = 0.5, LeNet, narrow (8-16-100); victims differ in procedure (Gaussian" in words(
        test
    )
    assert "and noise level (σ = 0.25), so the poison has to transfer" in words(test)
    test.selectbox(key="field attack.augmentation").set_value("crop-flip").run()
    assert "--set attack.augmentation=crop-flip" in words(test)
    assert "and augmentation (augmentation none), so the poison has to transfer" in words(test)
    test.selectbox(key="field attack.augmentation").set_value(None).run()
    test.selectbox(key="field attack.procedure").set_value(None).run()
    test.number_input(key="field attack.sigma").set_value(None).run()
    assert words(test).endswith("--preset smoke")
    assert not test.exception


def test_controls_can_be_left_out_and_the_estimate_follows() -> None:
    test = opened("pages/poison.py", preset="smoke")
    before = [metric.value for metric in test.metric]
    test.button_group(key="field controls").set_value([]).run()
    assert "--set 'controls=[]'" in words(test)
    assert "each of 2 arms" in words(test)
    test.selectbox(key="field attack.name").set_value("none").run()
    assert "one arm (clean)" in words(test)
    assert "No attack" in words(test)
    assert [metric.value for metric in test.metric] != before
    assert not test.exception


@pytest.mark.parametrize("attack", list(wording.ATTACKS))
def test_the_threat_card_fits_the_attack(attack: str) -> None:
    file = [f"attack.file={'0' * 64}"] if attack == "from-file" else []
    config = with_overrides(PRESETS["smoke"].config, [f"attack.name={attack}", *file])
    card = " ".join(sentences.threat_model(config, "ship"))
    assert ("labels are wrong" in card) == (attack == "label-flip")
    assert ("**Clean-label**" in card) == (attack not in ("label-flip", "none"))
    assert ("one and the same" in card) == (attack in ("universal", "white-pattern", "low-frequency-pattern"))
    assert ("ε = 0.1" in card) == (attack not in ("label-flip", "none"))
    assert ("surrogates" in card) == config.attack.traits.surrogates
    assert ("ship" in card) == (attack != "none")


def test_the_threat_card_tells_shares_beliefs_fine_tuning_and_missing_controls() -> None:
    typed = ["threat.attacker_share=0.25", "threat.poison_fraction=0.5", "training.fine_tune_epochs=3", "controls=[]"]
    typed += ["architecture=mlp"]
    card = " ".join(sentences.threat_model(with_overrides(PRESETS["smoke"].config, typed), "digit 8"))
    assert "25 % of the training data" in card
    assert "50 % of the training images of digit 8 in its hands" in card
    assert "fine-tuned on it for 3 epochs" in card
    assert "has to transfer" in card
    assert "**Controls**: none" in card


def test_procedures_and_controls_have_plain_names() -> None:
    from typing import get_args

    from engine import choices

    assert set(wording.PROCEDURE_NAMES) <= set(choices.PROCEDURES)
    assert wording.PROCEDURE_NAMES["brought along"] == "brought along"  # a new one needs no line here
    assert set(wording.CONTROL_NAMES) == set(get_args(choices.Control))


def test_a_folder_of_images_is_offered_with_its_class_names_and_checked(folder: Path) -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert "fruit" in test.selectbox(key="field dataset").options
    assert test.selectbox(key="field dataset").options.count("MNIST") == 1
    test.selectbox(key="field dataset").set_value("folder:fruit").run()
    assert test.selectbox(key="field threat.target_class").options == ["apple", "pear", "plum"]
    assert test.session_state["field threat.target_class"] == 0  # there is no class 8
    assert test.session_state["field data.train_size"] + test.session_state["field data.validation_size"] == 168
    assert any("Test images, target class must be at most 14" in error.value for error in test.error)
    test.number_input(key="field certification.target_images").set_value(10).run()
    assert any("needs images of at least 16×16 pixels" in error.value for error in test.error)
    for name in ("architecture", "attack.surrogate"):
        test.selectbox(key=f"field {name}").set_value("mlp").run()
    assert not test.error
    assert "training images of apple" in words(test)
    assert "--set dataset=folder:fruit" in words(test)
    test.selectbox(key="field dataset").set_value("folder:broken").run()
    assert any("has no image" in error.value for error in test.error)
    assert not test.exception


def test_a_class_is_chosen_by_its_name() -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert test.selectbox(key="field threat.target_class").options[8] == "digit 8"
    test.selectbox(key="field dataset").set_value("cifar10").run()
    assert test.selectbox(key="field threat.target_class").options[8] == "ship"
    assert "training images of ship" in words(test)
    assert any("CIFAR-10" in warning.value and "not on this machine" in warning.value for warning in test.warning)


def test_a_runs_settings_can_be_copied_into_the_form(place: Path) -> None:
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=7", "attack.upper_steps=9"]))
    test = opened("pages/poison.py", run=run.id)
    button(test, "Copy its settings into the form").click().run()
    assert "--preset smoke --set attack.upper_steps=9 --set seed=7" in words(test)


def test_an_existing_result_is_offered(place: Path) -> None:
    config = with_overrides(PRESETS["smoke"].config, ["seed=7"])
    own_copy(place, config=config)
    test = opened("pages/poison.py", preset="smoke", seed="7")
    assert any("with exactly these settings is finished, and is not computed twice" in info.value for info in test.info)
    assert button(test, "Open it").proto.type == "primary"
    assert "Start poisoning" not in [found.label for found in test.button]


def test_an_example_is_offered_before_it_is_computed_here() -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert button(test, "Open it").proto.type == "primary"
    assert button(test, "Compute it here all the same").proto.type == "secondary"


def test_an_emptied_field_is_the_presets() -> None:
    test = opened("pages/poison.py", preset="smoke", **{"threat.epsilon": "0.3"})
    test.number_input(key="field threat.epsilon").set_value(None).run()
    test.number_input(key="field data.train_size").set_value(None).run()
    test.selectbox(key="field dataset").set_value("digits").run()
    assert not test.exception
    assert "python -m engine run --preset smoke\n" in words(test) + "\n"
    button(test, "Compute it here all the same")


def test_after_a_refresh_the_form_has_the_open_runs_settings(place: Path) -> None:
    """A refresh is a new session that knows the address alone."""
    run = own_copy(place)
    test = opened("pages/poison.py", run=run.id)
    assert test.session_state["field threat.epsilon"] == run.config.threat.epsilon
    assert any("These are the settings of the run above" in info.value for info in test.info)
    asked = opened("pages/poison.py", run=run.id, preset="smoke", **{"threat.epsilon": "0.3"})
    assert asked.session_state["field threat.epsilon"] == 0.3  # unless a link asks for others


def test_before_a_poison_is_brought_there_is_no_error() -> None:
    test = opened("pages/poison.py", preset="smoke")
    test.selectbox(key="field attack.name").set_value("from-file").run()
    assert not test.error
    assert any("Bring the poison first" in info.value for info in test.info)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_live_view_shows_a_run_that_another_session_started(
    place: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own_copy(place)
    alive = Status(
        state, phase="attack and first victims", fraction=0.4, eta_seconds=65.0, events=("step 3: not finite",)
    )
    started: list[list[str]] = []
    monkeypatch.setattr(Run, "status", lambda self: alive)
    spawned = SimpleNamespace(Popen=lambda command, **_: started.append(command), DEVNULL=None)
    monkeypatch.setattr(_live, "subprocess", spawned)
    test = opened("pages/poison.py", run=run.id)
    assert not test.exception
    assert any("step 3: not finite" in warning.value for warning in test.warning)
    assert len(test.get("plotly_chart")) == 1
    assert len(test.get("progress")) == 1
    button(test, "Cancel").click().run()
    assert (run.directory / "cancel").exists()
    button(test, "Stop now").click().run()
    assert not started  # a double click is one press
    os.utime(run.directory / "cancel", (1.0, 1.0))
    button(test, "Stop now").click().run()
    assert [command[-2:] for command in started] == [["--cancel", run.id]]
    button(opened("pages/runs.py", run=run.id), "Stop now")  # the queue's is the same button


def test_the_whole_page_follows_when_an_active_run_changes_its_state(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live view alone draws itself anew every second; the sidebar names the state as well."""
    run, test, reruns = own_copy(place), None, []
    monkeypatch.setattr(_live.st, "rerun", lambda: reruns.append(run.status().state))
    now = [""]
    monkeypatch.setattr(Run, "status", lambda self: Status(now[0], phase="attack"))
    for now[0], expected in {"queued": [], "running": ["running"], "done": ["running", "done"]}.items():
        for _ in range(2):
            test = test.run() if test else opened("pages/poison.py", run=run.id)
        assert reruns == expected


@pytest.mark.parametrize("state", ["cancelled", "failed", "lost", "done"])
def test_how_a_run_ended_is_said(place: Path, state: str) -> None:
    test = opened("pages/poison.py", run=own_copy(place, state=state).id)
    assert state in words(test).lower()
    assert ("artial result" in words(test)) == (state != "done")
    assert not test.exception


@pytest.mark.parametrize("state", ["cancelled", "failed", "lost", "done"])
def test_a_run_that_did_not_come_to_its_end_goes_on_whatever_the_form_says(
    place: Path, state: str, submitted: list[Any]
) -> None:
    run = own_copy(place, config=PRESETS["smoke"].config, state=state)
    test = opened("pages/poison.py", run=run.id)
    test.number_input(key="field threat.epsilon").set_value(0.05).run()
    if state == "done":
        assert not [each for each in test.button if each.label == "Resume"]
    else:
        button(test, "Resume").click().run()
        assert submitted == [run.config]
    assert not test.exception


@pytest.mark.parametrize(("field", "name"), [("epsilon", "ε"), ("poison_fraction", "Poison fraction")])
def test_a_budget_of_nothing_is_said_to_change_nothing(field: str, name: str) -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert not any("changes nothing" in info.value for info in test.info)
    test.number_input(key=f"field threat.{field}").set_value(0.0).run()
    assert any(f"{name} = 0 changes nothing" in info.value for info in test.info)


def test_progress_names_the_victim_that_is_certified(place: Path) -> None:
    run = own_copy(place)
    said = f"Certifying victims: random noise, 1 of {run.config.victim_seeds}, 50%"
    assert _live.detail_words(run, "votes random_noise-0: 50%") == said
