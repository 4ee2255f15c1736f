"""The queue: order, cancelling, and what is left when processes, parents, directories or disks go."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import wait_for

from engine import jobs, records, worker
from engine.config import Config
from engine.records import Run
from engine.status import HEARTBEAT_LIMIT, Status, process_start

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]
Spawn = Callable[..., "subprocess.Popen[Any]"]
LONG = ("attack.upper_steps=20000", "attack.restart_every=20000")  # minutes, unless it is stopped
PROJECT = Path(__file__).parents[1]


@pytest.fixture
def runs_root(tmp_path: Path) -> Iterator[Path]:
    """A root whose workers are gone when the test is over, however it ended."""
    root = tmp_path / "runs"
    yield root
    for run in records.all_runs(root):
        if run.status().active:
            jobs.stop_now(run, grace=0.0)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Any]]:
    """A Python process of these arguments, which is gone when the test is over, however it ended."""
    started: list[subprocess.Popen[Any]] = []

    def spawn(*arguments: Any, **how: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen([sys.executable, *arguments], cwd=PROJECT, **how))
        return started[-1]

    yield spawn
    for process in started:
        process.kill()
        process.wait()


def submit(config: Config, root: Path) -> Run:
    return jobs.submit(config, runs_root=root, data_root=root / "no data")


def process_of(run: Run) -> int:
    wait_for(lambda: run.status().pid is not None)
    pid = run.status().pid
    assert pid is not None
    return pid


def gone(pid: int) -> bool:
    return process_start(pid) is None


def test_runs_wait_their_turn_and_can_be_cancelled_both_waiting_and_running(tiny: Tiny, runs_root: Path) -> None:
    first, second, third = (submit(tiny(*LONG, f"seed={seed}"), runs_root) for seed in range(3))
    fourth = submit(tiny("seed=3", "attack.upper_steps=1"), runs_root)
    assert [jobs.queue_position(run) for run in (first, second, third, fourth)] == [0, 1, 2, 3]
    wait_for(lambda: process_of(fourth) and first.status().state == "running")
    assert {run.status().state for run in (second, third, fourth)} == {"queued"}
    if hasattr(os, "getpriority"):  # it yields to the app
        assert os.getpriority(os.PRIO_PROCESS, process_of(first)) > os.getpriority(os.PRIO_PROCESS, 0)
    jobs.write_down_lost(runs_root)
    assert all(run.status().active for run in (first, second, third, fourth))

    began = time.monotonic()
    jobs.stop_now(second)
    jobs.stop_now(third)
    assert time.monotonic() - began < 5
    assert {run.status().state for run in (second, third)} == {"cancelled"}
    assert jobs.queue_position(fourth) == 1

    wait_for(lambda: (report := first.report) and len(report["arms"]) == 2)  # clean and random_noise are certified
    pid, began = process_of(first), time.monotonic()
    jobs.stop_now(first)
    assert time.monotonic() - began < 8
    status, report, certificates = first.status(), first.need_report(), first.need_certificates()
    assert status.state == "cancelled"
    assert status.error is None
    assert report["complete"] is False
    assert set(certificates["arm"]) == {"clean", "random_noise"}
    poison = first.tensors("poison")
    assert poison is not None
    assert poison["delta"].any()

    wait_for(lambda: fourth.status().state == "done")
    started, ended = fourth.status().started, status.ended
    assert started is not None
    assert ended is not None
    assert started >= ended
    wait_for(lambda: gone(pid), seconds=10)


def test_a_killed_worker_is_lost_and_its_configuration_can_be_run_again(tiny: Tiny, runs_root: Path) -> None:
    """Killed after the clean victim; started by a process that is gone by then; asked for again with less to do."""
    code = (
        "import sys; from pathlib import Path; from engine import config, jobs\n"
        "root = Path(sys.argv[1]); asked = config.Config.model_validate_json(sys.argv[2])\n"
        "print(jobs.submit(asked, runs_root=root, data_root=root).id)"
    )
    config = tiny(*LONG)
    command = [sys.executable, "-c", code, str(runs_root), config.canonical()]
    parent = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    run = Run(runs_root / parent.stdout.strip())
    pid = process_of(run)
    assert os.getsid(pid) == pid  # the leader of its own session
    wait_for(lambda: (run.directory / "votes" / "clean-0.safetensors").exists())
    assert run.status().state == "running"

    waiting = submit(tiny("seed=1"), runs_root)
    process_of(waiting)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: run.status().state == "lost", seconds=5)
    assert time.monotonic() - began < 5
    assert "killed" in str(run.status().error)
    jobs.write_down_lost(runs_root)
    assert waiting.status().active
    recorded = run.read_json("status.json")
    assert recorded is not None
    assert recorded["state"] == "lost"  # for good
    wait_for(lambda: waiting.status().state == "done")

    again = submit(config, runs_root)
    assert again == run
    wait_for(lambda: (report := again.report) and "clean" in report["arms"])
    report = again.report
    assert report is not None
    assert {"victim clean-0", "votes clean-0"} <= set(report["reused"])

    pid = process_of(again)
    while again.directory.exists():
        shutil.rmtree(again.directory, ignore_errors=True)  # by hand, under its feet
    wait_for(lambda: gone(pid), seconds=30)
    assert not again.directory.exists()
    assert {path.name for path in runs_root.iterdir() if path.is_dir()} == {waiting.id, "stages"}


def test_asking_twice_at_once_gives_one_worker(tiny: Tiny, runs_root: Path, spawn: Spawn) -> None:
    code = (
        "import sys, time; from pathlib import Path; from engine import config, jobs\n"
        "asked = config.Config.model_validate_json(sys.argv[2]); started = []; popen = jobs.subprocess.Popen\n"
        "jobs.subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k))\n"
        "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"
        "jobs.submit(asked, runs_root=Path(sys.argv[1]), data_root=Path(sys.argv[1])); print(len(started))"
    )
    asked = ("-c", code, str(runs_root), tiny(*LONG).canonical(), str(time.time() + 1.5))
    askers = [spawn(*asked, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sorted(asker.communicate(timeout=60)[0].strip() for asker in askers) == ["0", "0", "0", "1"]
    assert submit(tiny(*LONG), runs_root).status().active


def test_a_finished_run_is_not_run_again(tiny: Tiny, work_here: WorkHere, runs_root: Path) -> None:
    run = work_here(tiny(), runs_root)
    before = run.status()
    assert submit(tiny(), runs_root) == run
    assert run.status() == before


def test_a_finished_run_whose_report_is_gone_is_run_again(
    tiny: Tiny, work_here: WorkHere, prepare: WorkHere, runs_root: Path
) -> None:
    run = work_here(tiny(), runs_root)
    (run.directory / "report.json").unlink()
    assert prepare(tiny(), runs_root).status().state == "queued"


def worker_of(run: Run, spawn: Spawn) -> "subprocess.Popen[bytes]":
    """A process that looks like a run's own."""
    directory = str(run.directory.resolve())
    process = spawn("-c", "while True: pass", directory, start_new_session=True)
    while directory not in psutil.Process(process.pid).cmdline():  # Popen returns before the system has it
        time.sleep(0.01)
    return process


