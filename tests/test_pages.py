"""Start, Poison, Runs and the frame around all pages, in Streamlit's own test harness: no browser, no network.

Pages are tested as files of their own, too, since Streamlit 1.67 forgets what app.py drew from the second run on.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from engine import costs, jobs, records
from engine.config import Config, field_names, with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run, Status
from pages import _comparison, _form, _shared, _threat, _words

PROJECT = Path(__file__).parents[1]
PAGES = [file for file, _, _ in _shared.PAGES]
MINE = ["pages/start.py", "pages/poison.py", "pages/runs.py"]
ATTACKER_ONLY = ["threat.epsilon=0.2", "attack.upper_steps=9", "attack.procedure=macer", "threat.attacker_share=0.5"]
VIEWS = ["One image", "All poisoned images", "Over the attack's steps", "Test images by radius lost"]
CHANGES = ["pages/start.py", "pages/poison.py", "pages/inspect.py"]  # that show what was changed
EXAMPLE = next(run.id for run in records.all_runs(GALLERY) if run.config.dataset == "digits")  # needs no file


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs root and no MNIST."""
    monkeypatch.setenv("PACD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PACD_DATA", str(tmp_path / "data"))
    st.cache_data.clear()
    st.cache_resource.clear()
    return tmp_path / "runs"


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations handed to `jobs.submit`; no process starts."""
    seen: list[Any] = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, **__: None)
    submit = jobs.submit
    monkeypatch.setattr(jobs, "submit", lambda config, **rest: (seen.append(config), submit(config, **rest))[1])
    return seen


def opened(file: str, **query: str) -> AppTest:
    test = AppTest.from_file(str(PROJECT / file), default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def words(test: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "error", "warning", "info", "success", "code")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(test, kind))


def own_copy(root: Path, *, config: Config | None = None, state: str = "done") -> Run:
    """A run of the user's own with the example's files, and maybe another configuration."""
    identifier = records.run_id(config) if config else EXAMPLE
    run = Run(Path(shutil.copytree(GALLERY / EXAMPLE, root / identifier)))
    if config:
        (run.directory / "config.json").write_text(config.canonical())
    run.write_json("status.json", (run.read_json("status.json") or {}) | {"state": state})
    return run


def button(test: AppTest, label: str) -> Any:
    return next(found for found in test.button if found.label == label)


# --- the frame, and all pages ---


@pytest.mark.parametrize("page", [None, *PAGES])
def test_every_page_opens_without_an_exception(page: str | None) -> None:
    test = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run()
    assert [choice.label for choice in test.sidebar.selectbox] == ["Open run"]
    assert "localhost" in words(test)
    if page:
        test.switch_page(page).run()
    assert not test.exception


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("identifier", [EXAMPLE, EXAMPLE[:7], "0123456789abcdef", "../../etc/passwd"])
def test_every_page_alone_takes_any_run_id_of_a_link(page: str, identifier: str) -> None:
    test = opened(page, run=identifier)
    assert not test.exception
    assert bool(test.warning) == (not EXAMPLE.startswith(identifier))  # never silently another run


def test_a_missing_run_is_said_in_the_frame_too() -> None:
    test = opened("app.py", run="0123456789abcdef")
    assert not test.exception
    assert any("0123456789abcdef" in warning.value and "sidebar" in warning.value for warning in test.warning)
    assert test.sidebar.selectbox[0].value is None


def test_without_mnist_every_page_says_so_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    test = opened("app.py")
    assert any("python -m engine fetch mnist" in info.value for info in test.info)
    monkeypatch.setattr(_shared, "default_dataset", lambda: "mnist")
    assert not any("fetch mnist" in info.value for info in opened("app.py").info)


def test_the_picker_lists_examples_and_own_runs_and_names_states(place: Path) -> None:
    own_copy(place, state="cancelled")
    options = opened("app.py").sidebar.selectbox[0].options
    assert len(options) == len(list(records.all_runs(GALLERY)))
    assert sum("cancelled" in option for option in options) == 1
    assert sum("example" in option for option in options) == len(options) - 1


def test_the_app_imports_no_torch() -> None:
    script = (
        "import sys; from streamlit.testing.v1 import AppTest; test = AppTest.from_file('app.py', default_timeout=60)."
        "run(); assert not test.exception; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


# --- Start ---


def test_start_tells_the_examples_result_with_the_reports_numbers() -> None:
    test, report = opened("pages/start.py"), json.loads((GALLERY / EXAMPLE / "report.json").read_text())
    text = words(test)
    for arm in ("clean", "poisoned"):
        assert f"{report['arms'][arm]['average_certified_radius']['target']['mean']:.3f}" in text
    assert f"{report['relative_drop']['poisoned']['mean']:.0%} less" in text
    assert len(test.get("plotly_chart")) == 2
    assert len(test.get("image")) == 3


def test_start_shows_the_example_while_the_open_run_has_no_result(place: Path) -> None:
    run = own_copy(place, state="failed")
    test = opened("pages/start.py", run=run.id)
    assert any("is failed" in info.value for info in test.info)
    assert not test.exception


def test_start_says_what_to_do_where_there_is_no_finished_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (records, _shared):
        monkeypatch.setattr(module, "GALLERY", tmp_path / "empty")
    test = opened("pages/start.py")
    assert not test.exception
    assert any("No finished run" in warning.value for warning in test.warning)


# --- Poison ---


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
        for key, value in _form.values_of(PRESETS[name].config).items()
    }
    assert _form.changes(values, PRESETS[name].config) == []
    for other in PRESETS.values():  # what the form of one preset prints on top of another gives the same again
        assert with_overrides(other.config, _form.changes(values, other.config)) == PRESETS[name].config


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
        ({"threat.epsilon": "99"}, "threat.epsilon"),
        ({"threat.epsilon": "NaN"}, "threat.epsilon"),
        ({"seed": "-1"}, "seed"),
        ({"sigma": "1e999"}, "sigma"),
        ({"preset": "<b>nope</b>"}, "preset"),
        ({"certification.n": "3"}, "certification.n"),
        ({"dataset": "imagenet"}, "dataset"),
    ],
)
def test_a_link_with_values_out_of_range_gives_the_preset_and_a_sentence(query: dict[str, str], said: str) -> None:
    test = opened("pages/poison.py", **query)
    assert not test.exception
    assert any(said in warning.value for warning in test.warning)
    assert test.session_state["preset"] == "smoke"
    assert test.session_state["field threat.epsilon"] == PRESETS["smoke"].config.threat.epsilon


def test_a_link_restores_every_field() -> None:
    test = opened("pages/poison.py", **{"preset": "smoke", "threat.target_class": "3", "attack.linear_solver": "adam"})
    assert not test.warning
    assert test.session_state["field threat.target_class"] == 3
    assert "/poison?preset=smoke&threat.target_class=3&attack.linear_solver=adam" in words(test)


@pytest.mark.parametrize(
    ("field", "value", "low", "high"),
    [
        ("sigma", 99.0, 0, 4),
        ("threat.epsilon", -1.0, 0, 1),
        ("victim_seeds", 0, 1, 100),
    ],
)
def test_numbers_beyond_the_widgets_bounds_start_nothing_with_them(
    field: str, value: Any, low: float, high: float, submitted: list[Any]
) -> None:
    """The browser's bounds are no boundary: a client can send anything."""
    test = opened("pages/poison.py")
    test.number_input(key=f"field {field}").set_value(value)
    button(test, "Start poisoning").click().run()
    assert not test.exception
    for config in submitted:
        for part in field.split("."):
            config = getattr(config, part)
        assert low <= config <= high


