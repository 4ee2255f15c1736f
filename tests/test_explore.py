"""Explore: sliders stand on finished runs only, links are checked, and any other point can be computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine import grid, records
from engine.grid import Point
from engine.records import GALLERY, GRID, Run
from pages import _grid
from tests.app import PROJECT, button, opened, words

PAGE = "pages/explore.py"
KNOWN = dict(grid.found(run for folder in (GALLERY, GRID) for run in records.all_runs(folder)))
pytestmark = pytest.mark.usefixtures("place")


def at(test: Any) -> Point:
    state = test.session_state
    return Point(*(state[f"explore_{field}"] for field in ("procedure", "digit", "sigma", "epsilon")))


def form(test: Any) -> tuple[Any, ...]:
    """The point that the page offers to compute."""
    return tuple(test.session_state[f"other_{field}"] for field in ("procedure", "digit", "sigma", "epsilon"))


def moved(test: Any, field: str, value: float) -> None:
    next(each for each in test.select_slider if each.key == f"explore_{field}").set_value(value).run()


def own_run(root: Path, point: Point, drop: float) -> Run:
    """A finished run of the reader's own at a point, with another run's files."""
    config = grid.config_of(point)
    source = KNOWN[Point("gaussian", 8, 0.5, 0.1)].directory
    run = Run(Path(shutil.copytree(source, root / records.run_id(config))))
    (run.directory / "config.json").write_text(config.canonical())
    report = run.report or {}
    report["relative_drop"]["poisoned"]["mean"] = drop
    (run.directory / "report.json").write_text(json.dumps(report))
    return run


def test_the_project_comes_with_a_grid() -> None:
    assert len(KNOWN) >= 18
    for run in KNOWN.values():
        assert run.report is not None
        assert set(run.report["relative_drop"]) >= {"poisoned", "random_noise"}
        table = run.certificates()
        assert table is not None
        assert set(table["arm"]) == set(run.report["arms"])
    assert sum(run.disk_bytes() for run in KNOWN.values()) < 100_000_000  # a grid of tens of megabytes at most


def test_the_first_sight_is_a_finished_result_and_its_controls() -> None:
    test = opened(PAGE)
    assert not test.exception
    assert at(test) == Point("gaussian", 8, 0.5, 0.1)
    report = KNOWN[at(test)].report
    assert report is not None
    drop = report["relative_drop"]["poisoned"]
    assert f"{100 * drop['mean']:.0f} ± {100 * drop['sd']:.0f} % less" in words(test)
    arms = ("poisoned", "random noise", "shuffled signs")
    assert [metric.label for metric in test.metric] == [f"Drop in ACR, {arm}" for arm in arms]
    assert len(test.get("plotly_chart")) == 4


def test_the_browsers_back_button_goes_back_to_the_point_before() -> None:
    """It brings an older address, which is not the one that the page wrote last; on arrival the page writes none."""
    test = opened(PAGE)
    assert not test.query_params
    moved(test, "epsilon", 0.2)
    assert at(test).epsilon == 0.2
    moved(test, "epsilon", 0.05)
    test.query_params["epsilon"] = "0.2"
    assert at(test.run()).epsilon == 0.2
    for name in list(test.query_params):
        del test.query_params[name]
    assert at(test.run()).epsilon == 0.1
    assert not test.query_params


def test_whoever_comes_back_finds_the_sliders_where_they_were_and_a_link_wins() -> None:
    def back(**query: str) -> Any:
        again = AppTest.from_file(str(PROJECT / PAGE), default_timeout=60)
        again.session_state["explore point"] = left  # what is no widget's, Streamlit keeps
        again.query_params.update(query)
        return again.run()

    test = opened(PAGE)
    moved(test, "digit", 5)
    left = at(test)
    assert left == Point("gaussian", 5, 0.5, 0.1) == test.session_state["explore point"]
    again = back()
    assert at(again) == left
    assert not again.query_params  # which would be one more entry of the browser's history
    moved(again, "epsilon", 0.2)
    for name in list(again.query_params):
        del again.query_params[name]
    assert at(again.run()) == left
    assert at(back(digit="9", epsilon="0.2")) == Point("gaussian", 9, 0.5, 0.2)
    assert at(back(epsilon="0.2")) == Point("gaussian", 8, 0.5, 0.2)  # a link shows everybody the same


def test_the_link_to_this_view_says_all_even_where_the_address_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pages._grid.st.session_state", {"explore point": at(opened(PAGE))})
    assert _grid.query() == "?procedure=gaussian&digit=8&sigma=0.5&epsilon=0.1"


def test_a_value_that_is_not_there_is_said_to_have_moved() -> None:
    test = opened(PAGE, procedure="gaussian", digit="0")
    assert at(test).target_class == 0
    test.selectbox(key="explore_procedure").set_value("macer").run()
    assert at(test).target_class == 3
    (said,) = (info.value for info in test.info)
    assert "Not computed yet: **MACER, digit 0, σ = 0.5, ε = 0.1**" in said
    assert "is shown: MACER, digit 3, " in said
    assert form(test) == ("macer", 0, 0.5, 0.1)  # one press away


def test_a_slider_moves_everything_to_another_run() -> None:
    test = opened(PAGE)
    moved(test, "epsilon", 0.2)
    assert at(test).epsilon == 0.2
    assert f"Run {KNOWN[at(test)].id}" in words(test)
    assert test.query_params["epsilon"] == "0.2"


def test_a_value_that_another_digit_lacks_snaps_to_the_nearest_that_it_has(place: Path) -> None:
    own_run(place, Point("gaussian", 8, 0.5, 0.33), 0.5)
    test = opened(PAGE, epsilon="0.33")
    assert at(test).epsilon == 0.33
    moved(test, "digit", 3)
    assert at(test) == Point("gaussian", 3, 0.5, 0.2)
    assert form(test) == ("gaussian", 3, 0.5, 0.33)
    moved(test, "epsilon", 0.1)
    assert not test.info


def test_a_finished_run_of_ones_own_joins_the_sliders(place: Path) -> None:
    own_run(place, Point("gaussian", 8, 0.5, 0.123), 0.375)
    test = opened(PAGE, epsilon="0.123", digit="8", sigma="0.5", procedure="gaussian")
    assert not test.error
    assert "38 ± " in next(each.value for each in test.metric if each.label == "Drop in ACR, poisoned")


OF_EACH = [[point for point in KNOWN if point.procedure == procedure] for procedure in grid.BASES]


@pytest.mark.parametrize("point", [end(points) for points in OF_EACH for end in (min, max)])
def test_the_ends_of_each_procedure_open_by_their_links(point: Point) -> None:
    fields = zip(("procedure", "digit", "sigma", "epsilon"), map(str, point), strict=True)
    test = opened(PAGE, **dict(fields))
    assert not test.error
    assert not test.exception
    assert at(test) == point


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("epsilon", "7", "Budget ε must be a number between 0 and 1"),
        ("epsilon", "nan", "Budget ε"),
        ("epsilon", "much", "epsilon must be a number"),
        ("sigma", "-1", "Noise level σ"),
        ("digit", "12", "digit must be a whole number from 0 to 9"),
        ("digit", "8.5", "digit must be a whole number from 0 to 9"),
        ("procedure", "<script>", "procedure must be one of"),
    ],
)
def test_a_link_to_what_cannot_be_shown_is_refused_by_name(field: str, text: str, said: str) -> None:
    test = opened(PAGE, **{field: text})
    assert not test.exception
    assert said in " ".join(error.value for error in test.error)
    assert at(test) == Point("gaussian", 8, 0.5, 0.1)


def test_a_link_to_a_point_that_is_not_computed_shows_the_nearest_and_offers_to_compute_it() -> None:
    test = opened(PAGE, epsilon="0.17")
    assert not test.error
    assert at(test) == Point("gaussian", 8, 0.5, 0.2)
    assert any(
        "Not computed yet: **Gaussian augmentation, digit 8, σ = 0.5, ε = 0.17**" in each.value for each in test.info
    )
    assert form(test) == ("gaussian", 8, 0.5, 0.17)
    assert test.query_params["epsilon"] == "0.17"  # as it came


def test_any_other_point_is_computed_for_real(
    submitted: list[Any], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr("engine.datasets.available", lambda *_: True)
    monkeypatch.setattr("engine.datasets.check", lambda *_: None)
    test = opened(PAGE)
    assert form(test) == at(test)
    next(each for each in test.number_input if each.key == "other_epsilon").set_value(0.17).run()
    button(test, "Run this experiment").click().run()
    assert not test.exception
    assert submitted == [grid.config_of(Point("gaussian", 8, 0.5, 0.17))]
    assert any("Cancel" in each.label for each in test.button)


def test_a_point_that_cannot_be_is_refused_in_the_words_of_the_form() -> None:
    said = "Budget ε must be a number between 0 and 1, got -1.0."
    test = opened(PAGE, epsilon="-1")
    assert [error.value for error in test.error] == [f"This link asks for a point that cannot be: {said}"]
    test = opened(PAGE)
    next(each for each in test.number_input if each.key == "other_epsilon").set_value(-1.0).run()
    assert [error.value for error in test.error] == [f"This cannot be computed: {said}"]


def test_without_mnist_nothing_can_be_started_and_the_changes_are_still_shown() -> None:
    test = opened(PAGE, epsilon="0.17")
    assert button(test, "Run this experiment").disabled
    assert "needs MNIST" in words(test)
    assert len(test.get("image")) == 1


def test_a_run_of_the_grid_opens_on_every_page_and_in_the_picker() -> None:
    run = next(run for run in KNOWN.values() if run.directory.parent == GRID)
    test = opened("app.py", run=run.id)
    assert test.sidebar.selectbox[0].value == run.id
    for page in ("pages/certify.py", "pages/inspect.py", "pages/runs.py"):
        alone = opened(page, run=run.id)
        assert not alone.exception
        assert "may have been deleted" not in words(alone)