def test_a_process_that_is_not_the_runs_own_is_not_killed(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, spawn: Spawn
) -> None:
    """Whoever hands on a run directory writes its status, and could name any process of the user's."""
    run = prepare(tiny(), runs_root)
    other = spawn("-c", "while True: pass", start_new_session=True)
    run.write_status(Status("running", pid=other.pid, pid_started=process_start(other.pid), heartbeat=0.0))
    prepare(tiny(), runs_root)
    jobs.stop_now(run, grace=0.1)
    assert other.poll() is None


def test_a_run_that_another_machine_computes_is_asked_to_stop_and_neither_declared_dead_nor_deleted(
    tiny: Tiny, prepare: WorkHere, runs_root: Path
) -> None:
    run, now = prepare(tiny(), runs_root), time.time()
    status = Status("running", pid=2**22 + 1, pid_started=1.0, machine="another", heartbeat=now, submitted=now)
    run.write_status(status)
    jobs.stop_now(run, grace=0.1)
    assert run.status() == status
    assert (run.directory / "cancel").exists()
    with pytest.raises(ValueError, match="is still computed on another machine"):
        jobs.remove(run)
    run.write_status(replace(status, heartbeat=now - 100))
    jobs.write_down_lost(runs_root)  # its own machine may know better
    assert (run.read_json("status.json") or {})["state"] == "running"
    jobs.remove(run)
    assert not run.exists()