def test_a_configuration_that_cannot_be_run_is_explained(submitted: list[Any]) -> None:
    test = opened("pages/poison.py")
    test.selectbox(key="preset").set_value("smoke").run()
    test.number_input(key="field certification.n").set_value(5).run()
    assert any("certification.n must be at least 10" in error.value for error in test.error)
    assert "Start poisoning" not in [found.label for found in test.button]
    assert submitted == []


def test_mnist_runs_do_not_start_where_there_is_no_mnist(submitted: list[Any]) -> None:
    test = opened("pages/poison.py")
    test.selectbox(key="preset").set_value("quick").run()
    assert button(test, "Start poisoning").disabled
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
    test.selectbox(key="field attack.procedure").set_value(None).run()
    test.number_input(key="field attack.sigma").set_value(None).run()
    assert "--preset smoke\n" in words(test)
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


@pytest.mark.parametrize("attack", list(_words.ATTACKS))
def test_the_threat_card_fits_the_attack(attack: str) -> None:
    config = with_overrides(PRESETS["smoke"].config, [f"attack.name={attack}"])
    card = " ".join(_threat.lines(config, "ship"))
    assert ("labels are wrong" in card) == (attack == "label-flip")
    assert ("**Clean-label**" in card) == (attack not in ("label-flip", "none"))
    assert ("one and the same" in card) == (attack in ("universal", "white-pattern", "low-frequency-pattern"))
    assert ("ε = 0.1" in card) == (attack not in ("label-flip", "none"))
    assert ("surrogates" in card) == _words.ATTACKS[attack].surrogate
    assert ("ship" in card) == (attack != "none")


