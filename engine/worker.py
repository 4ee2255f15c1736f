"""A run's own process: it waits for its turn, does the experiment, and writes how far it is and how it ended."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from engine import datasets
from engine.costs import estimate
from engine.experiment.environment import environment
from engine.jobs import GRACE, cancel, queue_position
from engine.records import Cancelled, Record, Run, RunNotFound
from engine.status import Status, in_words, process_start, this_machine

if TYPE_CHECKING:
    from engine.experiment.recorder import Recorder  # which imports pandas

STATUS_EVERY = 0.5  # seconds


def work(directory: Path) -> int:
    """The run's own process: waits for its turn, does the experiment, writes how it ended. Returns an exit code."""
    run = Run(directory)
    if not run.exists():
        raise RunNotFound(f"{directory} is not a run directory")
    device = FileLock(directory.parent / ".device.lock")
    with alone(run):
        status = begin(run)
        while run.exists() and not (directory / "cancel").exists():
            if queue_position(run) == 0:
                with contextlib.suppress(Timeout), device.acquire(timeout=0):
                    return perform(run, replace(status, state="running", started=time.time(), phase="starting"))
            status = replace(status, heartbeat=time.time())
            with contextlib.suppress(OSError):  # deleted just now, or a full disk: the next look sees it
                run.write_status(status)
            time.sleep(0.3)
        return end(run, replace(status, state="cancelled"))


@contextlib.contextmanager
def alone(record: Record) -> Iterator[None]:
    """Only one process works on a record: one that was slow to start may have been replaced by another, or the reverse.

    Raises: SystemExit, where another one still does after GRACE seconds.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(record.directory / ".work.lock").acquire(timeout=GRACE))
        except Timeout:
            sys.exit(f"another process is at work in {record.directory}")
        yield


def seconds_left(fraction: float, elapsed: float, expected: float) -> float | None:
    """By the estimate until a tenth is done, since what comes first is slow, then by the run's own pace.

    None where the estimate is used up before that.
    """
    if fraction > 0.1:
        return elapsed * (1 - fraction) / fraction
    return expected * (1 - fraction) if elapsed < expected else None


def perform(run: Run, status: Status) -> int:
    """Does a run in this process, whose turn it is, and writes how it went. Returns an exit code."""
    recorder: Recorder | None = None  # once there is one
    began, expected = time.time(), 0.0

    def beat() -> None:
        nonlocal status
        status = replace(status, heartbeat=time.time())
        if recorder is not None:
            status = replace(
                status,
                phase=recorder.phase,
                detail=recorder.detail,
                fraction=recorder.fraction,
                eta_seconds=seconds_left(recorder.fraction_of_rest, time.time() - began, expected),
                events=tuple(recorder.events),
            )
        run.write_status(status)

    try:
        with beating(beat):
            data_root = run.data_root
            with ThreadPoolExecutor(1) as reader:  # images are unpacked while torch is imported, and that only here:
                reader.submit(_read_ahead, run.config.dataset, data_root)
                from engine.experiment import protocol  # a waiting run costs next to nothing
                from engine.experiment import recorder as recording

            device = protocol.choose_device(tf32=run.config.training.precision == "fast")
            images = datasets.fingerprint(run.config.dataset, data_root)
            run.write_json("env.json", environment(device.type) | ({"images": images} if images else {}))
            about = run.config.dataset, data_root
            shape, classes = datasets.shape(*about), len(datasets.class_names(*about))
            expected = estimate(run.config, device=device.type, shape=shape, classes=classes).seconds
            recorder, began = recording.Recorder(run), time.time()
            cancelled = (run.directory / "cancel").exists
            protocol.conduct(run, recorder, device=device, cancelled=lambda: cancelled() or not run.exists())
        status = replace(status, state="done", phase="done", detail="", fraction=1.0, eta_seconds=0.0)
    except Cancelled:
        status = replace(status, state="cancelled", eta_seconds=None)
    except Exception as error:  # whatever it was, the record must say so
        traceback.print_exc()
        status = replace(status, state="failed", error=in_words(error), eta_seconds=None)
    return end(run, replace(status, events=tuple(recorder.events) if recorder else ()))


@contextlib.contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Calls beat at once and then every STATUS_EVERY seconds, from a thread of its own, while the block runs."""
    ended = threading.Event()

    def until_ended() -> None:
        while not ended.wait(STATUS_EVERY):
            with contextlib.suppress(OSError):  # deleted just now, or a full disk: the next beat may pass
                beat()

    beat()
    thread = threading.Thread(target=until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_ahead(dataset: str, data_root: Path) -> None:
    """Into the cache of `datasets.read`; what cannot be read is said by who needs it."""
    with contextlib.suppress(datasets.DatasetUnavailable):
        for train in (True, False):
            datasets.read(dataset, data_root, train=train)


def begin(run: Record) -> Status:
    """Says that this process works on a run, which from now on SIGTERM asks to stop: its status, still queued."""
    asked = run.read_json("status.json") or {}
    status = Status(
        "queued",
        submitted=asked.get("submitted", time.time()),
        heartbeat=time.time(),
        pid=os.getpid(),
        pid_started=process_start(os.getpid()),
        machine=this_machine(),
    )
    run.write_status(status)
    signal.signal(signal.SIGTERM, lambda *_: cancel(run))
    return status


def end(run: Record, status: Status) -> int:
    """Writes how a run ended, unless it was deleted under our feet; the exit code."""
    if run.exists():
        run.write_status(replace(status, heartbeat=time.time(), ended=time.time()))
    return 0 if status.state == "done" else 1
