"""A run that was stopped goes on where it was, and its results are those of one that never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import worker
from engine.config import Config
from engine.experiment import checkpoint
from engine.experiment.pool import Teller
from engine.records import Cancelled, Run

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]


@pytest.fixture
def stopped(prepare: WorkHere, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Works on a run, which keeps checkpoints at once, until a metric has this value."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))

    def stopped(config: Config, root: Path, **at: Any) -> Run:
        run = prepare(config, root)

        def and_stop(teller: Teller, kind: str, **values: Any) -> None:
            teller.__getattr__("add_metrics")(kind, **values)
            if at.items() <= values.items():
                raise Cancelled

        with monkeypatch.context() as patched:
            patched.setattr(Teller, "add_metrics", and_stop, raising=False)
            worker.perform(run, run.status())
        assert run.status().state == "cancelled"
        return run

    return stopped


def assert_same(one: Run, other: Run, kinds: tuple[str, ...], *files: str) -> None:
    for kind in kinds:
        assert one.metrics(kind) == other.metrics(kind) != []
    for name in files:
        path = f"{name}.safetensors"
        assert (one.directory / path).read_bytes() == (other.directory / path).read_bytes(), name


def by_victim(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: (record["victim"], record["epoch"]))


def test_from_the_epoch_that_a_victim_had_reached(
    tiny: Tiny, work_here: WorkHere, stopped: Callable[..., Run], tmp_path: Path
) -> None:
    config = tiny("attack.name=none", "controls=[]", "training.epochs=6")
    whole, run = work_here(config, tmp_path / "whole"), stopped(config, tmp_path, epoch=4)
    assert run.victims() == []
    assert len(list((run.directory / "checkpoints").iterdir())) == 1
    work_here(config, tmp_path)
    assert run.report is not None
    assert run.report["reused"] == ["victim clean-0 until epoch 3"]
    assert_same(run, whole, ("training",), "victims/clean-0", "votes/clean-0")
    assert not (run.directory / "checkpoints").exists()


def test_from_the_step_that_an_attack_had_reached_with_the_events_so_far(
    tiny: Tiny, work_here: WorkHere, stopped: Callable[..., Run], tmp_path: Path
) -> None:
    config = tiny("controls=[]", "attack.upper_steps=7", "attack.warmup_steps=0", "attack.weights_learning_rate=1e-9")
    whole = work_here(config, tmp_path / "whole")
    run = stopped(config, tmp_path, step=6)
    work_here(config, tmp_path)
    assert run.report is not None
    assert whole.report is not None
    assert "poison until step 5" in run.report["reused"]
    assert run.report["products"] == whole.report["products"]
    assert run.report["events"] == whole.report["events"]
    assert run.status().events == whole.status().events
    assert "no held-out image right" in whole.status().events[0]
    other_victims = config.model_copy(update={"victim_seeds": 2})
    again = work_here(other_victims, tmp_path)
    assert again.report is not None
    assert "poison" in again.report["reused"]
    assert again.report["events"] == whole.report["events"]
    of_first = [record for record in again.metrics("training") if record["victim"].endswith("-0")]
    assert by_victim(of_first) == by_victim(whole.metrics("training"))  # though they were not trained again
    assert_same(run, whole, ("attack",), "poison", "evolution", "victims/poisoned-0", "votes/poisoned-0")
    assert not (run.directory / "checkpoints").exists()


def test_a_checkpoint_of_other_circumstances_is_none(
    tiny: Tiny, work_here: WorkHere, stopped: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("attack.name=none", "controls=[]", "training.epochs=4")
    run = stopped(config, tmp_path, epoch=3)
    monkeypatch.setattr("torch.__version__", "another")
    work_here(config, tmp_path)
    assert run.report is not None
    assert run.report["reused"] == []
    assert [record["epoch"] for record in run.metrics("training")] == [1, 2, 3, 4]
