"""The queue of runs: submit, cancel, delete. A run is one process of its own session; nothing here imports torch.

There is no dispatcher to crash: every submitted run starts its process at once, and that process waits for its turn,
which comes when no run that was submitted earlier is alive and the device's lock file is free. The operating system
frees the lock when its holder dies, however it dies.
"""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from engine.config import Config
from engine.records import Cancelled, Run, RunNotFound, Status, all_runs, run_id, write_atomically
from engine.stages import StageCache

PROJECT = Path(__file__).parents[1]
# One torch thread per worker thread, and a malloc that keeps large buffers instead of returning them to the kernel.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
STATUS_EVERY = 0.5  # seconds
GRACE = 8.0  # seconds between asking a run to stop, SIGTERM and SIGKILL


def submit(config: Config, *, runs_root: Path, data_root: Path, preset: str | None = None) -> Run:
    """The run of this configuration: the finished or live one if there is one, else a new process for it."""
    run = Run(runs_root / run_id(config))
    run.directory.mkdir(parents=True, exist_ok=True)
    with FileLock(runs_root / f".{run.id}.lock"):
        if run.exists() and run.status().state in ("done", "queued", "running"):
            return run
        for name in ("cancel", "report.json", "metrics.jsonl", "certificates.parquet", "evolution.safetensors"):
            (run.directory / name).unlink(missing_ok=True)
        write_atomically(run.directory / "config.json", config.canonical())
        now = time.time()
        run.write_json("request.json", {"preset": preset, "data_root": str(data_root.resolve()), "submitted": now})
        run.write_status(Status("queued", submitted=now, heartbeat=now))
        with (run.directory / "log.txt").open("w") as log:
            subprocess.Popen(
                [sys.executable, "-m", "engine", "work", str(run.directory.resolve())],
                cwd=PROJECT,
                env=os.environ | WORKER_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    return run


def queue_position(run: Run) -> int:
    """How many live runs were submitted before this one (those running included); 0 means that it is its turn."""
    mine = run.status().submitted
    others = (other.status() for other in all_runs(run.directory.parent) if other.id != run.id)
    return sum(status.active and status.submitted < mine for status in others)


def cancel(run: Run) -> None:
    """Asks a run to stop at its next step; `stop_now` follows if it doesn't."""
    (run.directory / "cancel").touch()


def stop_now(run: Run) -> None:
    """Cancels a live run and waits for its end: the flag, then SIGTERM, then SIGKILL to its process group."""
    for step in (None, signal.SIGTERM, signal.SIGKILL):
        status = run.status()
        if not status.active:
            return
        if step is None:
            cancel(run)
        elif status.pid is not None:
            _signal_group(status.pid, step)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and run.status().active:
            time.sleep(0.1)


def delete(run: Run) -> None:
    """Removes a run, stopping it first, and every shared stage that no other run uses."""
    stop_now(run)
    shutil.rmtree(run.directory, ignore_errors=True)
    (run.directory.parent / f".{run.id}.lock").unlink(missing_ok=True)
    StageCache(run.directory.parent).prune()


def adopt(runs_root: Path) -> Iterator[Run]:
    """Yields the live runs under a root, and writes down those that were lost, so that they say so for good."""
    for run in all_runs(runs_root):
        status, raw = run.status(), run.read_json("status.json") or {}
        if status.active:
            yield run
        elif raw.get("state") != status.state:
            run.write_status(replace(status, ended=time.time()))


def work(directory: Path) -> int:
    """The run's own process: waits for its turn, does the experiment, writes how it ended. Returns an exit code."""
    run = Run(directory)
    if not run.exists():
        raise RunNotFound(f"{directory} is not a run directory")
    asked = run.read_json("status.json") or {}
    me = psutil.Process()
    status = Status(
        "queued",
        submitted=asked.get("submitted", time.time()),
        heartbeat=time.time(),
        pid=me.pid,
        pid_started=me.create_time(),
    )
    run.write_status(status)
    signal.signal(signal.SIGTERM, lambda *_: cancel(run))
    lock = FileLock(directory.parent / ".device.lock")
    while True:
        if (directory / "cancel").exists():
            run.write_status(replace(status, state="cancelled", ended=time.time()))
            return 1
        if queue_position(run) == 0:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                pass
        status = replace(status, heartbeat=time.time())
        run.write_status(status)
        time.sleep(0.3)
    with lock:
        return _experiment(run, replace(status, state="running", started=time.time(), phase="starting"))


def _experiment(run: Run, status: Status) -> int:
    run.write_status(status)
    try:
        # torch is imported only here: a waiting run costs next to nothing
        from engine.experiment import Experiment, choose_device

        device = choose_device()
        run.write_json("env.json", environment(device.type))
        experiment = Experiment(
            run, runs_root=run.directory.parent, data_root=Path(run.request["data_root"]), device=device
        )
        began, written = time.time(), 0.0

        def heartbeat() -> None:
            nonlocal status, written
            now = time.time()
            if now - written < STATUS_EVERY:
                return
            written, fraction = now, experiment.fraction
            eta = (now - began) * (1 - fraction) / fraction if fraction > 0.01 else None
            status = replace(
                status,
                phase=experiment.phase,
                detail=experiment.detail,
                fraction=fraction,
                eta_seconds=eta,
                heartbeat=now,
                events=tuple(experiment.events),
            )
            run.write_status(status)

        experiment.work(cancelled=(run.directory / "cancel").exists, heartbeat=heartbeat)
        status = replace(status, state="done", phase="done", detail="", fraction=1.0, eta_seconds=0.0)
        code = 0
    except Cancelled:
        status = replace(status, state="cancelled", eta_seconds=None)
        code = 1
    except Exception as error:  # whatever it was, the record must say so
        traceback.print_exc()
        status = replace(status, state="failed", error=_in_words(error), eta_seconds=None)
        code = 1
    if run.exists():  # it may have been deleted under our feet
        run.write_status(replace(status, heartbeat=time.time(), ended=time.time()))
    return code


def environment(device: str) -> dict[str, Any]:
    """What a number may depend on beside the configuration."""
    import numpy
    import torch
    import torchvision

    names = {"cuda": lambda: torch.cuda.get_device_name(), "cpu": _processor}
    return {
        "device": device,
        "device_name": names[device](),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return f"{type(error).__name__}: {error}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The project's commit, marked where the working tree differs from it; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=PROJECT, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)  # the process leads its own group
