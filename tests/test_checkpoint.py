"""What long stages keep of where they stand."""

from pathlib import Path

import pytest
import torch

from engine.experiment import checkpoint
from engine.experiment.checkpoint import Checkpoint, remove_all

KEY = "0123"


def test_a_checkpoint_keeps_the_last_state_of_its_stage_until_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    one, beside = Checkpoint(tmp_path, KEY), Checkpoint(tmp_path, "another")
    assert one.load() == {}
    one.keep(lambda: pytest.fail("the stage has only begun"))
    assert list(tmp_path.iterdir()) == []
    for clock[0], value, last in ((5.0, 1, 1), (9.0, 2, 1), (10.0, 3, 3)):
        one.keep(lambda value=value: {"epochs": torch.tensor(value)})
        assert Checkpoint(tmp_path, KEY).load() == {"epochs": last}
    beside.keep(lambda: {"epochs": torch.tensor(7)})
    assert beside.load() == {"epochs": 7}
    remove_all(tmp_path)
    assert Checkpoint(tmp_path, KEY).load() == {}
    assert beside.load() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_cut_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    Checkpoint(tmp_path, KEY).keep(lambda: {"epochs": torch.tensor(7)})
    (path,) = (tmp_path / checkpoint.FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert Checkpoint(tmp_path, KEY).load() == {}
    Checkpoint(tmp_path, KEY).keep(lambda: {"epochs": torch.tensor(8)})
    assert Checkpoint(tmp_path, KEY).load() == {"epochs": 8}


def test_a_state_that_takes_long_to_write_is_kept_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    one = Checkpoint(tmp_path, KEY)

    def state(value: int) -> dict[str, torch.Tensor]:
        clock[0] += 2.0
        return {"epochs": torch.tensor(value)}

    for clock[0], value, last in ((5.0, 1, 1), (206.9, 2, 1), (207.0, 3, 3)):
        one.keep(lambda value=value: state(value))
        assert one.load() == {"epochs": last}