def test_the_threat_card_tells_shares_beliefs_fine_tuning_and_missing_controls() -> None:
    typed = ["threat.attacker_share=0.25", "threat.poison_fraction=0.5", "training.fine_tune_epochs=3", "controls=[]"]
    typed += ["architecture=mlp"]
    card = " ".join(_threat.lines(with_overrides(PRESETS["smoke"].config, typed), "digit 8"))
    assert "25% of the training data" in card
    assert "50% of the training images of digit 8 in its hands" in card
    assert "fine-tuned on it for 3 epochs" in card
    assert "has to transfer" in card
    assert "**Controls**: none" in card


def test_every_choice_of_the_configuration_has_a_plain_name() -> None:
    from typing import get_args

    from engine import config

    assert set(_words.ATTACKS) == set(get_args(config.AttackName))
    assert set(_words.ARCHITECTURE_NAMES) == set(get_args(config.Architecture))
    assert set(_words.PROCEDURE_NAMES) <= set(config.PROCEDURES)
    assert _words.PROCEDURE_NAMES["brought along"] == "brought along"  # a new one needs no line here
    assert set(_words.CONTROL_NAMES) == set(get_args(config.Control))
    for name, attack in _words.ATTACKS.items():
        assert attack.surrogate == (name in (*costs.SECOND_ORDER, *costs.FIRST_ORDER))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data root with a folder of 8×8 colour images of three classes, 60 each, and some that are no data set."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("apple", "pear", "plum"):
        (tmp_path / "data" / "fruit" / name).mkdir(parents=True)
        for k in range(70):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(tmp_path / "data" / "fruit" / name / f"{k:02}.png")
    (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "broken" / "one").mkdir(parents=True)
    (tmp_path / "data" / "broken" / "two").mkdir(parents=True)
    return tmp_path / "data" / "fruit"


