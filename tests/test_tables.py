"""Reports as text: the numbers of the report, and nothing from an unfinished run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine import api, html_report
from engine.overrides import with_overrides
from engine.records import Run
from engine.report import tables
from engine.report.numbers import estimates
from engine.report.sentences import percent
from engine.spread import summary
from tests.commanding import main


def test_a_summary_has_a_line_for_each_arm_with_the_reports_numbers(smoke: SimpleNamespace) -> None:
    report = smoke.report
    text = tables.summary(report)
    for arm, values in report["arms"].items():
        (line,) = [line for line in text.splitlines() if line.startswith(arm)]
        assert f"{values['average_certified_radius']['target']['mean']:.3f}" in line
        if arm != "clean":
            assert percent(report["relative_drop"][arm]) in line
    assert f"{report['radius_cap']:.3f}" in text
    assert "over test images" not in text


def test_a_summary_has_the_interval_of_each_drop_over_images(smoke: SimpleNamespace) -> None:
    found = estimates(smoke.run.certificates(), "target", smoke.run.config)
    assert found["drop"].to_dict() == pytest.approx(
        {arm: drop["mean"] for arm, drop in smoke.report["relative_drop"].items()} | {"clean": np.nan}, nan_ok=True
    )
    row = found.loc["poisoned"]
    assert row.drop_low < row["drop"] < row.drop_high
    assert f"poisoned {100 * row.drop_low:z.0f} to {100 * row.drop_high:z.0f} %, " in tables.summary(
        smoke.report, found
    )


def test_a_summary_says_of_how_many_pairs_a_drop_is(smoke: SimpleNamespace) -> None:
    lost = smoke.report["relative_drop"]
    fewer = {arm: drop | {"seeds": drop["seeds"][1:]} for arm, drop in lost.items()}
    count = smoke.report["config"]["victim_seeds"]
    assert f"({count - 1} of {count} pairs)" in tables.summary(smoke.report | {"relative_drop": fewer})
    assert "pairs)" not in tables.summary(smoke.report)


def test_wherever_a_drop_is_told_it_says_of_how_many_pairs_it_is(
    smoke: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Path(shutil.copytree(smoke.run.directory, tmp_path / smoke.run.id)))
    drop = smoke.report["relative_drop"]["poisoned"]
    drops = smoke.report["relative_drop"] | {"poisoned": summary(drop["seeds"][1:]) | {"victims": [1]}}
    run.write_json("report.json", smoke.report | {"relative_drop": drops})
    _, listed, _ = main(capsys, "runs", "--runs-root", tmp_path)
    _, as_table, _ = main(capsys, "runs", "--markdown", "--runs-root", tmp_path)
    notebook = api.open(run.id, runs_root=tmp_path)._repr_html_()
    page = html_report.numbers(run.need_report())
    assert [text.count("(1 of 2 pairs)") for text in (listed, as_table, notebook, page)] == [1, 1, 2, 1]
    assert "pairs)" not in api.open(smoke.run.id, runs_root=smoke.root)._repr_html_()


def test_a_bar_in_a_name_does_not_end_its_cell() -> None:
    lines = tables.table([["class", "n"], ["a|b", 2]]).splitlines()
    assert lines == ["| class | n |", "|---|---|", r"| a\|b | 2 |"]


@pytest.mark.parametrize(("count", "said"), [(1, "1 victim per arm"), (2, "2 victims per arm")])
def test_a_summary_says_how_many_victims_an_arm_has(count: int, said: str, smoke: SimpleNamespace) -> None:
    report = smoke.report | {"config": smoke.report["config"] | {"victim_seeds": count}}
    assert f", {said}, " in tables.summary(report)


def test_a_markdown_table_has_a_row_for_each_finished_run_and_says_what_it_ran_on(
    smoke: SimpleNamespace, tmp_path
) -> None:
    unfinished = Run(tmp_path / "0123456789abcdef")
    unfinished.directory.mkdir()
    unfinished.write_json("report.json", smoke.report | {"complete": False})
    text = tables.markdown([smoke.run, unfinished])
    rows = [line for line in text.splitlines() if line.startswith("| gaussian | pacd | digit ")]
    assert len(rows) == 1
    assert percent(smoke.report["relative_drop"]["poisoned"]) in rows[0]
    assert all(len(line.split("|")) == 14 for line in text.splitlines() if line.startswith("|"))
    assert str(smoke.run.environment["commit"]) in text
    assert "n = 100" in text


def test_the_commands_table_leaves_out_runs_whose_settings_are_not_known(
    smoke: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, settings in enumerate(({}, {"protocol_version": 2}, {"architecture": "of the future"})):
        run = Run(Path(shutil.copytree(smoke.run.directory, tmp_path / f"{number:016x}")))
        run.write_json("config.json", json.loads(smoke.run.config.canonical()) | settings)
    code, text, _ = main(capsys, "runs", "--markdown", "--runs-root", tmp_path)
    assert code == 0
    assert text.count("| gaussian | pacd |") == 1


def test_what_a_run_has_unlike_its_preset_stands_in_its_row(smoke: SimpleNamespace, tmp_path) -> None:
    other = Run(tmp_path / "0123456789abcdef")
    other.directory.mkdir()
    config = with_overrides(smoke.run.config, ["training.squeezing=one-bit", "seed=3"])
    (other.directory / "config.json").write_text(config.canonical())
    for name in ("report", "request"):
        other.write_json(f"{name}.json", smoke.run.read_json(f"{name}.json") or {})
    text = tables.markdown([smoke.run, other])
    rows = [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| gaussian")]
    assert rows == ["", "training.squeezing=one-bit"]
