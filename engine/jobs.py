"""The queue of runs: submit, cancel, delete. A run is one process of its own session (engine/worker.py).

There is no dispatcher to crash: every submitted run starts its process at once, and that process waits for its turn,
which comes when no run that was submitted earlier is alive and the device's lock file is free. The operating system
frees the lock when its holder dies, however it dies.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from engine import datasets, poison_file
from engine.config import Config
from engine.experiment.environment import PROJECT
from engine.records import Record, Run, all_runs, run_id, write_atomically
from engine.stages import StageCache
from engine.status import ACTIVE, Status, is_elsewhere, process_exists

# One torch thread per worker thread, and a malloc that keeps large buffers instead of returning them to the kernel: all
# in one heap, since each thread's own is in pieces of 64 MB, of which large buffers leave most unused.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
STALE = ("report.json", "metrics.jsonl", "certificates.parquet")  # files of an earlier attempt at a run
AWAKE = 5.0  # seconds in which a process that slept has written its status
GRACE = 15.0  # seconds between asking a run to stop and killing it


def check(config: Config, *, runs_root: Path, data_root: Path) -> None:
    """Refuses a run that could not start: a folder of images and a poison file, if asked for, must be there and fit.

    Nor may a finished run of this configuration be of other images, since its numbers would not be what was asked for.
    Raises: ConfigError, DatasetUnavailable.
    """
    datasets.check(config, data_root)
    run = Run(runs_root / run_id(config))
    if run.exists() and run.status().state == "done":
        run.check_images(data_root)
    poison_file.check(config, runs_root=runs_root, data_root=data_root)


def submit(
    config: Config,
    *,
    runs_root: Path,
    data_root: Path,
    preset: str | None = None,
    forked_from: str | None = None,
    study: str | None = None,
) -> Run:
    """The run of this configuration: the finished or live one if there is one, else a new process for it.

    forked_from: the id of another run whose settings it started from; study: of the study that it is started for. The
    run remembers both.
    """
    run = Run(runs_root / run_id(config))
    origin = {"forked_from": forked_from} if forked_from not in (None, run.id) else {}
    if study:
        origin["study"] = study
    launch(
        run,
        "work",
        config.canonical(),
        request={"preset": preset, "data_root": str(data_root.resolve()), **origin},
        finished=lambda: run.report is not None,
        stale=STALE,
    )
    return run


def launch(
    record: Record,
    command: str,
    definition: str,
    *,
    request: dict[str, Any],
    finished: Callable[[], bool],
    stale: tuple[str, ...] = (),
) -> None:
    """Starts `python -m engine COMMAND DIRECTORY` for a record that is neither alive nor done and finished().

    Args:
        definition: the content of the file that makes the directory a record.
        stale: files of an earlier attempt that must go.
    """
    if (record.directory / "cancel").exists():  # what was asked to stop is not what is asked for now
        stop_now(record)
    record.directory.parent.mkdir(parents=True, exist_ok=True)
    with _changes(record.directory.parent):
        status = record.status()
        if record.exists() and (status.active or (status.state == "done" and finished())):
            return
        if status.state == "lost" and process_exists(status):  # stuck: it must not wake up beside its successor
            _kill_group(record, status)
        lay_out(record, definition, request=request, stale=stale)
        with (record.directory / "log.txt").open("w") as log:
            subprocess.Popen(
                [sys.executable, "-m", "engine", command, str(record.directory.resolve())],
                cwd=PROJECT,
                env=os.environ | WORKER_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def lay_out(record: Record, definition: str, *, request: dict[str, Any], stale: tuple[str, ...] = STALE) -> None:
    """Makes a directory a record, queued, without what an earlier attempt left there."""
    record.directory.mkdir(parents=True, exist_ok=True)
    for name in ("cancel", "log.txt", *stale):
        (record.directory / name).unlink(missing_ok=True)
    now = time.time()
    record.write_json("request.json", request | {"submitted": now})
    record.write_status(Status("queued", submitted=now, heartbeat=now))
    write_atomically(record.directory / record.definition, definition)  # from here on it is a record


def queue_position(run: Record) -> int:
    """How many live runs were submitted before this one (those running included); 0 means that it is its turn.

    0, too, of a study, which waits for none.
    """
    mine = run.status().submitted
    others = (other.status() for other in all_runs(run.directory.parent) if other.id != run.id)
    return sum(status.active and status.submitted < mine for status in others)


def awaited(record: Record) -> Status:
    """The status, for a caller that awaits the end: a run that looks lost gets AWAKE seconds to write a heartbeat."""
    status = record.status()
    if status.state == "lost" and process_exists(status):
        time.sleep(AWAKE)
        status = record.status()
    return status


def cancel(run: Record) -> None:
    """Asks a run to stop at its next step, as SIGTERM to its process does; `stop_now` waits for it, and insists."""
    with contextlib.suppress(FileNotFoundError):  # deleted in the meantime
        (run.directory / "cancel").touch()


def stop_now(run: Record, grace: float | None = None) -> None:
    """Cancels a live run and waits for its end: the flag, then, after `grace` seconds, SIGKILL to its process group.

    One that another machine computes is not waited for any longer then: it sees the flag at its next step.
    """
    if not can_end(run.status()):
        return
    cancel(run)
    deadline = time.monotonic() + (GRACE if grace is None else grace)
    while can_end(status := run.status()):
        if time.monotonic() > deadline:
            if is_elsewhere(status) and not process_exists(status):
                return
            _kill_group(run, status)
            run.write_status(replace(status, state="cancelled", ended=time.time(), error="it had to be killed"))
        time.sleep(0.1)


def can_end(status: Status) -> bool:
    """Whether its process is there, though it may be lost."""
    return status.active or (status.state == "lost" and process_exists(status))


def publish(run: Run) -> None:
    """Publishes a finished run, read-only, to all who use its root. Raises: ValueError where it is not finished."""
    if run.status().state != "done":
        raise ValueError(f"only a finished run can be published, and run {run.id} is {run.status().state}")
    (run.directory / "published").touch()


def withdraw(run: Run) -> None:
    """Takes a publication back."""
    (run.directory / "published").unlink(missing_ok=True)


def delete(run: Run) -> None:
    """Removes a run, stopping it first, and every shared stage that no other run uses.

    Raises: ValueError where it is published, or another machine still computes it.
    """
    if run.published:
        raise ValueError(f"run {run.id} is published, read-only: withdraw it first")
    stop_now(run)
    remove(run)


def remove(record: Record) -> None:
    """Removes a run or study that has ended, and every shared stage that no run uses any more.

    Raises: ValueError where it has not.
    """
    if can_end(record.status()):
        raise ValueError(f"{record.id} is still computed on another machine; delete it when it has stopped")
    root = record.directory.parent
    with _changes(root):
        if record.directory.exists():
            shutil.rmtree(record.directory)
        StageCache(root).prune()


def write_down_lost(runs_root: Path) -> None:
    """Ends the runs under a root whose process died with nobody looking, so that they say so for good."""
    for run in all_runs(runs_root):
        status = run.status()
        told = (run.read_json("status.json") or {}).get("state")  # not of a file that this version cannot read
        if status.state == "lost" and told in ACTIVE and not is_elsewhere(status):
            with contextlib.suppress(OSError), _changes(runs_root):  # on a read-only disk it stays as it is
                status = run.status()  # it may have been submitted anew
                if status.state == "lost":
                    run.write_status(replace(status, ended=time.time()))


def _changes(runs_root: Path) -> FileLock:
    """Held by whoever creates, revives or removes runs under a root; for milliseconds."""
    return FileLock(runs_root / ".changes.lock")


def _kill_group(record: Record, status: Status) -> None:
    """The group that a record's process leads; no other, since a status may come from anywhere, with any pid."""
    if status.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
        ours = str(record.directory.resolve()) in psutil.Process(status.pid).cmdline()
        if ours and os.getpgid(status.pid) == status.pid:
            os.killpg(status.pid, signal.SIGKILL)
