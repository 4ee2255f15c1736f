"""Studies: grids, ids and order; the process of one, killed, resumed, cancelled."""

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for

from engine import costs, jobs, paper, records
from engine.choices import PROCEDURES
from engine.config import Config, ConfigError, arms_of, canonical_json, lower_level, poison_depends_on
from engine.overrides import differences, with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, GRID, Run, RunNotFound
from engine.studies import exhibits, kinds, process, results, tables
from engine.studies.study import Axis, Point, Study, checked, seconds_of

Tiny = Callable[..., Config]
LONG = ("attack.upper_steps=20000", "attack.restart_every=20000")


def axis(field: str, *values: Any) -> Axis:
    return Axis(label=field, points=tuple(Point(name=str(v), overrides=(f"{field}={v}",)) for v in values))


@pytest.fixture
def study(tiny: Tiny) -> Study:
    base = tiny('controls=["random_noise"]', "attack.upper_steps=1", "victim_seeds=2")
    return Study(kind="sweep", base=base, rows=axis("threat.epsilon", 0.1, 0.2), columns=axis("sigma", 0.1, 0.25))


# --- grids ---


def test_a_grid_is_every_row_with_every_column(study: Study) -> None:
    cells = study.cells()
    assert [(cell.row, cell.column) for cell in cells] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(cell.config.threat.epsilon, cell.config.sigma) for cell in cells] == [
        *((0.1, 0.1), (0.1, 0.25)),
        *((0.2, 0.1), (0.2, 0.25)),
    ]
    assert cells[3].config == with_overrides(study.base, ["threat.epsilon=0.2", "sigma=0.25"])
    assert cells[3].run_id == records.run_id(cells[3].config)
    assert study.name_of(cells[1]) == "0.1 × 0.25"
    assert study.model_copy(update=dict(kind="transfer-sigma")).name_of(cells[1]) == "0.1 → 0.25"


def test_a_study_of_one_axis_has_one_column(tiny: Tiny) -> None:
    study = Study(kind="sweep", base=tiny(), rows=axis("seed", 1, 2, 3))
    assert [cell.config.seed for cell in study.cells()] == [1, 2, 3]
    assert study.name_of(study.cells()[2]) == "3"


