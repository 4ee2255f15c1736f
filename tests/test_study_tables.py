"""A study's tables and its figure: the reports' numbers, no others."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import records
from engine.config import Config, ConfigError
from engine.figures.study import heat_map
from engine.status import Status
from engine.studies import exhibits, kinds, process, results, tables
from engine.studies.study import Axis, Point, Study

Tiny = Callable[..., Config]


def axis(field: str, *values: Any) -> Axis:
    return Axis(label=field, points=tuple(Point(name=str(v), overrides=(f"{field}={v}",)) for v in values))


def summary(*seeds: float) -> dict[str, Any]:
    mean = sum(seeds) / len(seeds)
    sd = (sum((x - mean) ** 2 for x in seeds) / (len(seeds) - 1)) ** 0.5 if len(seeds) > 1 else None
    return {"mean": mean, "sd": sd, "seeds": list(seeds)}


def fake_report(drop: float, *, poison_reused: bool = False) -> dict[str, Any]:
    def arm(acr: float) -> dict[str, Any]:
        values = {"target": summary(acr - 0.01, acr + 0.01), "all": summary(acr)}
        return {"average_certified_radius": values, "accuracy": values, "abstention_rate": values}

    return {
        "arms": {"clean": arm(1.0), "poisoned": arm(1 - drop), "random_noise": arm(0.9)},
        "relative_drop": {
            "poisoned": summary(drop - 0.02, drop, drop + 0.02),
            "random_noise": summary(0.08, 0.10, 0.12),
        },
        "radius_cap": 1.059,
        "certified_images": {"target": 100, "all": 120},
        "perturbation": {
            "linf_max": 0.1,
            "l2_mean": 1.234,
            "psnr_mean": 27.04,
            "ssim_mean": 0.8765,
            "changed_share": 1.0,
        },
        "seconds": {"poison": 0.0 if poison_reused else 31.6, "train": 20.0, "certify": 5.0, "total": 42.4},
        "reused": ["poison"] if poison_reused else [],
        "complete": True,
    }


@pytest.fixture
def half_done(tiny: Tiny, tmp_path: Path) -> process.StudyRecord:
    """Three of four cells with reports made by hand, the fourth not begun."""
    base = tiny('controls=["random_noise"]', "victim_seeds=3")
    return with_reports(
        Study(
            kind="rivals", base=base, rows=axis("attack.name", "pacd", "watermark"), columns=axis("sigma", 0.1, 0.25)
        ),
        tmp_path,
        [fake_report(0.47), fake_report(0.4, poison_reused=True), fake_report(0.05)],
    )


def with_reports(study: Study, tmp_path: Path, reports: list[dict[str, Any]]) -> process.StudyRecord:
    record = process.StudyRecord(tmp_path / "runs" / "studies" / study.id)
    record.directory.mkdir(parents=True)
    (record.directory / "study.json").write_text(study.canonical())
    record.write_json("request.json", {"preset": "smoke"})
    for cell, report in zip(study.cells(), reports, strict=False):
        run = record.run(cell)
        run.directory.mkdir(exist_ok=True)
        (run.directory / "config.json").write_text(cell.config.canonical())
        run.write_json("report.json", report)
        run.write_json("env.json", {"device": "cpu", "device_name": "a processor", "torch": "2.0", "commit": "abc"})
        run.write_status(Status("done"))
    return record


def test_the_table_has_exactly_the_reports_numbers(half_done: process.StudyRecord) -> None:
    found = results.of(half_done)
    assert results.finished(found) == (3, 4)
    text = tables.markdown(found)
    assert f"**rivals**, study `{half_done.id}`, preset smoke. **PARTIAL RESULT: 3 of 4 cells**" in text
    assert "| pacd | 47 ± 2 % (10 ± 2 %) | 40 ± 2 % (10 ± 2 %) |" in text
    assert "| watermark | 5 ± 2 % (10 ± 2 %) | not started |" in text
    cells = half_done.study.cells()
    assert (
        "| pacd × 0.1 | 3 | 47 ± 2 % | 10 ± 2 % | 37 to 37 | 1.000 ± 0.014 | 0.530 ± 0.014 | 1.23 | 27.0 | 0.876 | 32 "
        f"| 42 | `{cells[0].run_id}` |" in text
    )
    assert "| reused | 42 |" in text
    assert "| pacd | 40 ± 2 % | 10 ± 2 % | 47 ± 2 % | 1.23 | 27.0 | 0.876 | 32 |" in text  # the rivals' own table
    assert "100 test images" in text
    assert "a processor, torch 2.0, commit abc" in text
    widths = [{line.count("|") for line in part.splitlines()} for part in text.split("\n\n") if part.startswith("|")]
    assert all(len(width) == 1 for width in widths)


def test_the_csv_reads_back_to_the_reports_numbers(half_done: process.StudyRecord) -> None:
    found = results.of(half_done)
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(found))))
    assert list(rows[0]) == list(tables.COLUMNS)
    assert [row["run"] for row in rows] == [cell.run_id for cell in half_done.study.cells()]
    first, last = rows[0], rows[3]
    assert float(first["beyond_control_mean"]) == pytest.approx(0.37)
    assert float(first["drop_low"]) == pytest.approx(0.47 - 4.302653 * 0.02 / 3**0.5)
    assert [float(drop) for drop in first["drop_seeds"].split()] == pytest.approx([0.45, 0.47, 0.49])
    assert (first["alpha"], first["n"], first["protocol"]) == ("0.001", str(half_done.study.base.certification.n), "3")
    assert float(first["drop_mean"]) == pytest.approx(0.47, abs=1e-15)
    assert (float(first["l2_mean"]), float(first["attack_seconds"]), float(first["radius_cap"])) == (1.234, 31.6, 1.059)
    assert (first["row"], first["column"], first["victims"], first["complete"]) == ("pacd", "0.1", "3", "True")
    assert rows[1]["attack_seconds"] == ""
    assert (last["state"], last["drop_mean"], last["seconds"]) == ("not started", "", "")


def test_rows_and_columns_are_compared_pair_by_pair(half_done: process.StudyRecord) -> None:
    found = results.of(half_done)
    assert "| 0.1 | -42 (-42 to -42) |" in tables.minus(found, "pacd")
    assert "| 0.25 | – |" in tables.minus(found, "pacd")
    assert "| pacd | -7 (-7 to -7) |" in tables.minus(found, "0.1")
    assert "| mean |" not in tables.minus(found, "pacd")  # of two lines it would say nothing
    with pytest.raises(ConfigError, match="--minus must be a row or column"):
        tables.minus(found, "nobody")


def test_a_reproduction_says_what_was_published_and_at_which_scale(tmp_path: Path) -> None:
    study = kinds.reproduction(["ga"], ["mnist"], [0.5], scale="small", seeds=2)
    found = results.of(with_reports(study, tmp_path, [fake_report(0.4), fake_report(0.5)]))
    text = tables.markdown(found)
    assert "Small scale, not the authors' setting" in text
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if "| mnist |" in line]
    assert [row[3] for row in rows] == ["0", "1", "all (2)"]
    assert [row[5] for row in rows] == ["40 ± 2 %", "50 ± 2 %", "45 ± 7 %"]
    assert "takes more than 30 % of the target class's ACR" in text
    assert rows[2][14:] == ["85", "a processor"]
    assert rows[2][4] == "6"
    found["cells"][1]["device_name"] = "another"
    assert "| 85 | a processor, another |" in tables.markdown(found)
    full = kinds.reproduction(["ga"], ["mnist"], [0.5])
    assert "Small scale" not in tables.markdown(results.of(with_reports(full, tmp_path, [])))


@pytest.mark.parametrize(
    ("more", "whose"),
    [
        ({}, "The authors' setting."),
        ({"arms": ("clean", "control"), "victims": 2}, "The authors' setting."),
        ({"arms": ("clean",)}, "The authors' setting."),
        ({"overrides": ["training.epochs=1"]}, "**Not the authors' setting.**"),
        ({"overrides": ["attack.poison_moments=image"]}, "**Not the authors' setting.**"),
    ],
)
def test_a_reproduction_is_the_authors_only_if_nothing_of_theirs_was_changed(
    more: dict[str, Any], whose: str, tmp_path: Path
) -> None:
    study = kinds.reproduction(["ga", "macer"], ["mnist", "cifar10"], **more)
    text = tables.markdown(results.of(with_reports(study, tmp_path, [])))
    assert whose in text
    assert text.count("authors' setting") == 1


def test_seconds_of_a_reproduction_are_of_runs_that_reused_nothing(tmp_path: Path) -> None:
    study = kinds.reproduction(["ga"], ["mnist"], [0.5], scale="small", seeds=2)
    found = results.of(with_reports(study, tmp_path, [fake_report(0.4), fake_report(0.5, poison_reused=True)]))
    rows = [line.split("|")[-3].strip() for line in tables.markdown(found).splitlines() if "| mnist |" in line]
    assert rows == [f"{found['cells'][0]['seconds']:.0f}", "–", "–"]


def test_a_published_study_is_small_and_holds_no_path(half_done: process.StudyRecord, tmp_path: Path) -> None:
    missing = half_done.study.cells()[3]
    run = half_done.run(missing)
    run.directory.mkdir()
    (run.directory / "config.json").write_text(missing.config.canonical())
    run.write_json("report.json", fake_report(0.1))
    run.write_status(Status("done"))
    found = results.of(half_done)
    path = exhibits.exhibit(half_done, found, tmp_path / "gallery")
    assert exhibits.exhibited(tmp_path / "gallery") == [json.loads(json.dumps(found))]
    (path.parent / "notes.json").write_text(json.dumps({found["id"]: {"group": "C", "title": "A", "finding": "B"}}))
    exhibits.exhibit(half_done, found, tmp_path / "gallery")  # again, and what was written by hand stays
    assert exhibits.notes(tmp_path / "gallery")[found["id"]].finding == "B"
    assert exhibits.exhibited(tmp_path / "gallery") == [json.loads(json.dumps(found))]
    assert path.stat().st_size < 20_000
    assert str(tmp_path) not in path.read_text()
    copies = {run.id for run in records.all_runs(tmp_path / "gallery" / "grid")}
    assert copies == {cell.run_id for cell in half_done.study.cells()}  # so that a click on a cell finds its run


def test_a_published_study_says_what_its_runs_say(half_done: process.StudyRecord, tmp_path: Path) -> None:
    """A run that another study brought, computed elsewhere, would tell another number behind a click."""
    study = half_done.study.model_copy(update={"columns": Axis(label="σ", points=half_done.study.columns.points[:1])})
    record = with_reports(study, tmp_path, [fake_report(0.3), fake_report(0.4)])
    exhibits.exhibit(record, results.of(record), tmp_path / "gallery")
    exhibits.exhibit(record, results.of(record), tmp_path / "gallery")  # the same again is fine
    record.run(study.cells()[0]).write_json("report.json", fake_report(0.2))
    with pytest.raises(ConfigError, match="is in gallery/ already, with other numbers"):
        exhibits.exhibit(record, results.of(record), tmp_path / "gallery")


def test_the_heat_map_shows_each_cell_with_its_control_and_what_is_behind_it(half_done: process.StudyRecord) -> None:
    figure = heat_map(results.of(half_done))
    heat, marks = figure.data
    assert heat.z[0][0] == pytest.approx(47)
    assert heat.z[1][1] is None or heat.z[1][1] != heat.z[1][1]
    assert (heat.zmin, heat.zmax) == (0, 100)
    assert "47 ± 2 %" in marks.text[0]
    assert "random noise 10 ± 2 %" in marks.text[0]
    assert "not started" in marks.text[3]
    assert [tuple(place) for place in marks.customdata] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "n = 3" in marks.hovertext[0]
    assert "47 ± 2 %" in figure.layout.meta["alt"]


def test_a_drop_below_zero_has_a_minus_sign_and_no_hyphen(half_done: process.StudyRecord) -> None:
    found = results.of(half_done)
    found["cells"][0]["drop"] = {"mean": -0.05, "sd": 0.02, "seeds": [-0.03, -0.05, -0.07]}
    _, marks = heat_map(found).data
    assert "<b>−5 ± 2 %</b>" in marks.text[0]
    assert "−3 %, −5 %, −7 %" in marks.hovertext[0]


def test_more_columns_than_fit_are_drawn_downwards_and_clicks_still_mean_the_same_cells(
    tiny: Tiny, tmp_path: Path
) -> None:
    wide = Study(kind="sweep", base=tiny(), rows=axis("threat.target_class", 8, 3), columns=axis("seed", *range(7)))
    found = results.of(with_reports(wide, tmp_path, [fake_report(number / 20) for number in range(14)]))
    figure = heat_map(found, chosen=(1, 2))
    heat, marks = figure.data
    assert np.asarray(heat.z).shape == (7, 2)
    assert heat.z[2][1] == pytest.approx(100 * 9 / 20)
    at = [tuple(place) for place in marks.customdata].index((1, 2))
    assert (marks.x[at], marks.y[at]) == (1, 2)
    (frame,) = figure.layout.shapes
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (0.5, 1.5, 1.5, 2.5)
    assert list(figure.layout.xaxis.ticktext) == ["digit 8", "digit 3"]


def test_the_rivals_drop_is_that_of_the_victims_that_attacks_assume(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("sigma=0.25", "attack.sigma=0.25")
    study = Study(kind="rivals", base=base, rows=axis("attack.name", "pacd"), columns=axis("sigma", 0.1, 0.25, 0.5))
    found = results.of(with_reports(study, tmp_path, [fake_report(drop) for drop in (0.1, 0.4, 0.2)]))
    (row,) = results.by_row(found)
    assert (row["drop"]["mean"], row["transfer"]["mean"]) == pytest.approx((0.4, 0.15))
    assert "| attack | drop, 0.25 | random noise | mean drop, 0.1, 0.5 |" in tables.markdown(found)
    assert "| pacd | 40 ± 2 % | 10 ± 2 % | 15 ± 2 % |" in tables.markdown(found)


def test_a_control_alone_is_told_as_the_control(tmp_path: Path) -> None:
    study = kinds.reproduction(["ga"], ["mnist"], [0.5], scale="small", arms=["control"])
    report = fake_report(0.4)
    report["relative_drop"].pop("random_noise")
    report["arms"].pop("random_noise")
    found = results.of(with_reports(study, tmp_path, [report]))
    assert "| gaussian | mnist | 0.5 | 0 | 3 | – | 40 ± 2 % | – | 1.000 ± 0.014 | – | 0.600" in tables.markdown(found)
    assert (found["cells"][0]["drop"], found["cells"][0]["control_drop"]["mean"]) == (None, pytest.approx(0.4))


def test_a_reproduction_of_clean_victims_alone_has_results(tmp_path: Path) -> None:
    study = kinds.reproduction(["ga"], ["mnist"], [0.5], scale="small", arms=["clean"])
    report = fake_report(0.4)
    report["relative_drop"] = {}
    report["arms"] = {"clean": report["arms"]["clean"]}
    text = tables.markdown(results.of(with_reports(study, tmp_path, [report])))
    assert "| gaussian | mnist | 0.5 | 0 | 2 | – | – | – | 1.000 ± 0.014 | – | – |" in text
    assert "Victims are pairs of the same seed, or clean ones alone." in text
    assert "a processor, torch 2.0, commit abc" in text
