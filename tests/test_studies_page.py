"""The Studies page in Streamlit's own test harness: results, partial ones, links to runs, a study of one's own."""

import itertools
import re
import shlex
import time
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from engine import jobs
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY
from engine.status import Status
from engine.studies import exhibits, kinds, process, results
from pages import _chosen_study, _links
from tests.app import button, words
from tests.test_study_tables import fake_report, with_reports

SHIPPED = exhibits.exhibited
PAGE = str(Path(__file__).parents[1] / "pages" / "studies.py")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_cached: None) -> Path:
    """An empty runs root, no MNIST, no study of the project's, and no process is started."""
    monkeypatch.setenv("PACD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PACD_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(exhibits, "exhibited", lambda: [])
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, **__: None)
    return tmp_path


def opened(**query: str) -> AppTest:
    test = AppTest.from_file(PAGE, default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def finished(place: Path, kind: str = "transfer-sigma", reports: int = 9, state: str = "done") -> process.StudyRecord:
    study = kinds.make(kind, preset="smoke")
    record = with_reports(study, place, [fake_report(0.05 * k + 0.1) for k in range(reports)])
    record.write_status(Status(state))
    return record


def test_without_any_study_the_page_offers_one() -> None:
    test = opened()
    assert not test.exception
    assert "There is no study yet" in words(test)
    assert "python -m engine study transfer-procedure --preset smoke" in words(test)
    assert next(iter(test.metric)).value == "9"


def test_a_finished_study_shows_map_table_and_the_run_behind_a_cell(place: Path) -> None:
    record = finished(place)
    test = opened(study=record.id[:6])
    assert not test.exception
    assert not test.warning
    assert len(test.get("plotly_chart")) == 1
    assert "σ = 0.25 → σ = 0.25" in words(test)
    assert "Drop in ACR **10 ± 2 %**" in words(test)
    cells = next(box for box in test.selectbox if box.label == "Cell")
    cells.select(cells.options[5]).run()
    run = record.study.cells()[5].run_id
    assert f"Run `{run}` (done)" in words(test)
    assert test.query_params["cell"] == ["5"] or test.query_params["cell"] == "5"
    again = opened(study=record.id, cell="5")
    assert f"Run `{run}` (done)" in words(again)
    assert "cell must be" in words(opened(study=record.id, cell="99"))
    assert "Open in Certify" in words(test)
    assert [found.label for found in test.get("download_button")] == ["CSV", "Markdown", "JSON"]
    assert test.query_params["study"] == record.id


def test_back_goes_to_the_cell_before_and_whoever_comes_back_finds_the_cell_where_it_was(place: Path) -> None:
    record = finished(place)

    def chosen(test: AppTest) -> int:
        return [f"Run `{cell.run_id}` (done)" in words(test) for cell in record.study.cells()].index(True)

    def choose(number: int) -> None:
        cells = next(box for box in test.selectbox if box.label == "Cell")
        cells.select(cells.options[number]).run()

    test = opened(study=record.id)
    assert (chosen(test), "cell" in test.query_params) == (0, False)  # the address as it came: no entry of its own
    choose(2)
    choose(6)
    assert test.query_params["cell"] == "6"
    test.query_params["cell"] = "2"  # as the browser's Back button does
    assert chosen(test.run()) == 2
    del test.query_params["cell"]
    assert chosen(test.run()) == 0
    choose(6)
    again = AppTest.from_file(PAGE, default_timeout=60)
    again.session_state["studies shown"] = test.session_state["studies shown"]  # what is no widget's, Streamlit keeps
    assert chosen(again.run()) == 6
    assert not again.query_params
    linked = AppTest.from_file(PAGE, default_timeout=60)
    linked.session_state["studies shown"] = test.session_state["studies shown"]
    linked.query_params.update(study=record.id, cell="3")
    assert chosen(linked.run()) == 3


def test_the_link_to_this_view_names_study_and_cell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = finished(place)
    shown = opened().session_state["studies shown"]
    monkeypatch.setattr("pages._chosen_study.st.session_state", {"studies shown": shown})
    assert _chosen_study.query() == f"?study={record.id}&cell=0"


def test_a_run_without_a_result_can_only_be_watched_and_its_cell_says_what_is_planned(place: Path) -> None:
    record = finished(place, reports=4, state="running")
    run = record.run(record.study.cells()[4])
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(record.study.cells()[4].config.canonical())
    run.write_status(Status("queued", submitted=time.time()))
    test = opened(study=record.id, cell="4")
    assert not test.exception
    assert "2 pairs planned, seed 0" in words(test)
    assert "Watch it" in words(test)
    assert "Open in" not in words(test)
    assert test.dataframe[0].proto.placeholder == "–"  # not Python's None


def test_a_study_with_cells_missing_says_so_and_can_go_on(place: Path) -> None:
    record = finished(place, reports=4, state="cancelled")
    test = opened()
    assert not any("cancelled" in option for option in test.selectbox(key="study").options)  # a browser keeps its words
    assert "Partial result: 4 of 9 cells" in words(test)
    button(test, "Resume").click().run()
    assert not test.exception
    assert record.status().state == "queued"
    button(test, "Cancel").click().run()
    assert (record.directory / "cancel").exists()


def test_a_study_of_a_folder_that_is_not_there_is_told_so_before_its_start(place: Path) -> None:
    test = opened()
    test.text_area(key="new settings").set_value("dataset=folder:nothing").run()
    assert not test.exception
    (error,) = test.error
    folder = _links.plainly(str(place / "data" / "nothing"))
    assert error.value.startswith(f"This study cannot be run: {folder} is not there")
    assert "Start the study" not in [each.label for each in test.button]


def test_rivals_are_laid_side_by_side(place: Path) -> None:
    finished(place, "rivals", reports=30)
    test = opened()
    assert not test.exception
    assert "Is bilevel optimisation worth its cost?" in words(test)
    table = test.dataframe[0].value
    assert table["attack"][0] == "PACD"
    assert list(table.columns[:2]) == ["attack", "drop, Perceptron (MLP)"]
    assert table["attack s"][0] == "32"


def test_a_sweeps_axes_are_called_as_in_a_form() -> None:
    swept = ("procedure=gaussian,macer", "attack.poison_moments=image,position")
    study = kinds.make("sweep", preset="smoke", rows=swept[0], columns=swept[1])
    axes = [results.field(study.model_dump(mode="json")[axis]) for axis in ("rows", "columns")]
    assert axes == ["Victims' training procedure", "Adam's moments of the poison"]
    assert results.PLAIN["dataset"]("folder:cifar10-jpeg") == "cifar10-jpeg"


def test_a_published_study_opens_without_its_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results.of(finished(place))
    monkeypatch.setattr(exhibits, "exhibited", lambda: [found])
    monkeypatch.setenv("PACD_RUNS", str(place / "elsewhere"))
    test = opened()
    assert not test.exception
    assert "is not on this machine" in words(test)
    assert " · comes with the project · " in test.selectbox(key="study").options[0]
    assert "python -m engine run --preset smoke" in words(test)


def test_a_cell_that_has_not_started_shows_its_command_and_no_dashes(place: Path) -> None:
    record = finished(place, reports=4, state="cancelled")
    test = opened(study=record.id)
    cells = next(box for box in test.selectbox if box.label == "Cell")
    cells.select(cells.options[-1]).run()
    assert "Not started yet. From the command line:" in words(test)
    assert "Drop in ACR **" not in words(test)
    assert "None of the 9 cells is among your runs yet." in words(test)  # of the study that the form would start


def test_the_projects_studies_go_by_their_titles_and_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhibits, "exhibited", SHIPPED)
    note = exhibits.notes()["43731ae460843f7d"]
    test = opened(study="43731")
    assert not test.exception
    assert test.selectbox(key="study").options[0] == f"{note.group} · {note.title}"
    assert any(text.value == f"**Finding:** {note.finding}" for text in test.markdown)