def test_the_id_follows_from_the_content_and_survives_the_file(study: Study) -> None:
    again = Study.model_validate_json(study.canonical())
    assert again == study
    assert again.id == study.id
    assert len(study.id) == 16
    assert study.model_copy(update={"columns": Axis()}).id != study.id


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (axis("sigma", 9), Axis(), "sigma"),
        (axis("nonsense", 1), Axis(), "there is no field 'nonsense'"),
        (axis("sigma", 0.1, 0.1), Axis(), "points of an axis must differ"),
        (axis("sigma", 0.1), axis("sigma", 0.25), "both set sigma"),
        (axis("seed", *range(30)), axis("sigma", *(0.1 * k for k in range(1, 21))), "at most 400 cells"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_when_it_is_made(
    tiny: Tiny, rows: Axis, columns: Axis, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        checked(kind="sweep", base=tiny(), rows=rows, columns=columns)


@pytest.mark.parametrize("transposed", [False, True])
def test_cells_that_share_their_poison_are_computed_one_after_the_other(tiny: Tiny, transposed: bool) -> None:
    axes = [axis("attack.sigma", 0.1, 0.2, 0.3), axis("sigma", 0.1, 0.2, 0.3)]
    rows, columns = reversed(axes) if transposed else axes
    order = Study(kind="transfer-sigma", base=tiny(), rows=rows, columns=columns).in_order()
    assert sorted((cell.row, cell.column) for cell in order) == [(r, c) for r in range(3) for c in range(3)]
    attacked = [cell.config.attack.sigma for cell in order]
    assert sum(a != b for a, b in pairwise(attacked)) == 2


@pytest.mark.parametrize("target", [0, 8])
def test_what_is_reused_is_not_expected_again(target: int, tiny: Tiny) -> None:
    base = tiny('controls=["random_noise"]', "victim_seeds=3", "training.epochs=5", f"threat.target_class={target}")
    study = Study(kind="t", base=base, rows=axis("attack.sigma", 0.1, 0.2), columns=axis("sigma", 0.1, 0.2))
    first, second, third, fourth = seconds_of(study, device="cpu", data_root=Path()).values()
    poison = costs.work_of_attack(base) / costs.units_per_second("cpu")
    victims = (first - costs.STARTUP_SECONDS - poison) / 3  # of each of three arms
    assert second == pytest.approx(costs.STARTUP_SECONDS + 3 * victims)  # the poison is there
    assert third == pytest.approx(costs.STARTUP_SECONDS + poison + victims)  # clean and control are there
    assert fourth == pytest.approx(costs.STARTUP_SECONDS + victims)


def test_only_what_differs_is_expected_again(tiny: Tiny) -> None:
    base = tiny('controls=["random_noise"]', "victim_seeds=3", "training.epochs=5")
    rows, alone = axis("certification.alpha", 0.01, 0.1), axis("sigma", 0.1)
    first, second = seconds_of(
        Study(kind="t", base=base, rows=rows, columns=alone), device="cpu", data_root=Path()
    ).values()
    assert second == costs.STARTUP_SECONDS < first
    targets = Study(kind="t", base=base, rows=axis("threat.target_class", 8, 3), columns=alone)
    first, second = seconds_of(targets, device="cpu", data_root=Path()).values()
    clean = 3 * costs.work_of_training(base) / costs.units_per_second("cpu")
    assert first - second == pytest.approx(clean)  # they certify other images of their own


# --- kinds ---


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("preset", ["quick", "smoke", "paper-macer-mnist", "paper-ga-cifar10"])
def test_every_kind_has_axes_that_fit_every_preset(kind: str, preset: str) -> None:
    study = kinds.make(kind, preset=preset)
    assert all(cell.config.controls == ("random_noise",) for cell in study.cells())
    assert len(study.cells()) >= 4


def test_transfer_over_procedures_moves_attack_and_victims_apart() -> None:
    study = kinds.make("transfer-procedure")
    for cell in study.cells():
        attacker = cell.config.attack.procedure
        assert attacker is not None
        assert attacker.name == study.rows.points[cell.row].name
        assert cell.config.procedure.name == study.columns.points[cell.column].name
        assert (
            cell.config.procedure
            == PRESETS[
                "quick" if cell.column == 0 else f"quick-{study.columns.points[cell.column].name}"
            ].config.procedure
        )


def test_a_procedure_of_the_paper_brings_its_own_levels_and_training() -> None:
    study = kinds.make("transfer-procedure", preset="paper-ga-mnist")
    for cell in study.cells():
        attacker, victims = (name.removesuffix("-pacd").replace("gaussian", "ga") for name in
                             (study.rows.points[cell.row].name, study.columns.points[cell.column].name))  # fmt: skip
        made, trained = paper.paper(attacker, "mnist", 0.5), paper.paper(victims, "mnist", 0.5)
        assert cell.config.attack == made.attack.model_copy(
            update={"procedure": made.attack.procedure or made.procedure}
        )
        assert (cell.config.procedure, cell.config.training) == (trained.procedure, trained.training)


@pytest.mark.parametrize("preset", ["quick", "quick-smoothadv", "quick-macer", "paper-macer-mnist", "paper-ga-cifar10"])
def test_at_home_a_transfer_has_the_presets_own_attack_and_victims(preset: str) -> None:
    own = PRESETS[preset].config
    study = kinds.make("transfer-procedure", preset=preset)
    (home,) = (
        cell.config
        for cell in study.cells()
        if {study.rows.points[cell.row].name, study.columns.points[cell.column].name} == {own.procedure.name}
    )
    assert lower_level(home) == lower_level(own)
    assert home.procedure == own.procedure
    assert home.attack.upper_steps == own.attack.upper_steps
    assert (home.training, home.victim_seeds) == (own.training, own.victim_seeds)


def test_rivals_are_all_attacks_made_against_one_procedure_whatever_the_victims() -> None:
    study = kinds.make("rivals", columns="procedure=gaussian,macer")
    assert "pacd" in [point.name for point in study.rows.points]
    assert "none" not in [point.name for point in study.rows.points]
    assert {cell.config.attack.procedure.name for cell in study.cells() if cell.config.attack.procedure} == {"gaussian"}


def test_axes_of_ones_own_take_words_numbers_and_json() -> None:
    study = kinds.make(
        "sweep", rows="threat.poison_fraction=0.5, 1", columns='procedure=["standard", {"name": "macer", "draws": 2}]'
    )
    assert [point.name for point in study.rows.points] == ["0.5", "1"]
    assert [point.name for point in study.columns.points] == ["standard", "macer"]
    assert study.cells()[3].config.procedure.draws == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(kind="nonsense"), "a kind of study is one of"),
        (dict(kind="sweep", preset="nonsense"), "preset must be one of"),
        (dict(kind="sweep", rows="sigma"), "an axis is field=v1,v2"),
        (dict(kind="sweep", rows="seed="), "no value for seed"),
        (dict(kind="sweep", rows="seed=[1,"), "no JSON list"),
        (dict(kind="sweep", rows="nonsense=1"), "there is no field 'nonsense'"),
        (dict(kind="sweep", overrides=["sigma=9"]), "sigma"),
    ],
)
def test_a_study_that_cannot_be_made_says_why(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kinds.make(**arguments)


def test_the_papers_table_has_the_authors_setting_in_every_cell() -> None:
    study = kinds.reproduction(["ga", "macer"], ["mnist", "cifar10"], seeds=2, victims=3)
    assert len(study.rows.points) == 2 * 3 + 2 * 2
    assert [point.name for point in study.columns.points] == ["seed 0", "seed 1"]
    by_name = {study.rows.points[cell.row].name: cell.config for cell in study.cells() if cell.column == 1}
    wanted = with_overrides(
        paper.paper("macer", "cifar10", 0.25), ['controls=["random_noise"]', "victim_seeds=3", "seed=1"]
    )
    assert by_name["macer, cifar10, σ = 0.25"] == wanted


def test_differences_are_the_overrides_that_lead_from_one_configuration_to_another() -> None:
    for base in PRESETS.values():
        for other in PRESETS.values():
            changes = differences(base.config, other.config)
            assert with_overrides(base.config, changes) == other.config
    assert set(PROCEDURES) >= set(kinds.presets.family("paper-ga-mnist", 0.5))


# --- the study's process ---


def test_a_study_reuses_stages_from_cell_to_cell_and_answers_at_once_when_done(
    study: Study, runs_root: Path, in_this_process: list[str]
) -> None:
    record = process.submit(study, runs_root=runs_root, data_root=runs_root, preset="smoke")
    assert in_this_process == ["study-work", *["work"] * 4]
    status = record.status()
    assert (status.state, status.fraction, status.events) == ("done", 1.0, ())
    reused = [record.run(cell).report["reused"] for cell in study.cells()]  # type: ignore[index]
    assert reused[0] == []
    assert {"victim clean-0", "votes clean-1"} <= set(reused[2])  # same σ, another ε
    assert record.unfinished() == []
    process.submit(study, runs_root=runs_root, data_root=runs_root)
    assert len(in_this_process) == 5
    assert {run.id for run in records.all_runs(runs_root)} == {cell.run_id for cell in study.cells()}
    assert process.find(runs_root, study.id[:5]) == record
    with pytest.raises(RunNotFound, match="no study under"):
        process.find(runs_root, "0" * 16)


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(
    tiny: Tiny, runs_root: Path, in_this_process: list[str]
) -> None:
    study = Study(
        kind="sweep", base=tiny('controls=["random_noise"]'), rows=axis("training.learning_rate", 1e30, 0.003)
    )
    record = process.submit(study, runs_root=runs_root, data_root=runs_root)
    status = record.status()
    assert status.state == "failed"
    assert status.error == "1 cell(s) have no result"
    (event,) = status.events
    assert "1e+30" in event
    assert "the training loss became nan" in event
    found = results.of(record)
    assert [cell["state"] for cell in found["cells"]] == ["failed", "done"]
    assert "PARTIAL RESULT: 1 of 2 cells" in tables.markdown(found)
    with pytest.raises(ConfigError, match="not finished"):
        exhibits.exhibit(record, found, runs_root)
    process.submit(study, runs_root=runs_root, data_root=runs_root)
    assert in_this_process == ["study-work", "work", "work", "study-work", "work"]  # only the failed one again


def test_cells_of_a_study_are_of_the_same_images(
    study: Study, runs_root: Path, in_this_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changes the folder behind the first cell."""
    monkeypatch.setattr("engine.datasets.fingerprint", lambda *_: "before" if len(in_this_process) < 2 else "after")
    monkeypatch.setattr(Run, "check_images", lambda *_: None)
    record = process.submit(study, runs_root=runs_root, data_root=runs_root)
    assert in_this_process == ["study-work", "work"]
    status = record.status()
    assert status.state == "failed"
    assert "images have changed since the study was started" in str(status.error)


def test_a_study_waits_for_somebody_elses_run_and_leaves_it_to_them(tiny: Tiny, runs_root: Path) -> None:
    study = Study(kind="sweep", base=tiny(*LONG, "controls=[]"), rows=axis("seed", 0))
    ours = jobs.submit(study.cells()[0].config, runs_root=runs_root, data_root=runs_root)
    record = process.submit(study, runs_root=runs_root, data_root=runs_root)
    try:
        wait_for(lambda: record.status().detail == ours.id and ours.status().state == "running")
        process.stop_now(record)
        assert record.status().state == "cancelled"
        assert ours.status().active
    finally:
        process.stop_now(record)
        jobs.stop_now(ours)


def test_a_study_that_was_killed_goes_on_where_it_was_and_can_be_cancelled_and_deleted(
    tiny: Tiny, runs_root: Path
) -> None:
    base = tiny('controls=["random_noise"]')
    steps = Axis(label="steps", points=(Point(name="few"), Point(name="many", overrides=LONG)))
    study = Study(kind="sweep", base=base, rows=steps)
    quick, slow = (Run(runs_root / cell.run_id) for cell in study.in_order())
    record = process.submit(study, runs_root=runs_root, data_root=runs_root)
    try:
        wait_for(lambda: slow.exists() and slow.status().state == "running")
        finished, pid = quick.status(), record.status().pid
        assert finished.state == "done"
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        wait_for(lambda: record.status().state == "lost")
        assert slow.status().active  # a run is a process of its own
        assert process.submit(study, runs_root=runs_root, data_root=runs_root) == record
        wait_for(lambda: record.status().detail == slow.id and record.status().state == "running")
        assert 0.0 < record.status().fraction < 1.0
        assert record.status().eta_seconds is not None
        assert quick.status() == finished
    finally:
        process.stop_now(record)
        jobs.stop_now(slow)
    assert record.status().state == "cancelled"
    assert slow.status().state == "cancelled"
    process.delete(record)
    assert list(process.all_studies(runs_root)) == []
    assert quick.status() == finished  # its runs stay


@pytest.mark.parametrize("preset", ["paper-ga-cifar10", "paper-smoothadv-cifar10", "paper-macer-cifar10"])
def test_a_row_of_a_transfer_on_cifar10_is_one_poison_and_its_victims_are_the_papers(preset: str) -> None:
    study = kinds.make("transfer-procedure", preset=preset)
    sigma = study.base.sigma
    for row, point in enumerate(study.rows.points):
        cells = [cell for cell in study.cells() if cell.row == row]
        assert len({canonical_json(poison_depends_on(cell.config)) for cell in cells}) == 1
        made = paper.paper(point.name.removesuffix("-pacd").replace("gaussian", "ga"), "cifar10", sigma)
        assert poison_depends_on(cells[0].config) == poison_depends_on(made)
    for cell in study.cells():
        victims = study.columns.points[cell.column].name.removesuffix("-pacd").replace("gaussian", "ga")
        trained = paper.paper(victims, "cifar10", sigma)
        assert (cell.config.procedure, cell.config.training) == (trained.procedure, trained.training)


def test_another_sigma_of_the_authors_brings_the_weight_that_they_have_there() -> None:
    study = kinds.make("transfer-sigma", preset="paper-macer-cifar10")
    assert [(cell.config.sigma, cell.config.procedure.weight) for cell in study.cells()] == [(0.25, 12), (0.5, 4)] * 2
    for overrides, weights in ((["sigma=0.5"], [12, 4]), (["procedure.weight=3"], [3, 3])):
        study = kinds.make("sweep", preset="paper-macer-cifar10", overrides=overrides, rows="seed=0")
        assert [cell.config.procedure.weight for cell in study.cells()] == weights
    whole = kinds.make("sweep", preset="paper-macer-cifar10", rows="seed=0", columns="sigma=1")
    assert [(cell.config.sigma, cell.config.procedure.weight) for cell in whole.cells()] == [(1, 4)]
    rivals = kinds.make("rivals", preset="quick", columns="sigma=0.25,0.5")
    assert {cell.config.attack.sigma for cell in rivals.cells()} == {0.5}


def test_a_reproduction_has_the_arms_that_are_asked_for() -> None:
    arms = {
        tuple(asked): {arms_of(cell.config) for cell in
                       kinds.reproduction(["ga"], ["mnist"], [0.5], scale="small", arms=asked).cells()}
        for asked in (["clean"], ["poisoned"], ["control", "poisoned"])
    }  # fmt: skip
    assert list(arms.values()) == [{("clean",)}, {("clean", "poisoned")}, {("clean", "poisoned", "random_noise")}]
    for wrong, told in ((["noise"], "noise"), ([], "nothing")):
        with pytest.raises(ConfigError, match=f"--arms is any of clean, poisoned, control, got {told}"):
            kinds.reproduction(["ga"], ["mnist"], arms=wrong)


def test_the_control_of_a_reproduction_may_be_asked_for_alone() -> None:
    study = kinds.reproduction(["ga"], ["mnist"], [0.5], scale="small", arms=["clean", "control"])
    (cell,) = study.cells()
    assert (cell.config.attack.name, cell.config.controls) == ("random-noise", ())


def test_each_cell_of_a_study_that_comes_with_the_project_has_its_run_there() -> None:
    shipped = {run.id: run for folder in (GALLERY, GRID) for run in records.all_runs(folder)}
    for found in exhibits.exhibited():
        for cell in found["cells"]:
            run = shipped[cell["run"]]
            assert run.need_report()["relative_drop"]["poisoned"] == cell["drop"]
            assert records.run_id(run.config) == run.id
