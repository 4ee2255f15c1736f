"""Run directories: what is written reads back equal, whole or not at all, and a run whose process is gone says so."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import records
from engine.config import Config, canonical_json
from engine.exhibit import small_copy
from engine.presets import PRESETS
from engine.records import Run, RunNotFound
from engine.status import Status, process_exists, process_start

finite = st.floats(allow_nan=False, allow_infinity=False)
times = st.floats(0, 1e11)
ended = st.builds(
    Status,
    state=st.sampled_from(["done", "cancelled", "failed", "lost"]),
    phase=st.text(),
    fraction=finite,
    eta_seconds=st.none() | times,
    detail=st.text(),
    pid=st.none() | st.integers(2),
    pid_started=st.none() | finite,
    machine=st.none() | st.text(),
    heartbeat=times,
    submitted=times,
    started=st.none() | times,
    ended=st.none() | times,
    error=st.none() | st.text(),
    events=st.lists(st.text()).map(tuple),
)
SMOKE = PRESETS["smoke"].config


def new_run(folder: Path, config: Config = SMOKE) -> Run:
    run = Run(folder / records.run_id(config))
    run.directory.mkdir(parents=True, exist_ok=True)
    records.write_atomically(run.directory / "config.json", config.canonical())
    return run


def live_status() -> Status:
    """Of this very process."""
    started = process_start(os.getpid())
    return Status("running", pid=os.getpid(), pid_started=started, heartbeat=time.time(), submitted=time.time())


@settings(max_examples=30)
@given(status=ended)
def test_a_status_reads_back_equal(status: Status, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = Run(tmp_path_factory.getbasetemp())
    run.write_status(status)
    assert run.status() == status


@settings(max_examples=30)
@given(
    epsilon=st.floats(0, 1),
    sigma=st.floats(1e-6, 4),
    target=st.integers(0, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_configuration_reads_back_equal_and_keeps_its_id(
    epsilon: float, sigma: float, target: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    threat = SMOKE.threat.model_copy(update=dict(epsilon=epsilon, target_class=target))
    config = SMOKE.model_copy(update=dict(threat=threat, sigma=sigma, seed=seed))
    run = new_run(tmp_path_factory.getbasetemp() / "configurations", config)
    assert run.config == config
    assert records.run_id(run.config) == run.id


def test_tensors_and_notes_read_back_equal(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    delta = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    records.write_tensors(run.directory / "poison.safetensors", delta=delta[::-1], indices=np.arange(3))
    found = run.tensors("poison")
    assert found is not None
    np.testing.assert_array_equal(found["delta"], delta[::-1])
    np.testing.assert_array_equal(found["indices"], np.arange(3))
    run.write_json("notes.json", {"name": "Zürich", "starred": True})
    assert run.notes == {"name": "Zürich", "starred": True, "note": ""}


def test_what_is_not_there_reads_as_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / ("0" * 16))
    assert not run.exists()
    assert run.report is None
    assert run.tensors("poison") is None
    assert run.certificates() is None
    with pytest.raises(RunNotFound, match="no certificates yet"):
        run.need_certificates()
    assert run.metrics("attack") == []
    assert run.log_tail() == ""
    assert run.status().state == "lost"
    with pytest.raises(RunNotFound, match="no readable configuration"):
        _ = run.config


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    records.write_atomically(path, "old")

    def half_written(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="No space left"):
        records.write_atomically(path, "new content")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_status_is_written_in_place_where_a_full_disk_takes_no_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.write_status(live_status())

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    run.write_status(Status("failed", error="No space left on device"))
    assert run.status() == Status("failed", error="No space left on device")


def test_nothing_is_pickled(smoke: SimpleNamespace) -> None:
    for source in Path(records.__file__).parent.rglob("*.py"):
        for call in ("import pickle", "import joblib", "torch.load(", "torch.save(", "np.load(", "np.save"):
            assert call not in source.read_text(), f"{call} in {source}"
    kinds = {file.suffix for file in smoke.root.rglob("*") if file.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".parquet", ".txt", ".lock"}


def test_a_live_process_with_a_fresh_heartbeat_is_running(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_status(live_status())
    assert run.status().state == "running"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: replace(s, pid_started=s.pid_started - 60), id="another process has its number now"),
        pytest.param(lambda s: replace(s, heartbeat=s.heartbeat - 61), id="its heartbeat stopped"),
        pytest.param(
            lambda s: replace(s, state="queued", pid=None, submitted=s.submitted - 61), id="its process never came up"
        ),
        pytest.param(lambda s: replace(s, pid=ended_process()), id="its process is gone"),
    ],
)
def test_a_run_is_lost_when(change: Callable[[Status], Status], tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_status(change(live_status()))
    assert run.status().state == "lost"
    status = run.status()
    why = "no sign of life for 61 s" if process_exists(status) else "without a word"
    assert why in str(status.error)


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the boot time is asked for otherwise")
def test_a_process_stays_the_same_when_somebody_sets_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, boot_time = new_run(tmp_path), psutil.boot_time()
    run.write_status(live_status())
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 3600)
    assert run.status().state == "running"


def test_a_run_of_another_machine_lives_while_it_writes_heartbeats(tmp_path: Path) -> None:
    """In a folder that machines share, a pid says nothing: here it names no process, or somebody else's."""
    run, status = new_run(tmp_path), replace(live_status(), machine="another", pid=ended_process())
    run.write_status(status)
    assert run.status() == status
    for seconds, why in (
        (-61, "on another machine, has given no sign of life for 61 s"),
        (3600, "clock is 3600 s ahead"),
    ):
        run.write_status(replace(status, heartbeat=time.time() + seconds))
        assert run.status().state == "lost"
        assert why in str(run.status().error)


