"""What can be taken away: the data of each figure as CSV, a run's images as PNG."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from engine import html_report, records
from engine.figures import data as figure_data
from engine.records import GALLERY, Run
from engine.status import Status
from pages import _export
from tests.app import EXAMPLE, opened, own_copy

RUN = Run(GALLERY / EXAMPLE)


@pytest.fixture(scope="module")
def figures() -> dict[str, go.Figure]:
    return html_report.figures_of(RUN)


@pytest.mark.parametrize("name", list(html_report.CAPTIONS))
def test_every_point_of_every_series_is_in_the_table(name: str, figures: dict[str, go.Figure]) -> None:
    figure = figures[name]
    table = pd.read_csv(io.StringIO(figure_data.csv(figure)))
    drawn = [trace for trace in figure.data if trace.x is not None]
    assert drawn
    assert len(table) == sum(len(trace.x) for trace in drawn)
    y = next(column for column in table.columns if column.startswith("y"))
    numbers = np.concatenate([np.asarray(trace.y, dtype=float) for trace in drawn])
    assert np.allclose(table[y], numbers, equal_nan=True)
    assert list(dict.fromkeys(table["series"])) == list(
        dict.fromkeys(trace.name or f"series {k}" for k, trace in enumerate(figure.data, start=1))
    )


def test_certified_accuracy_at_0_is_the_reports_accuracy(figures: dict[str, go.Figure]) -> None:
    report = RUN.report or {}
    table = figure_data.table(figures["certified_accuracy"])
    for arm in ("clean", "poisoned"):
        rows = table[(table["series"] == arm) & (table.iloc[:, 1] == 0)]
        assert rows.iloc[0, 2] == pytest.approx(report["arms"][arm]["accuracy"]["target"]["mean"])


def test_maps_error_bars_panels_and_empty_figures() -> None:
    figure = go.Figure(go.Heatmap(z=[[1, 2], [3, 4]]))
    assert figure_data.table(figure)[["row", "column", "z"]].to_numpy().tolist() == [
        [0, 0, 1], [0, 1, 2], [1, 0, 3], [1, 1, 4],
    ]  # fmt: skip
    bars = go.Figure(go.Scatter(x=[1], y=[2], error_y=dict(array=[0.5]), name="a"))
    bars.update_xaxes(title_text="radius<br>r")
    assert list(figure_data.table(bars).columns) == ["series", "x: radius r", "y", "error"]
    bars.add_scatter(x=[3], y=[4], xaxis="x2")
    assert figure_data.table(bars)["panel"].tolist() == ["x", "x2"]
    assert figure_data.csv(go.Figure()) == "series,x,y\n"


def test_images_come_as_they_are_and_enlarged_by_whole_pixels() -> None:
    small, large = (np.asarray(Image.open(io.BytesIO(_export.mosaic(RUN, enlarged=on)))) for on in (False, True))
    factor = large.shape[0] // small.shape[0]
    assert factor > 1
    assert np.array_equal(large, small.repeat(factor, axis=0).repeat(factor, axis=1))
    with pytest.raises(ValueError, match="changed no image"):
        _export.mosaic(Run(GALLERY / "nothing"), enlarged=False)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("page", "least"), [("start", 2), ("certify", 5)])
def test_each_figure_of_these_pages_offers_its_data(page: str, least: int) -> None:
    test = opened(f"pages/{page}.py", run=EXAMPLE)
    assert not test.exception
    labels = [button.proto.label for button in test.get("download_button")]
    assert labels.count("Data (CSV)") == len(test.get("plotly_chart")) >= least


@pytest.mark.parametrize(
    ("page", "query", "keys"),
    [
        ("runs", {"compare": ",".join(run.id for run in records.all_runs(GALLERY))}, ["comparison"]),
        ("inspect", {}, ["perturbations"]),
        ("inspect", {"view": "Over the attack's steps"}, ["losses"]),
        ("image", {"kind": "training"}, ["image_votes", "image_confidence"]),
        ("image", {"kind": "test"}, ["image_recorded"]),
        ("poison", {}, [f"losses {EXAMPLE}"]),
        ("try", {"try_source": "A test image"}, ["try_votes"]),
    ],
)
def test_charts_among_pictures_offer_their_data(place: Path, page: str, query: dict[str, str], keys: list[str]) -> None:
    own_copy(place)
    test = opened(f"pages/{page}.py", run=EXAMPLE, **query)
    assert not test.exception
    offered = [each.proto.id for each in test.get("download_button") if each.proto.label == "Data (CSV)"]
    assert [each.rpartition("-data ")[2] for each in offered] == keys


def test_a_chart_that_is_drawn_every_second_has_no_button_that_would_flicker(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "status", lambda self: Status("running", phase="attack"))
    test = opened("pages/poison.py", run=own_copy(place).id)
    assert len(test.get("plotly_chart")) == 1
    assert "Data (CSV)" not in [each.proto.label for each in test.get("download_button")]


@pytest.mark.usefixtures("place")
def test_the_runs_page_offers_images_only_where_there_are_some(place) -> None:
    own_copy(place)
    labels = [button.proto.label for button in opened("pages/runs.py", run=EXAMPLE).get("download_button")]
    assert {"Images (PNG)", "Images enlarged (PNG)", "Report (HTML)", "Whole run (zip)"} <= set(labels)
    (place / EXAMPLE / "poison.safetensors").unlink()
    labels = [button.proto.label for button in opened("pages/runs.py", run=EXAMPLE).get("download_button")]
    assert "Images (PNG)" not in labels