def test_a_stuck_worker_is_killed_before_its_successor_starts(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, spawn: Spawn
) -> None:
    run = prepare(tiny(), runs_root)
    stuck = worker_of(run, spawn)
    status = Status("running", pid=stuck.pid, pid_started=process_start(stuck.pid), heartbeat=0.0)
    run.write_status(status)
    assert run.status().state == "lost"
    prepare(tiny(), runs_root)
    assert stuck.wait(timeout=5) == -signal.SIGKILL


def test_a_worker_that_does_not_listen_is_killed_and_counts_as_cancelled(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GRACE", 0.3)
    run = prepare(tiny(), runs_root)
    deaf = worker_of(run, spawn)
    now = time.time()
    run.write_status(Status("running", pid=deaf.pid, pid_started=process_start(deaf.pid), heartbeat=now, submitted=now))
    jobs.stop_now(run)
    assert deaf.wait(timeout=5) == -signal.SIGKILL
    assert run.status().state == "cancelled"


def test_a_run_that_was_submitted_anew_is_not_written_off_as_lost(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks while the old process is gone, and writes when the new one is already asked for."""
    run = prepare(tiny(), runs_root)
    queued = run.status()
    run.write_status(replace(queued, submitted=0.0))
    changes = jobs._changes

    def submitted_in_between(root: Path) -> Any:
        run.write_status(queued)
        return changes(root)

    monkeypatch.setattr(jobs, "_changes", submitted_in_between)
    jobs.write_down_lost(runs_root)
    assert run.status() == queued


def test_a_status_that_this_version_cannot_read_stays_as_it_is(tiny: Tiny, prepare: WorkHere, runs_root: Path) -> None:
    run = prepare(tiny(), runs_root)
    run.write_json("status.json", {"state": "done", "of a later version": 1})
    assert run.status().state == "lost"
    jobs.write_down_lost(runs_root)
    assert run.read_json("status.json") == {"state": "done", "of a later version": 1}


def test_of_two_processes_on_one_run_the_second_leaves_at_once_without_a_trace(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the first took minutes to start, and the run was asked for again in the meantime."""
    monkeypatch.setattr(worker, "GRACE", 0.1)
    run = prepare(tiny(), runs_root)
    with worker.alone(run):
        before = run.status()
        with pytest.raises(SystemExit, match="another process is at work in"):
            worker.work(run.directory)
        assert run.status() == before


def test_sigterm_to_a_waiting_worker_cancels_it(tiny: Tiny, runs_root: Path) -> None:
    from filelock import FileLock

    runs_root.mkdir()
    with FileLock(runs_root / ".device.lock"):
        run = submit(tiny(), runs_root)
        pid = process_of(run)
        wait_for(lambda: run.status().heartbeat > run.status().submitted + 1)
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: run.status().state == "cancelled", seconds=5)


def test_a_run_that_is_asked_for_again_while_it_is_being_cancelled_runs(tiny: Tiny, runs_root: Path) -> None:
    from filelock import FileLock

    runs_root.mkdir()
    with FileLock(runs_root / ".device.lock"):
        run = submit(tiny("attack.upper_steps=1"), runs_root)
        pid = process_of(run)
        jobs.cancel(run)
        assert submit(run.config, runs_root).id == run.id
        assert run.status().state == "queued"
        assert process_of(run) != pid
    wait_for(lambda: run.status().state == "done")


def test_a_run_deleted_while_it_waits_ends_without_a_trace(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, spawn: Spawn
) -> None:
    from filelock import FileLock

    run = prepare(tiny(), runs_root)
    with FileLock(runs_root / ".device.lock"):
        worker = spawn("-m", "engine", "work", run.directory)
        process_of(run)
        while run.directory.exists():  # the worker may just be writing into it
            shutil.rmtree(run.directory, ignore_errors=True)
        assert worker.wait(timeout=10) == 1
    assert not run.directory.exists()


@pytest.mark.parametrize("wakes", [True, False])
def test_who_waits_gives_a_process_time_to_say_that_it_only_slept(
    wakes: bool, tiny: Tiny, prepare: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the lid of a laptop was shut: its heartbeat is old, and it exists."""
    run = prepare(tiny(), runs_root)
    status = worker.begin(run)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    slept = replace(status, state="running", heartbeat=time.time() - 10 * HEARTBEAT_LIMIT)
    run.write_status(slept)
    assert run.status().state == "lost"

    def waking(_seconds: float) -> None:
        if wakes:
            run.write_status(replace(slept, heartbeat=time.time()))

    monkeypatch.setattr(jobs.time, "sleep", waking)
    assert jobs.awaited(run).state == ("running" if wakes else "lost")
