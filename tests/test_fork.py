"""Runs that are published read-only, and forks that remember which run they came from."""

from pathlib import Path
from typing import Any

import pytest

from engine import html_report, index, jobs, records
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GRID, Run
from tests.app import EXAMPLE, button, opened, own_copy, words
from tests.commanding import main

pytestmark = pytest.mark.usefixtures("place")


def test_a_published_run_can_be_neither_deleted_nor_renamed_and_says_so(place: Path) -> None:
    run = own_copy(place)
    run.write_json("notes.json", {"name": "Homework 3", "starred": False, "note": "Fork me."})
    test = opened("pages/runs.py", run=run.id)
    drawn_before = {label: opened("pages/runs.py", run=run.id) for label in ("Yes, delete it", "Save")}
    button(test, "Yes, publish it").click().run()
    assert run.published
    text = words(test)
    assert "**Published**, read-only" in text
    assert "Homework 3\nFork me." in "\n".join(each.value for each in test.text)
    assert not {"Save", "Yes, delete it", "Yes, publish it"} & {each.label for each in test.button}
    for label, stale in drawn_before.items():
        button(stale, label).click().run()
        assert any("published, read-only" in error.value for error in stale.error)
    assert run.exists()
    assert run.notes["name"] == "Homework 3"
    assert [row["published"] for row in index.rows(place)] == [1]


def test_the_command_line_publishes_and_withdraws_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(option: str) -> tuple[int, str, str]:
        return main(capsys, "runs", option, run.id, "--runs-root", place)

    run = own_copy(place)
    assert asked("--publish") == (0, f"run {run.id} is published, read-only\n", "")
    code, _, refused = asked("--delete")
    assert (code, "withdraw it first" in refused) == (2, True)
    assert asked("--withdraw") == (0, f"run {run.id} is withdrawn\n", "")
    assert asked("--withdraw") == (0, f"run {run.id} is not published: nothing to withdraw\n", "")
    assert not run.published
    assert asked("--delete")[0] == 0
    assert not run.exists()


def test_only_a_finished_run_can_be_published(place: Path) -> None:
    run = own_copy(place, state="cancelled")
    with pytest.raises(ValueError, match="only a finished run can be published"):
        jobs.publish(run)
    assert "Yes, publish it" not in {each.label for each in opened("pages/runs.py", run=run.id).button}


def test_a_fork_shows_what_differs_and_remembers_its_parent(place: Path, submitted: list[Any]) -> None:
    parent = own_copy(place)
    test = opened("pages/poison.py", run=parent.id)
    button(test, "Copy its settings into the form").click().run()
    assert f"Fork of run `{parent.id}`" in words(test)
    assert "Nothing has changed yet" in words(test)
    test.number_input(key="field threat.epsilon").set_value(0.05).run()
    (table,) = [frame.value for frame in test.dataframe if list(frame.value.columns) == ["setting", "original", "here"]]
    assert table.to_numpy().tolist() == [["Budget ε (L∞, pixel units)", str(parent.config.threat.epsilon), "0.05"]]
    button(test, "Start poisoning").click().run()
    child = Run(place / records.run_id(submitted[0]))
    assert child.request["forked_from"] == parent.id
    assert not test.exception


def test_an_optional_setting_that_a_fork_empties_is_a_change(place: Path) -> None:
    """Though the preset sets it: the form submits "as the victims"."""
    preset = "paper-macer-mnist"
    parent = own_copy(place, config=PRESETS[preset].config)
    parent.write_json("request.json", parent.request | {"preset": preset})
    test = opened("pages/poison.py", run=parent.id)
    button(test, "Copy its settings into the form").click().run()
    assert "Nothing has changed yet" in words(test)
    test.selectbox(key="field attack.procedure").set_value("as the victims").run()
    assert "--set attack.procedure=null" in words(test)
    (table,) = [frame.value for frame in test.dataframe if list(frame.value.columns) == ["setting", "original", "here"]]
    assert table.to_numpy().tolist() == [["Procedure it assumes", "MACER as PACD ran it", "as the victims"]]
    assert not test.exception


def test_the_form_of_a_fork_is_not_below_the_finished_run(place: Path) -> None:
    parent = own_copy(place)
    test = opened("pages/poison.py", run=parent.id)
    assert not [box for box in test.expander if box.label.startswith("The open run")]
    button(test, "Copy its settings into the form").click().run()
    (box,) = [box for box in test.expander if box.label.startswith("The open run")]
    assert not box.proto.expanded
    assert "change a setting, then start" in words(test)
    button(test, "Discard fork link").click().run()
    assert not [box for box in test.expander if box.label.startswith("The open run")]


def test_what_is_no_fork_has_no_parent(place: Path, submitted: list[Any]) -> None:
    parent = own_copy(place)
    test = opened("pages/poison.py", run=parent.id)
    button(test, "Copy its settings into the form").click().run()
    button(test, "Discard fork link").click().run()
    test.number_input(key="field threat.epsilon").set_value(0.05).run()
    button(test, "Start poisoning").click().run()
    assert "forked_from" not in Run(place / records.run_id(submitted[0])).request


def test_parent_and_child_are_compared_in_one_click_and_the_report_names_the_parent(place: Path) -> None:
    parent = own_copy(place)
    child = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["threat.epsilon=0.05"]))
    child.write_json("request.json", child.request | {"forked_from": parent.id})
    test = opened("pages/runs.py", run=child.id)
    assert f"Forked from run `{parent.id}`" in words(test)
    button(test, "Compare the two").click().run()
    assert test.session_state["compare"] == [parent.id, child.id]
    assert any(found.value.startswith("Comparable") for found in test.success)
    assert not test.exception
    assert f"Forked from run {parent.id}" in html_report.write(child, data_root=place)


def test_a_run_of_explores_grid_is_compared_with_its_fork(place: Path) -> None:
    """The list of runs leaves it out."""
    parent = next(records.all_runs(GRID))
    child = own_copy(place)
    child.write_json("request.json", child.request | {"forked_from": parent.id})
    clicked = button(opened("pages/runs.py", run=child.id), "Compare the two").click().run()
    for test in (clicked, clicked.run(), opened("pages/runs.py", compare=f"{parent.id},{child.id}")):
        assert not test.exception
        assert not any("not here" in warning.value for warning in test.warning)
        assert test.session_state["compare"] == [parent.id, child.id]
        assert len(test.get("plotly_chart")) == 1
    listed = opened("pages/runs.py").multiselect(key="compare").options
    assert listed
    assert not any(parent.id[:4] in label for label in listed)


def test_a_parent_that_is_gone_is_said_to_be(place: Path) -> None:
    child = own_copy(place)
    child.write_json("request.json", child.request | {"forked_from": "0123456789abcdef"})
    test = opened("pages/runs.py", run=child.id)
    assert "That run is not on this machine" in words(test)
    assert not test.exception


def test_an_example_can_be_forked_from_the_runs_page() -> None:
    test = opened("pages/runs.py", run=EXAMPLE)
    assert "Fork: run it with other settings" in {each.label for each in test.button}


def test_the_history_says_where_drops_must_not_be_compared(place: Path) -> None:
    test = opened("pages/runs.py")  # examples alone, which have different n
    assert "n" in test.dataframe[0].value.columns
    assert "different n" in words(test)
    for seed in (7, 8):
        own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"seed={seed}"]))
    test = opened("pages/runs.py")
    assert "n" not in test.dataframe[0].value.columns
    assert "different n" not in words(test)