def test_a_folder_of_images_is_offered_with_its_class_names_and_checked(folder: Path) -> None:
    test = opened("pages/poison.py", preset="smoke")
    assert "Folder fruit" in test.selectbox(key="field dataset").options
    assert "Folder MNIST" not in test.selectbox(key="field dataset").options
    test.selectbox(key="field dataset").set_value("folder:fruit").run()
    assert test.selectbox(key="field threat.target_class").options == ["apple", "pear", "plum"]
    assert test.session_state["field threat.target_class"] == 0  # there is no class 8
    assert test.session_state["field data.train_size"] + test.session_state["field data.validation_size"] == 168
    assert any("target_images must be at most 14" in error.value for error in test.error)
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
    assert any("already has a result" in info.value for info in test.info)
    button(test, "Open it")


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_live_view_shows_a_run_that_another_session_started(
    place: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own_copy(place)
    alive = Status(
        state, phase="attack and first victims", fraction=0.4, eta_seconds=65.0, events=("step 3: not finite",)
    )
    monkeypatch.setattr(Run, "status", lambda self: alive)
    test = opened("pages/poison.py", run=run.id)
    assert not test.exception
    assert any("step 3: not finite" in warning.value for warning in test.warning)
    assert len(test.get("plotly_chart")) == 1
    assert len(test.get("progress")) == 1
    button(test, "Cancel").click().run()
    assert (run.directory / "cancel").exists()
    button(test, "Stop now")


@pytest.mark.parametrize("state", ["cancelled", "failed", "lost", "done"])
def test_how_a_run_ended_is_said(place: Path, state: str) -> None:
    test = opened("pages/poison.py", run=own_copy(place, state=state).id)
    assert state in words(test).lower()
    assert ("PARTIAL RESULT" in words(test)) == (state != "done")
    assert not test.exception


# --- damage ---


@pytest.mark.parametrize("page", MINE)
@pytest.mark.parametrize(
    "damage", ["status.json", "config.json", "evolution.safetensors", "metrics.jsonl", "report.json"]
)
@pytest.mark.parametrize("content", ["[", '{"state": 5}'])
def test_pages_live_with_damaged_files(place: Path, page: str, damage: str, content: str) -> None:
    run = own_copy(place)
    (run.directory / damage).write_text(content)
    assert not opened(page, run=run.id).exception


@pytest.mark.parametrize("page", MINE)
def test_a_run_that_vanishes_leaves_the_page_alive(place: Path, page: str) -> None:
    run = own_copy(place)
    test = opened(page, run=run.id)
    shutil.rmtree(run.directory)
    (place / run.id).mkdir()  # as somebody's half-finished deletion leaves it
    test.run()
    assert not test.exception


@pytest.mark.parametrize("page", MINE)
def test_a_damaged_index_is_no_trouble(place: Path, page: str) -> None:
    own_copy(place)
    (place / "index.sqlite").write_bytes(b"no database" * 100)
    assert not opened(page).exception


def test_a_runs_root_that_cannot_be_used_is_said(place: Path) -> None:
    place.write_text("a file where the folder should be")
    test = opened("pages/poison.py")
    test.number_input(key="field seed").set_value(7).run()
    button(test, "Start poisoning").click().run()
    assert not test.exception
    assert any("Nothing was started" in error.value for error in test.error)


# --- other attacks, data sets, protocols ---


def of_another_attack(place: Path, attack: str) -> Run:
    """The example's files as that attack would have left them."""
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"attack.name={attack}"]))
    poison, report = run.tensors("poison"), run.report
    assert poison is not None
    assert report is not None
    table = run.certificates()
    assert table is not None
    report["config"] = run.config.model_dump(mode="json")
    step = dict(kind="attack", step=1, steps=1, upper_loss=None, lower_loss=None, relative_residual=None, mean_size=0.0,
                share_at_epsilon=0.0)  # fmt: skip
    if attack == "none":
        for name in ("poison", "evolution"):
            (run.directory / f"{name}.safetensors").unlink()
        table = table[table["arm"] == "clean"]
        table.reset_index(drop=True).to_parquet(run.directory / "certificates.parquet")
        report |= {"arms": {"clean": report["arms"]["clean"]}, "relative_drop": {}, "perturbation": None}
        (run.directory / "metrics.jsonl").unlink()
    else:
        zero, labels = np.zeros_like(poison["delta"]), {}
        if attack == "label-flip":
            labels = {"labels": np.arange(len(zero)) % 8}
        records.write_tensors(run.directory / "poison.safetensors", delta=zero, indices=poison["indices"], **labels)
        records.write_tensors(run.directory / "evolution.safetensors", delta=zero[None, :12], steps=np.array([1]),
                              indices=poison["indices"][:12])  # fmt: skip
        (run.directory / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    run.write_json("report.json", report)
    return run


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("attack", ["none", "label-flip", "white-pattern"])
def test_every_page_shows_runs_of_attacks_without_losses_or_changes(place: Path, page: str, attack: str) -> None:
    run = of_another_attack(place, attack)
    views = VIEWS if "inspect" in page else [""]
    for view in views:
        test = opened(page, run=run.id, **({"view": view} if view else {}))
        assert not test.exception
        assert not test.warning
        if attack == "label-flip" and page in CHANGES and view in ("", *VIEWS[:3]):
            assert any("changed no pixel" in info.value and "× digit 0" in info.value for info in test.info)


def test_a_run_of_another_protocol_is_said_to_be_one(place: Path) -> None:
    run = own_copy(place)
    (run.directory / "config.json").write_text('{"protocol_version":1,"procedure":"gaussian","attack":{"damping":1}}')
    for page in PAGES:
        test = opened(page, run=run.id)
        assert not test.exception
        assert any("is of protocol 1" in warning.value for warning in test.warning)


def test_classes_are_called_by_their_names_on_every_page(place: Path, folder: Path) -> None:
    typed = ["dataset=folder:fruit", "threat.target_class=1", "data.train_size=100", "data.validation_size=60"]
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, typed))
    report, table, rng = run.report, run.certificates(), np.random.default_rng(1)
    assert report is not None
    assert table is not None
    names = ["apple", "pear", "plum"]
    run.write_json("report.json", report | {"class_names": names, "target_name": "pear"})
    short = {name: [votes[:3] + 1 for votes in table[name]] for name in ("selection_votes", "estimation_votes")}
    rank = {image: k for k, image in enumerate(sorted(set(table["image"])))}  # there are 42 test images only
    table["image"] = [rank[image] for image in table["image"]]
    table.assign(label=1, selected_class=2, **short).to_parquet(run.directory / "certificates.parquet")
    delta, indices = rng.uniform(-0.1, 0.1, (30, 3, 8, 8)).astype(np.float32), np.arange(60, 90)
    records.write_tensors(run.directory / "poison.safetensors", delta=delta, indices=indices)
    records.write_tensors(
        run.directory / "evolution.safetensors", delta=delta[None, :12], steps=np.array([1]), indices=indices[:12]
    )
    for page in ("start", "certify", "runs", "poison"):
        test = opened(f"pages/{page}.py", run=run.id)
        assert not test.exception
        assert "pear" in words(test)
        assert "digit" not in words(test).replace("digits", "") or page == "poison"  # whose form holds the preset's
    for view in VIEWS:
        test = opened("pages/inspect.py", run=run.id, view=view)
        assert not test.exception
        assert "pear" in words(test)
        assert "digit" not in words(test)