def test_every_study_of_the_project_has_a_finding_whose_numbers_stand_in_the_documentation() -> None:
    shown = {path.stem for path in (GALLERY / "studies").glob(f"{'?' * 16}.json")}
    notes, told = exhibits.notes(), (GALLERY.parent / "docs" / "reproduction.md").read_text()
    assert set(notes) == shown
    assert len({note.title for note in notes.values()}) == len(notes)
    groups = [note.group for note in notes.values()]
    assert len(list(itertools.groupby(groups))) == len(set(groups)) < len(groups)  # each stands together
    for note in notes.values():
        for number in re.findall(r"−?\d[\d.]*(?: ± \d+)?", note.finding.rstrip(".")):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", told), (note.title, number)


@pytest.mark.parametrize(("kind", "preset"), [("transfer-procedure", "quick"), ("rivals", "quick"), ("sweep", "smoke")])
def test_a_cells_command_says_what_differs_from_the_preset_as_a_reader_would_type_it(
    place: Path, kind: str, preset: str
) -> None:
    record = with_reports(kinds.make(kind, preset=preset, overrides=["seed=5"]), place, [])
    record.write_json("request.json", {"preset": preset})
    record.write_status(Status("cancelled"))
    test = opened()
    cells = next(box for box in test.selectbox if box.label == "Cell")
    for cell, title in list(zip(record.study.cells(), cells.options, strict=True))[::4]:
        cells.select(title).run()
        (command,) = [code.value for code in test.code if code.value.startswith("python -m engine run")]
        typed = shlex.split(command.partition(f" --preset {preset} ")[2])[1::2]
        assert with_overrides(PRESETS[preset].config, typed) == cell.config
        assert len({item.partition("=")[0] for item in typed}) == len(typed)
        assert not any("{" in item or '="' in item for item in typed)


