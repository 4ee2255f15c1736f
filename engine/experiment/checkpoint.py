"""Checkpoints of long stages, from which a run that was stopped, or crashed, goes on."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from engine.records import write_tensors

EVERY = 5.0  # seconds at least from one to the next
SHARE = 0.01  # of the time, that writing may take
FOLDER = "checkpoints"  # of a run directory


class Checkpoint:
    """A file in the run directory, until the whole run is finished.

    Its name is the stage's key: a run that depends on anything else, another version of torch say, does not find it.
    """

    def __init__(self, run_directory: Path, key: str) -> None:
        self._path, self._due = run_directory / FOLDER / f"{key}.safetensors", time.monotonic() + EVERY

    def load(self) -> dict[str, Tensor]:
        """What was kept last, on the CPU; empty where nothing was, or nothing that can be read."""
        try:
            found = load_file(self._path) if self._path.exists() else {}
        except SafetensorError:
            self._path.unlink()
            found = {}
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def keep(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keeps the state in place of the last one, unless that is too young."""
        started = time.monotonic()
        if started >= self._due:
            self._path.parent.mkdir(exist_ok=True)
            write_tensors(self._path, **{name: tensor.detach().cpu().numpy() for name, tensor in state().items()})
            now = time.monotonic()
            self._due = now + max(EVERY, (now - started) / SHARE)


def remove_all(run_directory: Path) -> None:
    """The run is finished, and needs none any more."""
    shutil.rmtree(run_directory / FOLDER, ignore_errors=True)
