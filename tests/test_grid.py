"""The gallery's grid: points and configurations name each other, and a finished run stands where its settings say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import __main__, grid, records
from engine.config import Config
from engine.grid import Point
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run
from engine.status import Status

EVERYWHERE = grid.plan(tuple(grid.BASES), grid.DIGITS, grid.SIGMAS, grid.EPSILONS)


def finished(config: Config, root: Path) -> Run:
    run = Run(root / records.run_id(config))
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(config.canonical())
    run.write_json("report.json", {})
    run.write_status(Status("done"))
    return run


def test_every_point_names_one_configuration() -> None:
    assert len({grid.config_of(point).canonical() for point in EVERYWHERE}) == len(EVERYWHERE)


def test_a_point_is_what_its_command_says() -> None:
    for point in EVERYWHERE[::17]:
        assert with_overrides(PRESETS[point.preset].config, point.overrides) == grid.config_of(point)


def test_every_quick_preset_is_a_procedure_of_the_grid() -> None:
    assert sorted(grid.BASES.values()) == sorted(name for name in PRESETS if name.startswith("quick"))
    assert grid.config_of(Point("gaussian", 8, 0.5, 0.1)) == PRESETS["quick"].config


@pytest.mark.parametrize(
    "override", ["seed=1", "attack.upper_steps=7", "threat.poison_fraction=0.5", "dataset=cifar10"]
)
def test_a_run_that_differs_in_anything_else_stands_nowhere(override: str, tmp_path: Path) -> None:
    other = with_overrides(PRESETS["quick"].config, [override])
    assert not list(grid.found([finished(other, tmp_path)]))


def test_finished_runs_are_found_at_their_points_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    wanted = Point("gaussian", 3, 0.375, 0.07)
    run = finished(grid.config_of(wanted), tmp_path)
    half = finished(grid.config_of(wanted._replace(epsilon=0.08)), tmp_path)
    half.write_status(Status("cancelled"))
    broken = finished(grid.config_of(wanted._replace(epsilon=0.09)), tmp_path)
    (broken.directory / "config.json").write_text('{"procedure": "gaussian"}')
    assert list(grid.found([half, broken, run])) == [(wanted, run)]


def test_the_command_computes_what_is_missing_and_publishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: list[str], tiny: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(
        grid, "config_of", lambda point: tiny(f"sigma={point.sigma}", f"threat.epsilon={point.epsilon}")
    )
    monkeypatch.setattr(grid, "what_ifs", lambda: {"seed=1": tiny("sigma=0.5", "seed=1")})
    monkeypatch.setattr(records, "GALLERY", tmp_path / "gallery")
    monkeypatch.setattr(records, "GRID", tmp_path / "gallery" / "grid")
    typed = ["gallery", "--procedures", "gaussian", "--classes", "8", "--sigmas", "0.5", "--runs-root", str(tmp_path)]
    assert __main__.main([*typed, "--epsilons", "0.1,0.2"]) == 0
    made = {run.id for run in records.all_runs(records.GRID)} - {records.run_id(tiny("sigma=0.5", "seed=1"))}
    assert made == {records.run_id(tiny("sigma=0.5", f"threat.epsilon={epsilon}")) for epsilon in (0.1, 0.2)}
    assert in_this_process == ["work"] * 3
    assert "3 runs, 3 of them missing" in capsys.readouterr().err
    assert __main__.main([*typed, "--epsilons", "0.1,0.2"]) == 0
    assert in_this_process == ["work"] * 3  # nothing twice


@pytest.mark.parametrize(
    "typed", [["--procedures", "magic"], ["--sigmas", "much"], ["--classes", "10"], ["--epsilons", "2"]]
)
def test_what_cannot_be_computed_is_refused_in_one_line(
    typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["gallery", "--dry-run", *typed, "--runs-root", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
