"""Who computes the tasks of a run: workers side by side, which tell the run's own thread what to record.

On Linux a CPU's workers are forked processes. Threads of one process take turns in Python, which costs time where steps
are as short as a LeNet's (docs/performance.md). On a GPU, where Python has little to do, and on systems where forking
is not safe, workers are threads. Each computes in one torch thread: that is faster than torch's own, and does not
collapse beside other work.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple

import torch

from engine.costs import workers_for
from engine.experiment.recorder import Recorder
from engine.records import Cancelled
from engine.replay import use_own_stream
from engine.status import in_words

TELL_EVERY = 0.1  # seconds at least from one word about work to the next
END = "end"  # of a task, beside the names of what a recorder can do
GRACE = 10.0  # seconds in which workers may end their step where one of them was killed
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class WorkerLost(RuntimeError):
    """A worker's process was ended from outside."""

    def __init__(self) -> None:
        super().__init__("one of its processes was ended from outside, as a system does that is short of memory")


class TaskFailed(ValueError):
    """What a task's error was, in words."""


class Task(NamedTuple):
    """A name among the workers' tasks, and what it is called with."""

    name: str
    arguments: tuple[Any, ...] = ()


class Teller(threading.local):
    """A recorder as tasks see it: what they call is called later, in the order of each, by who conducts the run.

    Arguments should be small, since they travel between processes.
    """

    def __init__(self, send: Callable[..., None]) -> None:
        self._send, self._units, self._told = send, 0.0, 0.0
        self._detail: str | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in vars(Recorder):
            raise AttributeError(f"a recorder has no method {name!r}")

        def call(*arguments: Any, **named: Any) -> None:
            self.flush()
            self._send(name, arguments, named)

        return call

    def add_work(self, units: float, detail: str | None = None) -> None:
        """As Recorder's, now and then for several steps together."""
        self._units, self._detail = self._units + units, detail or self._detail
        if time.monotonic() > self._told + TELL_EVERY:
            self.flush()

    def flush(self) -> None:
        """Tells what has not been told yet."""
        if self._units:
            self._send("add_work", (self._units, self._detail), {})
            self._units, self._told = 0.0, time.monotonic()


class Pool:
    """Workers of a device, as many as costs.workers_for says, and what their tasks are given.

    recorder: as Teller has it. stop: its value is 1 once nobody wants results any more. each: as map; on a CPU by
    several threads, a task's share of the cores, while there are fewer tasks than workers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._count, self._forked = device, workers_for(device.type), can_fork(device)
        self._inbox, self._outbox = multiprocessing.Pipe(duplex=False)
        self._telling, self._parent = multiprocessing.Lock(), os.getpid()
        self._tasks: SimpleQueue[Task | None] = multiprocessing.SimpleQueue()
        self._workers: list[BaseProcess | threading.Thread] = []
        self.unfinished: list[Task] = []
        self.recorder = Teller(self._send)
        # without a lock, which a worker that is killed might hold
        self.stop, self._share = multiprocessing.RawValue("b", 0), multiprocessing.RawValue("i", 1)

    def each(self, compute: Callable[..., Any], parts: Iterable[Any]) -> Iterable[Any]:
        if self._share.value == 1:
            return map(compute, parts)
        with pool_of_threads(self._device, self._share.value) as helpers:
            return list(helpers.map(compute, parts))

    @contextmanager
    def at_work(self, tasks: Mapping[str, Callable[..., None]], recorder: Recorder) -> Iterator[None]:
        """While the block runs, they do the tasks that are started; at its end they stop at their next step."""
        make: Any = multiprocessing.get_context("fork").Process if self._forked else threading.Thread
        try:
            for _ in range(self._count):
                worker = make(target=self._serve, args=(tasks,))
                worker.start()
                self._workers.append(worker)
            yield
        finally:
            self._close(recorder)

    def start(self, name: str, *arguments: Any) -> None:
        """Puts a task behind those that wait."""
        self.unfinished.append(Task(name, arguments))
        self._tasks.put(self.unfinished[-1])
        self._look_around()

    def finished(self, recorder: Recorder, *, timeout: float) -> Iterator[Task]:
        """Lets the recorder record, and yields what has been finished; waits so many seconds for the first word.

        Raises: TaskFailed, Cancelled, WorkerLost.
        """
        self._inbox.poll(timeout)
        for task, how, error in self._hear(recorder):
            if how != "done":
                raise TaskFailed(error) if how == "failed" else Cancelled
            yield task
        if not all(worker.is_alive() for worker in self._workers):
            raise WorkerLost

    def _hear(self, recorder: Recorder) -> Iterator[tuple[Task, str, str]]:
        """Lets the recorder record what was told; yields tasks that have ended, how, and why if they failed."""
        while self._inbox.poll():
            name, arguments, named = self._inbox.recv()
            if name != END:
                getattr(recorder, name)(*arguments, **named)
                continue
            self.unfinished.remove(arguments[0])
            self._look_around()
            yield arguments

    def _look_around(self) -> None:
        if self._device.type == "cpu" and self.unfinished:
            self._share.value = -(-self._count // len(self.unfinished))

    def _serve(self, tasks: Mapping[str, Callable[..., None]]) -> None:
        """What a worker does."""
        if self._forked:
            ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != self._parent:  # it died before that
                return
        begin(self._device)
        while (task := self._tasks.get()) is not None and not self.stop.value:
            how, error = "done", ""
            try:
                tasks[task.name](*task.arguments)
            except Cancelled:
                how = "cancelled"
            except Exception as failure:
                how, error = "failed", in_words(failure)
                with suppress(OSError):  # a full disk has no room for it
                    traceback.print_exc()
            self.recorder.flush()
            self._send(END, (task, how, error), {})

    def _send(self, *words: Any) -> None:
        with self._telling:
            self._outbox.send(words)

    def _close(self, recorder: Recorder) -> None:
        self.stop.value = 1
        for _ in self._workers:
            self._tasks.put(None)
        processes = [worker for worker in self._workers if isinstance(worker, BaseProcess)]
        lost_at: float | None = None
        while any(worker.is_alive() for worker in self._workers):
            self._inbox.poll(0.1)
            self._drain(recorder)
            if lost_at is None and any(process.exitcode for process in processes):
                lost_at = time.monotonic()
            if lost_at is not None and time.monotonic() > lost_at + GRACE:  # they may wait for a lock that it held
                for process in processes:
                    process.kill()
        for worker in self._workers:
            worker.join()
        self._drain(recorder)

    def _drain(self, recorder: Recorder) -> None:
        with suppress(OSError):  # a full disk, which the run has ended for already
            list(self._hear(recorder))


def can_fork(device: torch.device) -> bool:
    """Whether workers of this device are processes."""
    return device.type == "cpu" and sys.platform == "linux"


def pool_of_threads(device: torch.device, count: int | None = None) -> ThreadPoolExecutor:
    """Threads that compute as workers do."""
    return ThreadPoolExecutor(count or workers_for(device.type), initializer=begin, initargs=(device,))


def begin(device: torch.device) -> None:
    """In a thread that is to compute: with one torch thread, on a GPU with a stream of its own.

    Numbers below 1.2e-38 are 0 in it: the attack's sharp softmax has many, on which a CPU is slow, and beside all else
    they are nothing (benchmarks attack).
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    use_own_stream(device)
