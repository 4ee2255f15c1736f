"""The index over runs: it follows the directories."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine import index, records
from engine.presets import PRESETS
from engine.records import Run
from engine.status import Status, process_start

SMOKE = PRESETS["smoke"].config


def add_run(root: Path, seed: int) -> Run:
    config = SMOKE.model_copy(update={"seed": seed})
    run = Run(root / records.run_id(config))
    run.directory.mkdir(parents=True)
    records.write_atomically(run.directory / "config.json", config.canonical())
    run.write_json("request.json", {"preset": "smoke"})
    run.write_status(Status("done", submitted=1000.0 + seed))
    return run


@pytest.fixture
def runs(runs_root: Path) -> list[Run]:
    return [add_run(runs_root, seed) for seed in range(3)]


def test_an_index_of_nothing_is_empty_and_creates_nothing(runs_root: Path) -> None:
    assert index.rows(runs_root) == []
    assert not runs_root.exists()


def test_runs_are_listed_newest_first_with_what_matters(runs: list[Run], runs_root: Path) -> None:
    runs[0].write_json("report.json", {"relative_drop": {"poisoned": {"mean": 0.25}, "random_noise": {"mean": None}}})
    rows = index.rows(runs_root)
    assert [row["seed"] for row in rows] == [2, 1, 0]
    assert rows[2]["drop_poisoned"] == 0.25
    assert rows[2]["drop_random_noise"] is None
    assert rows[0] | {"state": "done", "preset": "smoke", "dataset": "digits", "epsilon": 0.1, "sigma": 0.25} == rows[0]
    assert rows[0] | {"procedure": "gaussian", "architecture": "lenet-narrow", "attack": "pacd"} == rows[0]
    assert rows[0]["target_name"] == "digit 8"


def test_a_class_is_listed_by_the_name_that_its_report_has(runs: list[Run], runs_root: Path) -> None:
    runs[0].write_json("report.json", {"target_name": "ship"})
    assert [row["target_name"] for row in index.rows(runs_root)] == ["digit 8", "digit 8", "ship"]


def test_runs_of_an_older_protocol_are_listed(runs: list[Run], runs_root: Path) -> None:
    old = {"protocol_version": 1, "procedure": "gaussian", "dataset": "digits", "attack": {"damping": 0.1}}
    (runs[0].directory / "config.json").write_text(json.dumps(old))
    found = {row["id"]: row for row in index.rows(runs_root)}
    assert (found[runs[0].id]["procedure"], found[runs[0].id]["attack"]) == (None, None)
    assert found[runs[0].id]["state"] == "done"


def test_the_index_follows_names_stars_states_and_deletions(runs: list[Run], runs_root: Path) -> None:
    index.rows(runs_root)
    runs[0].write_json("notes.json", {"name": "first", "starred": True})
    runs[1].write_status(Status("failed", submitted=1001.0))
    shutil.rmtree(runs[2].directory)
    add_run(runs_root, 7)
    found = {row["seed"]: row for row in index.rows(runs_root)}
    assert sorted(found) == [0, 1, 7]
    assert (found[0]["name"], found[0]["starred"]) == ("first", 1)
    assert found[1]["state"] == "failed"


def test_a_run_whose_process_died_turns_up_as_lost_although_no_file_changed(runs: list[Run], runs_root: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started, now = process_start(process.pid), time.time()
    runs[0].write_status(Status("running", pid=process.pid, pid_started=started, heartbeat=now, submitted=now))
    assert index.rows(runs_root)[0]["state"] == "running"
    process.communicate()
    assert index.rows(runs_root)[0]["state"] == "lost"


def test_a_run_is_read_again_only_when_it_changed(
    runs: list[Run], runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(Run, "disk_bytes", lambda run: read.append(run.id) or 0)
    before = index.rows(runs_root)
    assert index.rows(runs_root) == before
    assert len(read) == 3
    runs[0].write_json("notes.json", {"name": "first"})
    assert index.rows(runs_root) != before
    assert read[3:] == [runs[0].id]


def test_a_damaged_run_directory_does_not_hide_the_others(runs: list[Run], runs_root: Path) -> None:
    (runs[0].directory / "config.json").write_text("{")
    (runs[1].directory / "status.json").write_text("[]")
    (runs[1].directory / "notes.json").write_text('{"starred": "yes"}')
    (runs[2].directory / "config.json").write_text('{"threat": null}')
    (runs[2].directory / "notes.json").write_text("[1]")
    (runs_root / "stray file").touch()
    found = {row["id"]: row["state"] for row in index.rows(runs_root)}
    assert found == {runs[0].id: "done", runs[1].id: "lost", runs[2].id: "done"}


def test_runs_are_listed_while_others_are_added(runs: list[Run], runs_root: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from engine import index; root = Path(sys.argv[1])\n"
        "for _ in range(30): rows = index.rows(root)\n"
        "print(json.dumps(rows))"
    )
    command = [sys.executable, "-c", code, str(runs_root)]
    project = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE)
    for seed in range(10, 30):
        add_run(runs_root, seed)
        time.sleep(0.01)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert {row["seed"] for row in json.loads(output)} <= {0, 1, 2, *range(10, 30)}
    assert len(index.rows(runs_root)) == 23


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("notes.json", {"name": ["x"]}),
        ("request.json", {"preset": {"x": 1}}),
        ("report.json", {"relative_drop": [1]}),
        ("report.json", {"relative_drop": {"poisoned": None}}),
        ("report.json", {"relative_drop": {"poisoned": {"mean": "x"}}}),
        ("config.json", {"threat": [1]}),
        ("config.json", {"dataset": ["x"], "seed": "x"}),
    ],
)
def test_one_malformed_directory_does_not_hide_the_others(file: str, content: dict[str, Any], tmp_path: Path) -> None:
    good, bad = (Run(tmp_path / (letter * 16)) for letter in "ab")
    for run in (good, bad):
        run.directory.mkdir()
        (run.directory / "config.json").write_text(json.dumps({"dataset": "mnist", "seed": 3}))
        run.write_status(Status("done"))
    (bad.directory / file).write_text(json.dumps(content))
    rows = {row["id"]: row for row in index.rows(tmp_path)}
    assert (rows[good.id]["seed"], rows[good.id]["name"]) == (3, "")
    assert rows[bad.id]["name"] == "(cannot be read)"
    assert rows[bad.id].keys() == rows[good.id].keys()
