"""A run's own process: disks that fill up, what it records, the time that it says is left."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import records, worker
from engine.config import Config
from engine.experiment import poisoning, retraining
from engine.records import Run

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]


def test_a_disk_that_fills_up_fails_the_run_with_a_plain_reason(
    tiny: Tiny, prepare: WorkHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "poison.safetensors")

    for module in (poisoning, retraining):
        monkeypatch.setattr(module, "write_tensors", full)
    run = prepare(tiny(), tmp_path / "runs")
    assert worker.perform(run, run.status()) == 1
    assert run.status().state == "failed"
    assert run.status().error == "No space left on device: poison.safetensors"


def test_a_worker_that_may_write_no_large_file_fails_with_a_plain_reason(
    tiny: Tiny, prepare: WorkHere, tmp_path: Path
) -> None:
    """As on a disk that is nearly full: the status still fits, weights do not."""
    run = prepare(tiny(), tmp_path / "runs")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert worker.perform(run, run.status()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    status = run.status()
    assert status.state == "failed"
    assert str(status.error).startswith("File too large")
    assert not [path for path in run.directory.rglob(".*") if path.is_file()]  # no half-written files


def test_a_really_full_disk_leaves_a_readable_status(tiny: Tiny, prepare: WorkHere, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        run = prepare(tiny(), disk / "runs")
        assert worker.perform(run, run.status()) == 1
        assert run.status().state == "failed"
        assert str(run.status().error).startswith("No space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_only_run_directories_are_worked_on(tmp_path: Path) -> None:
    with pytest.raises(records.RunNotFound, match="is not a run directory"):
        worker.work(tmp_path)


def test_the_record_names_versions_and_device(smoke: SimpleNamespace) -> None:
    environment = smoke.run.environment
    assert set(environment) >= {"device", "device_name", "python", "torch", "numpy", "platform", "commit", "time"}
    assert all(environment[name] for name in ("device", "device_name", "python", "torch", "numpy", "time"))


def test_the_time_left_is_estimated_until_a_tenth_is_done() -> None:
    assert worker.seconds_left(0.0, 2.0, expected=10.0) == 10.0
    assert worker.seconds_left(0.05, 9.0, expected=10.0) == 9.5  # slower than expected: no countdown that would jump up
    assert worker.seconds_left(0.01, 20.0, expected=10.0) is None  # not half an hour, because what comes first is slow
    assert worker.seconds_left(0.5, 20.0, expected=10.0) == 20.0