def test_a_run_whose_machine_has_a_new_name_is_still_known_by_its_process(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_status(replace(live_status(), machine="its old name", heartbeat=time.time() - 61))
    assert run.status().state == "lost"
    assert "no sign of life for 61 s (it is stuck" in str(run.status().error)
    assert process_exists(run.status())


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_zombie_counts_as_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        deadline = time.monotonic() + 5
        while process_start(process.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process_start(process.pid) is None
    finally:
        process.wait()


def test_a_run_that_ends_while_somebody_looks_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    run.write_status(live_status())

    def ends_now(_: Status) -> bool:
        run.write_status(Status("done"))
        return False

    monkeypatch.setattr("engine.status.process_exists", ends_now)
    assert run.status().state == "done"


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", '"text"', "{}", "[" * 200_000, '{"state": "done", "of another layout": 1}'),
        *(f'{{"state": "running", "pid": {pid}, "pid_started": 0}}' for pid in (-1, 0, 1, 1e30, '"x"', "[2]")),
        *(f'{{"state": "done", "submitted": {time}}}' for time in ("null", "NaN", "1e300", '"abc"')),
        '{"state": "done", "events": 3}',
    ],
)
def test_a_damaged_status_reads_as_lost(content: str, tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (run.directory / "status.json").write_text(content)
    assert run.status() == Status("lost", error="the run's status cannot be read")


def test_on_a_full_disk_a_status_is_written_over_the_old_one_which_is_never_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run = new_run(tmp_path)
    run.write_status(Status("failed", error="a long sentence"))
    size = (run.directory / "status.json").stat().st_size
    monkeypatch.setattr(records, "write_atomically", full)
    run.write_status(Status("done"))
    assert run.status() == Status("done")
    assert (run.directory / "status.json").stat().st_size == size


def test_a_line_that_a_full_disk_tore_costs_no_more_than_itself(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"attack","st')
    run.append_metrics({"kind": "attack", "step": 2})
    run.append_metrics({"kind": "attack", "step": 3})
    assert run.metrics("attack") == [{"kind": "attack", "step": 3}]


def test_a_torn_last_line_of_metrics_is_ignored(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.append_metrics({"kind": "attack", "step": 1})
    run.append_metrics({"kind": "training", "epoch": 1})
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"attack","st')
    assert run.metrics("attack") == [{"kind": "attack", "step": 1}]


@pytest.mark.parametrize("identifier", ["", "xyz", "../../etc", "G" * 16, "0" * 17])
def test_what_is_no_id_is_not_found(identifier: str, tmp_path: Path) -> None:
    new_run(tmp_path)
    with pytest.raises(RunNotFound):
        records.find(tmp_path, identifier)


def test_a_run_is_found_by_its_first_digits_if_they_are_its_own(tmp_path: Path) -> None:
    for identifier in ("abcd" + "0" * 12, "abcd" + "1" * 12):
        (tmp_path / identifier).mkdir()
        (tmp_path / identifier / "config.json").write_text(SMOKE.canonical())
    assert records.find(tmp_path, "abcd1").id == "abcd" + "1" * 12
    with pytest.raises(RunNotFound, match=r"more than one run .* abcd, such as abcd0+ and abcd1+"):
        records.find(tmp_path, "abcd")
    with pytest.raises(RunNotFound, match="no run"):
        records.find(tmp_path, "abce")


def test_the_gallery_is_found_only_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "GALLERY", tmp_path / "gallery")
    run = new_run(tmp_path / "gallery")
    assert records.find(tmp_path / "runs", run.id).directory == run.directory
    with pytest.raises(RunNotFound):
        records.find(tmp_path / "runs", run.id, gallery=False)


def test_a_copy_for_the_gallery_opens_and_names_no_place_on_this_machine(
    smoke: SimpleNamespace, tmp_path: Path
) -> None:
    older = Run(shutil.copytree(smoke.run.directory, tmp_path / "runs" / smoke.run.id))
    older.write_json("report.json", smoke.report | {"directory": str(smoke.run.directory)})
    copy = small_copy(older, tmp_path, weights=False)
    assert copy.config == smoke.run.config
    assert copy.status().state == "done"
    certificates, poison = copy.need_certificates(), copy.tensors("poison")
    assert poison is not None
    assert copy.report == smoke.report
    assert copy.request["data_root"] is None
    assert certificates["radius"].tolist() == smoke.run.certificates()["radius"].tolist()
    original = smoke.run.tensors("poison")["delta"]
    np.testing.assert_allclose(poison["delta"], original, atol=np.abs(original).max() / 254 * 1.001)
    assert np.abs(poison["delta"]).max() == np.abs(original).max()
    assert not (copy.directory / "victims").exists()
    for path in copy.directory.rglob("*"):
        assert str(smoke.root).encode() not in path.read_bytes()
        assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()
    assert copy.disk_bytes() < smoke.run.disk_bytes()


def test_a_run_without_metrics_can_be_published(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs")
    copy = small_copy(run, tmp_path / "copies", weights=True)
    assert copy.config == run.config


def test_the_size_of_a_run_is_told_while_its_files_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    (run.directory / "victims").mkdir()
    (run.directory / "victims" / "clean-0.safetensors").write_bytes(b"x" * 1000)
    (run.directory / "gone").symlink_to(tmp_path / "nowhere")  # listed, but not there when looked at
    assert run.disk_bytes() == 1000 + len(SMOKE.canonical())


def test_json_has_one_text_and_no_nan() -> None:
    value: dict[str, Any] = {"b": 1, "a": [1.5, None]}
    assert canonical_json(value) == '{"a":[1.5,null],"b":1}'
    assert json.loads(canonical_json(value)) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


@pytest.mark.parametrize("named", [{"target_name": "![t](http://example.org)"}, {"class_names": ["cat", "<b>"]}])
def test_a_report_that_names_a_class_as_no_data_set_can_is_none(named: dict[str, Any], tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_json("report.json", {"target_name": "digit 8", "class_names": ["a", "b"]})
    assert run.report
    run.write_json("report.json", {"target_name": "digit 8"} | named)
    assert run.report is None
