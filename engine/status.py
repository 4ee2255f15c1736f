"""What a run is doing, and whether the process that says so is still there."""

import hashlib
import platform
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import psutil
from pydantic import ConfigDict, Field, TypeAdapter

ACTIVE = ("queued", "running")
STATES = (*ACTIVE, "done", "cancelled", "failed", "lost")
HEARTBEAT_LIMIT = 60.0  # seconds without a heartbeat after which a process that still exists counts as stuck
START_TOLERANCE = 3.0  # seconds: the boot time, from which a start counts, is rounded to whole seconds
Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]  # seconds; what a calendar can show


@dataclass(frozen=True)
class Status:
    """What a run is doing. state: queued, running, done, cancelled, failed or lost."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # for statuses read from files

    state: str
    phase: str = ""
    fraction: float = 0.0  # of the whole run's work, in [0, 1]
    eta_seconds: Time | None = None
    detail: str = ""
    pid: Annotated[int, Field(gt=1)] | None = None
    pid_started: float | None = None  # `process_start`: with it the pid names one process, as pids are used again
    machine: str | None = None  # `this_machine`, where the process is: a folder of runs may be shared
    heartbeat: Time = 0.0
    submitted: Time = 0.0
    started: Time | None = None
    ended: Time | None = None
    error: str | None = None
    events: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


_STATUS = TypeAdapter(Status)


def read_status(raw: Any) -> Status:
    """Of status.json. Raises: pydantic.ValidationError."""
    return _STATUS.validate_python(raw)


def process_start(pid: int) -> float | None:
    """Seconds from the machine's boot to the process's start, or None if there is none of this pid.

    Not its time of day: that moves with the machine's clock when somebody sets it.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time() - psutil.boot_time()
    except psutil.Error:
        return None


def process_exists(status: Status) -> bool:
    """Whether the very process that a status names exists on this machine, be it busy or stuck."""
    if status.pid is None or status.pid_started is None:
        return False
    started = process_start(status.pid)
    return started is not None and abs(started - status.pid_started) < START_TOLERANCE


def process_lives(status: Status) -> bool:
    """Whether an active record's process is there and gives signs of life."""
    if status.pid is None:
        return time.time() - status.submitted < HEARTBEAT_LIMIT  # submitted, its process not yet up
    there = process_exists(status) or is_elsewhere(status)  # of another machine's process nobody here knows more
    return there and abs(time.time() - status.heartbeat) < HEARTBEAT_LIMIT


def this_machine() -> str:
    """Its name's digest, since a run may be handed on."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def is_elsewhere(status: Status) -> bool:
    """Whether the process was started on a machine of another name: it may be another, or have a new name."""
    return status.machine not in (None, this_machine())


def why_lost(status: Status) -> str:
    """What became of an active record's process that does not live."""
    silent = time.time() - status.heartbeat
    if process_exists(status):
        return f"its process has given no sign of life for {silent:.0f} s (it is stuck, or the machine very busy)"
    if not is_elsewhere(status):
        return "its process ended without a word (killed, or out of memory)"
    if silent > 0:
        return f"its process, on another machine, has given no sign of life for {silent:.0f} s"
    return f"its machine's clock is {-silent:.0f} s ahead of this one's"


def in_words(error: Exception) -> str:
    """As a status says it: the type only where it is not for users."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