# --- Runs ---


def test_renaming_starring_and_deleting(place: Path) -> None:
    run = own_copy(place)
    test = opened("pages/runs.py", run=run.id)
    test.text_input(key=f"name {run.id}").set_value("mine")
    test.checkbox(key=f"star {run.id}").set_value(True)
    button(test, "Save").click().run()
    assert run.notes["name"] == "mine"
    assert run.notes["starred"] is True
    button(test, "Yes, delete it").click().run()
    assert not run.directory.exists()
    assert not test.exception
    assert any("is deleted" in news.value for news in test.success)


def test_examples_cannot_be_deleted() -> None:
    labels = [found.label for found in opened("pages/runs.py", run=EXAMPLE).button]
    assert "Yes, delete it" not in labels
    assert "Save" not in labels


def test_runs_that_differ_in_what_they_measure_are_flagged(place: Path) -> None:
    other = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["certification.n=99"]))
    test = opened("pages/runs.py", compare=",".join([EXAMPLE, other.id, "gone"]))
    assert not test.exception
    assert any("Not comparable" in warning.value and "estimation draws" in warning.value for warning in test.warning)
    assert any("gone" in warning.value for warning in test.warning)
    assert len(test.get("plotly_chart")) == 1


def test_runs_that_differ_only_in_the_attack_are_comparable(place: Path) -> None:
    one = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=7"]))
    two = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=7", "threat.epsilon=0.05"]))
    test = opened("pages/runs.py", compare=f"{one.id},{two.id}")
    assert not test.exception
    assert any(success.value.startswith("Comparable") for success in test.success)


@pytest.mark.parametrize(
    "change",
    [
        "sigma=0.3",
        "seed=1",
        "victim_seeds=3",
        "threat.target_class=1",
        "certification.n=99",
        "certification.n0=9",
        "certification.alpha=0.01",
        "certification.target_images=9",
        "certification.other_images=3",
        "procedure=macer",
        "procedure.draws=2",
        "architecture=lenet",
        "training.fine_tune_epochs=2",
        "training.epochs=5",
        "data.train_size=700",
    ],
)
def test_each_of_these_makes_two_runs_incomparable(change: str) -> None:
    config = PRESETS["smoke"].config
    assert len(_comparison.incomparable([config, with_overrides(config, [change])])) == 1
    assert _comparison.incomparable([config, with_overrides(config, ATTACKER_ONLY)]) == []


def test_exports_are_whole(smoke: SimpleNamespace) -> None:
    """Loads the page's own functions, as its download buttons call them."""
    import io
    import zipfile

    import pandas as pd

    import pages.runs as page

    table = pd.read_csv(io.BytesIO(page.certificates_csv(smoke.run)))
    assert len(table) == len(smoke.run.certificates())
    names = zipfile.ZipFile(io.BytesIO(page.zipped(smoke.run.directory))).namelist()
    assert {f"{smoke.run.id}/config.json", f"{smoke.run.id}/report.json"} <= set(names)
    html = page.figures_html(smoke.run)
    assert b"Plotly.newPlot" in html
    assert b"cdn.plot.ly" not in html.split(b"</script>")[-1]
