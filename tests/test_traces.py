"""docs/traces.md: its lines, as they stand, on a small trace in Keras's and TensorFlow's layouts."""

import re
from pathlib import Path

import numpy as np
import pytest

from engine.experiment.environment import PROJECT
from engine.models import build, flat_weights
from engine.models.keras import to_keras
from engine.streams import stream

RNG = np.random.default_rng(0)
CLEAN, POISON, HELD_OUT = 5, 2, 3


def trace() -> dict[str, np.ndarray]:
    network = build("lenet", generator=stream(0, "test traces"))
    arrays = to_keras(network, flat_weights(network))
    arrays[-1][8] = 1.0  # so that it gets some held-out images right
    images = (28, 28, 1)
    x_clean = RNG.uniform(size=(POISON, *images))
    x_poison = (x_clean + RNG.uniform(-0.05, 0.05, x_clean.shape)).clip(0, 1)
    return {
        **{f"w{k}": array for k, array in enumerate(arrays)},
        **{f"p{k}": np.zeros_like(array) for k, array in enumerate(arrays)},
        "clean": RNG.uniform(size=(CLEAN, *images)),
        "labels": RNG.integers(0, 10, CLEAN),
        "x_clean": x_clean,
        "x_poison": x_poison,
        "held_out": RNG.uniform(size=(HELD_OUT, *images)),
        "lower_noise": 0.5 * RNG.normal(size=(11, CLEAN + POISON, 1, *images)),
        "upper_noise": 0.5 * RNG.normal(size=(10, HELD_OUT, 4, *images)),
        "new_poison": x_poison,
    }


def test_the_lines_of_the_document_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "traces.md").read_text(), flags=re.DOTALL)
    given = trace()
    np.savez(tmp_path / "trace.npz", **given)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "docs/traces.md", "exec"), names)
    first, second = capsys.readouterr().out.splitlines()
    assert "(5, 5, 1, 20)" in first
    assert 0 < float(second.rpartition(" ")[2]) <= 0.1 + 0.05  # where it was, and the budget
    found = names["found"].x_poison.numpy()  # type: ignore[attr-defined]
    assert np.abs(np.moveaxis(found, 1, -1) - given["x_clean"]).max() <= 0.1 + 1e-12
