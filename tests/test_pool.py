"""The workers of a run: the same bytes however many there are, and what happens when one is lost."""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from engine import hypergradient, votes
from engine.config import Config
from engine.experiment import checkpoint, pool
from engine.experiment.recorder import Recorder
from engine.records import Run
from tests.running import content

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]


@pytest.mark.parametrize("forked", [True, False])
@pytest.mark.parametrize("count", [1, 4])
def test_bytes_do_not_depend_on_how_many_workers_share_the_attack_and_the_victims(
    count: int, forked: bool, baseline: Run, work_here: WorkHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker never has time to help the attack or a victim that votes, of four some always have."""
    seen, numbers = tmp_path / "seen", dict[votes.Answers, int]()  # which also keeps them, so that none is another
    seen.mkdir()

    def note(what: str) -> None:
        (seen / f"{what}, process {os.getpid()}, thread {threading.get_ident()}").touch()
        time.sleep(0.002)  # lest a helper be done before there is another

    def grad(*arguments: Any, **named: Any) -> Any:
        note("attack")
        return torch.autograd.grad(*arguments, **named)

    def answer(self: votes.Answers, *given: Any) -> Any:
        note(f"answers {numbers.setdefault(self, len(numbers))}")
        return one_images_answers(self, *given)

    def threads(of: str) -> dict[str, int]:
        """How many computed each, in whichever process."""
        return Counter(path.name.partition(", thread")[0] for path in seen.glob(f"{of}*"))

    one_images_answers = votes.Answers._answer
    monkeypatch.setattr(hypergradient, "grad", grad)
    monkeypatch.setattr(votes.Answers, "_answer", answer)
    monkeypatch.setattr(pool, "workers_for", lambda device: count)
    monkeypatch.setattr(pool, "can_fork", lambda device: forked)
    assert content(work_here(baseline.config, tmp_path / "runs")) == content(baseline)
    assert [many > 1 for many in threads("attack").values()] == [count > 1]
    assert any(many > 1 for many in threads("answers").values()) == (count > 1)
    assert any(f"process {os.getpid()}," in path.name for path in seen.iterdir()) != forked


def test_a_run_whose_worker_is_killed_says_so_and_goes_on_when_it_is_asked_for_again(
    tiny: Tiny, work_here: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pool.can_fork(torch.device("cpu")):
        pytest.skip("workers are threads here")

    def die(teller: pool.Teller, kind: str, **values: Any) -> None:
        teller.__getattr__("add_metrics")(kind, **values)
        if values.get("step") == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    config = tiny("attack.upper_steps=6", "attack.restart_every=6", "victim_seeds=2")
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "EVERY", 0.0)
        patched.setattr(checkpoint, "SHARE", float("inf"))
        patched.setattr(pool.Teller, "add_metrics", die, raising=False)
        run = work_here(config, runs_root)
    assert run.status().state == "failed"
    assert "ended from outside" in str(run.status().error)
    assert [record["step"] for record in run.metrics("attack")] == [1, 2, 3, 4]
    assert not multiprocessing.active_children()
    assert work_here(config, runs_root).status().state == "done"
    assert "poison until step 3" in run.need_report()["reused"]


@pytest.mark.parametrize("forked", [True, False])
def test_a_worker_that_cannot_start_leaves_no_other_behind(
    forked: bool, tiny: Tiny, work_here: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = multiprocessing.get_context("fork").Process if forked else threading.Thread
    start, before, calls = started.start, threading.active_count(), Counter[str]()

    def second_fails(worker: Any) -> None:
        if getattr(worker, "_target", None).__class__.__name__ == "method":
            calls["start"] += 1
            if calls["start"] == 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
        start(worker)

    monkeypatch.setattr(pool, "workers_for", lambda device: 2)
    monkeypatch.setattr(pool, "can_fork", lambda device: forked)
    monkeypatch.setattr(started, "start", second_fails)
    run = work_here(tiny(), runs_root)
    assert run.status().state == "failed"
    assert "temporarily unavailable" in str(run.status().error)
    assert not multiprocessing.active_children()
    assert threading.active_count() <= before


def test_what_workers_said_last_is_recorded_too() -> None:
    """As they stop, when nobody asks any more what they have finished."""
    recorder = SimpleNamespace(said=[])
    recorder.add_event = recorder.said.append
    workers = pool.Pool(torch.device("cpu"))

    def speak(number: int) -> None:
        workers.recorder.add_event(number)

    with workers.at_work({"speak": speak}, cast(Recorder, recorder)):
        for number in range(20):
            workers.start("speak", number)
        while len(workers.unfinished) > 10:
            list(workers.finished(cast(Recorder, recorder), timeout=0.1))
    heard = len(recorder.said)
    assert heard == 20 - len(workers.unfinished) >= 10


def test_what_no_recorder_can_do_is_refused_where_it_is_asked_for() -> None:
    said = list[str]()
    teller = pool.Teller(lambda name, *_: said.append(name))
    with pytest.raises(AttributeError, match="'add_reuse'"):
        teller.add_reuse("poison", 1.0)
    teller.add_reused("poison", 1.0)
    assert said == ["add_reused"]