def test_a_study_is_started_and_shown(place: Path) -> None:
    test = opened()
    button(test, "Start the study").click().run()
    assert not test.exception
    (record,) = process.all_studies(place / "runs")
    assert record.study == kinds.make("transfer-procedure", preset="smoke")
    assert record.request["preset"] == "smoke"
    assert test.session_state["study"] == record.id
    (news,) = test.toast
    beside_the_button = "This study is under way: [it is shown above](#studies)."
    assert "[See its progress](#studies)" in news.value
    assert beside_the_button in words(test)
    assert test.title[0].value == "Studies"  # where that leads


def test_the_page_is_drawn_once_after_a_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a browser, drawing it again at once would take the toast away."""
    shown, again = finished(place), []
    test = opened(study=shown.id)
    monkeypatch.setattr(st, "rerun", lambda: again.append(1))
    button(test, "Start the study").click().run()
    assert test.session_state["study"] != shown.id
    assert not again


def test_a_study_that_is_there_is_opened_and_said_to_be_above(place: Path) -> None:
    other = finished(place, "transfer-procedure")
    test = opened(study=finished(place).id)
    shown = "You have this study already: [it is shown above](#studies)."
    assert shown not in words(test)
    button(test, "Open it").click().run()
    assert not test.exception
    assert test.session_state["study"] == other.id
    assert shown in words(test)
    assert "Open it" not in [found.label for found in test.button]


def test_any_part_of_the_papers_table_is_asked_for_by_the_same_command(place: Path) -> None:
    test = opened()
    test.selectbox(key="new kind").select("reproduce").run()
    assert not test.exception
    test.multiselect(key="new procedures").set_value(["ga", "macer"]).run()
    test.multiselect(key="new data sets").set_value(["mnist", "cifar10"]).run()
    test.number_input(key="new seeds").set_value(2).run()
    assert not test.exception
    command = "reproduce --procedures ga,macer --datasets mnist,cifar10 --sigmas 0.5 --scale small --seeds 2"
    assert f"python -m engine {command}" in words(test)
    assert next(iter(test.metric)).value == "8"

    test.multiselect(key="new procedures").set_value([]).run()
    assert "This study cannot be run: there is nothing to reproduce" in words(test)
    assert not any(found.label == "Start the study" for found in test.button)


def test_what_cannot_be_run_is_said_before_the_start_and_after_it() -> None:
    test = opened()
    next(field for field in test.text_input if field.label == "Rows").input("sigma=9").run()
    assert "This study cannot be run" in words(test)
    assert not any(found.label == "Start the study" for found in test.button)
    test = opened()
    next(box for box in test.selectbox if "preset" in box.label).select("quick").run()
    button(test, "Start the study").click().run()
    (problem,) = [error.value for column in test.columns for error in column.error]  # beside the button
    assert "not on this machine" in problem


def test_a_link_to_an_unknown_study_is_said() -> None:
    assert "a study that is not here" in words(opened(study="0123"))


def test_a_study_that_another_browser_deletes_goes_from_the_page(place: Path) -> None:
    def page(file: str, root: str) -> None:
        import runpy
        from pathlib import Path

        from engine.studies import process

        known = list(process.all_studies(Path(root)))
        drawn = runpy.run_path(file)
        for record in known:
            process.delete(record)
            drawn["progress"](record)  # as every two seconds

    finished(place)
    test = AppTest.from_function(page, default_timeout=60, args=(PAGE, str(place / "runs"))).run()
    assert not test.exception
    assert "There is no study yet" in words(test)


def test_a_deleted_study_leaves_its_runs(place: Path) -> None:
    record = finished(place)
    run = record.run(record.study.cells()[0])
    test = opened()
    button(test, "Yes, delete it").click().run()
    assert not test.exception
    assert not record.directory.exists()
    assert run.exists()
