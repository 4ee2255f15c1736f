"""The Runs page: queue, history, notes, comparison, export."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run
from engine.status import Status
from engine.studies import kinds, process
from pages import _comparison, _shared
from tests.app import EXAMPLE, button, opened, own_copy

ATTACKER_ONLY = ["threat.epsilon=0.2", "attack.upper_steps=9", "attack.procedure=macer", "threat.attacker_share=0.5"]
pytestmark = pytest.mark.usefixtures("place")


def test_renaming_starring_and_deleting(place: Path) -> None:
    run = own_copy(place)
    test = opened("pages/runs.py", run=run.id)
    test.text_input(key=f"name {run.id}").set_value("mine")
    test.checkbox(key=f"star {run.id}").set_value(True)
    button(test, "Save").click().run()
    assert run.notes["name"] == "mine"
    assert run.notes["starred"] is True
    assert [news.value for news in test.toast] == ["Saved."]
    button(test, "Yes, delete it").click().run()
    assert not run.directory.exists()
    assert not test.exception
    assert any("is deleted" in news.value for news in test.toast)


def test_a_note_that_was_not_saved_is_kept_with_its_run(place: Path) -> None:
    one, two = (own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"seed={k}"])) for k in (7, 8))
    test = opened("pages/runs.py", run=one.id)
    assert not test.text_area(key=f"note {one.id}").proto.form_id  # a form keeps it from the server until it is saved
    test.text_area(key=f"note {one.id}").set_value("Too bright.").run()
    for run, note in ((two, ""), (one, "Too bright.")):
        test.session_state["run"] = run.id
        assert test.run().text_area(key=f"note {run.id}").value == note
    button(test, "Save").click().run()
    assert one.notes["note"] == "Too bright."


def test_the_history_shows_how_notes_begin(place: Path) -> None:
    run = own_copy(place)
    assert "note" not in opened("pages/runs.py").dataframe[0].value
    run.write_json("notes.json", {"note": "Too bright.\n" + "Words and words. " * 9})
    test = opened("pages/runs.py")
    (told,) = test.dataframe[0].value["note"]
    assert told.startswith("Too bright. Words and")
    assert told.endswith("…")


@pytest.mark.parametrize(("before", "after"), [("queued", "running"), ("running", "done")])
def test_the_history_follows_when_an_active_run_changes_its_state(
    place: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """As soon as the queue, which alone draws itself anew, sees it."""
    run, states = own_copy(place), iter([before])
    monkeypatch.setattr(_shared, "run_rows", lambda: [_shared.row_of(run) | {"state": next(states, after)}])
    assert list(opened("pages/runs.py").dataframe[0].value["state"]) == [after]


@pytest.mark.parametrize("page", ["runs", "poison"])
def test_a_run_that_was_cancelled_is_said_to_stop_and_not_how_long_it_will_take(
    place: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    run = own_copy(place)
    monkeypatch.setattr(Run, "status", lambda self: Status("running", phase="attack", fraction=0.4, eta_seconds=65.0))

    def line() -> str:
        return opened(f"pages/{page}.py", run=run.id).get("progress")[0].proto.text

    assert line().endswith(", about 65 s left")
    (run.directory / "cancel").touch()
    assert line().endswith(", stopping at its next step")
    assert "left" not in line()


def test_a_comparison_stands_under_the_history(place: Path) -> None:
    one, two = (own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"seed={k}"])) for k in (7, 8))
    test = opened("pages/runs.py", compare=f"{one.id},{two.id}")
    assert [header.value for header in test.header] == ["Queue", "History", "Compare", "The open run"]


def test_the_history_shows_a_drops_spread_beside_it(place: Path) -> None:
    run = own_copy(place)
    table, drops = opened("pages/runs.py").dataframe[0].value, run.need_report()["relative_drop"]
    assert list(table["drop sd"]) == [round(100 * drops["poisoned"]["sd"])]
    assert list(table["noise sd"]) == [round(100 * drops["random_noise"]["sd"])]
    assert list(table["drop"]) == [round(100 * drops["poisoned"]["mean"])]  # a number, by which to sort


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
    (chart,) = test.get("plotly_chart")
    assert "ε = 0.05: poisoned" in chart.proto.alt  # by what differs, and nothing else


def test_a_comparison_says_in_words_what_differs(place: Path) -> None:
    typed = ["procedure=macer", "architecture=lenet", "controls=[]", "attack.procedure=smoothadv"]
    one, two = (
        own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=7", *more])) for more in ([], typed)
    )
    test = opened("pages/runs.py", compare=f"{one.id},{two.id}")
    assert not test.exception
    table = next(each.value for each in test.dataframe if "field" in each.value)
    rows = {field: values for field, *values in table.to_numpy().tolist()}
    assert rows["Victims' training procedure"] == ["Gaussian augmentation", "MACER"]
    assert rows["Noise draws per image"] == ["1", "16"]
    assert rows["Procedure it assumes"] == ["as the victims", "SmoothAdv"]
    assert rows["Noise draws per image it assumes"] == ["–", "4"]
    assert rows["Victims' architecture"] == ["LeNet, narrow (8-16-100)", "LeNet (20-50-500)"]
    assert rows["Controls (arms beside clean and poisoned)"] == ["Random noise, Shuffled signs", "none"]
    (chart,) = test.get("plotly_chart")
    assert "LeNet (20-50-500), MACER, SmoothAdv: poisoned" in chart.proto.alt
    assert not [field for field in rows if re.search(r"\w\.\w|_", field)]


def test_the_data_sets_of_a_comparison_have_their_names() -> None:
    configs = [PRESETS[name].config for name in ("quick", "smoke")]
    assert _comparison.incomparable(configs)["dataset"] == "different data set: MNIST, embedded digits"


def test_runs_of_different_seeds_are_to_be_compared_with_care(place: Path) -> None:
    one, two = (own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"seed={k}"])) for k in (7, 8))
    warnings = [each.value for each in opened("pages/runs.py", compare=f"{one.id},{two.id}").warning]
    assert any(said.startswith("**Compare with care.**") for said in warnings)


def test_the_history_leaves_out_what_all_runs_share_and_runs_of_studies(place: Path) -> None:
    largest = 2**63 - 1
    own = own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"seed={largest}"]))
    study = kinds.make("sweep", preset="smoke", rows="seed=7,8", columns="sigma=0.25")
    process.submit(study, runs_root=place, data_root=place)
    for cell in study.cells():
        own_copy(place, config=cell.config)
    test = opened("pages/runs.py")
    assert not test.exception
    assert list(test.dataframe[0].value["id"]) == [own.id]
    shown = test.segmented_control(key="history show")
    assert shown.value == "My runs"
    table = shown.set_value("Of studies").run().dataframe[0].value
    assert set(table["id"]) == {cell.run_id for cell in study.cells()}
    assert "seed" in table
    assert "procedure" not in table
    table = test.segmented_control(key="history show").set_value("All").run().dataframe[0].value
    assert str(largest) in set(table["seed"])  # a browser would round the number


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
        "data.validation_size=350",
    ],
)
def test_each_of_these_makes_two_runs_incomparable(change: str) -> None:
    config, aspect = PRESETS["smoke"].config, change.partition("=")[0].replace("procedure.draws", "procedure")
    assert list(_comparison.incomparable([config, with_overrides(config, [change])])) == [aspect]
    assert _comparison.incomparable([config, with_overrides(config, ATTACKER_ONLY)]) == {}


def test_exports_are_whole(smoke: SimpleNamespace) -> None:
    """Loads the page's own functions, as its download buttons call them."""
    import io
    import zipfile

    import pages.runs as page

    names = zipfile.ZipFile(io.BytesIO(page.zipped(smoke.run.directory))).namelist()
    assert {f"{smoke.run.id}/config.json", f"{smoke.run.id}/report.json"} <= set(names)
