"""A poison that somebody brings as a file: checked (engine/poison_format.py), then kept by its hash.

What is kept, under <runs root>/poisons/<SHA-256>.safetensors, is the same tensors in the order of indices.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from engine import datasets
from engine.config import Config, ConfigError
from engine.poison_format import LARGEST_FILE, PoisonFileRefused, arrays
from engine.records import Run, write_atomically

TOLERANCE = 1e-6  # of pixels and budgets, for float32's rounding


class Fit(NamedTuple):
    """What a poison asks of a configuration."""

    target_class: int  # of all its images
    epsilon: float  # smallest budget (L∞, pixel units, six decimals) that it stays within


@dataclass(frozen=True)
class PoisonFile:
    """Changes delta float32 [P, C, H, W] of the training images indices int64 [P], ascending; SHA-256 of what is kept.

    rounding: by how much (L∞) delta may be off, since the file has whole numbers; 0 where it has not.
    """

    delta: np.ndarray
    indices: np.ndarray
    sha256: str
    rounding: float
    content: bytes  # as it is kept

    @property
    def largest_change(self) -> float:
        """L∞, pixel units."""
        return float(np.abs(self.delta).max())


def read(content: bytes) -> PoisonFile:
    """The poison in a file's content. Raises: PoisonFileRefused, in one sentence."""
    found = arrays(content)
    delta, indices = found["delta"], found["indices"]
    unit = float(found["unit"][0]) if "unit" in found else 0.0
    if "unit" in found and not 0 < unit <= 1:
        raise PoisonFileRefused(f"unit must be in (0, 1], got {unit}")
    if (indices < 0).any() or len(np.unique(indices)) != len(indices):
        raise PoisonFileRefused("indices must be at least 0 and differ from each other, and some do not")
    if unit == 0 and not np.isfinite(delta).all():
        raise PoisonFileRefused("delta must be finite, and some of it is not")
    order = np.argsort(indices)
    kept = {name: np.ascontiguousarray(array if name == "unit" else array[order]) for name, array in found.items()}
    text = save(kept)
    changes = kept["delta"] * np.float32(unit) if unit else kept["delta"]
    poison = PoisonFile(changes, kept["indices"], hashlib.sha256(text).hexdigest(), unit / 2, text)
    if poison.largest_change > 1 + TOLERANCE:
        raise PoisonFileRefused(
            f"delta must be in [-1, 1], pixel units of [0, 1], got a change of {poison.largest_change:g}"
        )
    return poison


def of_run(run: Run) -> PoisonFile:
    """The poison of a run, as if it were brought as a file. Raises: PoisonFileRefused."""
    path = run.directory / "poison.safetensors"
    if not path.is_file():
        raise PoisonFileRefused(f"run {run.id} has no poison")
    return read_path(path)


def read_path(path: Path) -> PoisonFile:
    """Raises: PoisonFileRefused; OSError."""
    with path.open("rb") as file:
        return read(file.read(LARGEST_FILE + 1))


def keep(poison: PoisonFile, runs_root: Path) -> Path:
    """Puts it where runs find it by its hash."""
    path = _place(poison.sha256, runs_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, poison.content)
    return path


def kept(sha256: str, runs_root: Path) -> PoisonFile:
    """The poison of this hash. Raises: PoisonFileRefused where it is not here, or was changed since."""
    try:
        poison = read_path(_place(sha256, runs_root))
    except OSError:
        raise PoisonFileRefused(
            f"the poison file {sha256[:12]}… is not on this machine: bring it again (python -m engine poison-file FILE)"
        ) from None
    if poison.sha256 != sha256:
        raise PoisonFileRefused(f"the poison file {sha256[:12]}… was changed after it had been brought")
    return poison


def starting_from(run: Run, runs_root: Path) -> list[str]:
    """What to set so that PACD starts from the poison of a finished run of PACD, which is kept for that.

    Half a surrogate's life of upper steps is enough where only the budget changed (docs/solvers.md, for `quick`).
    Raises: PoisonFileRefused.
    """
    attack, state = run.config.attack, run.status().state
    if state != "done" or not attack.traits.may_start_from_file:
        raise PoisonFileRefused(
            f"PACD starts from the poison of a finished run of PACD, and run {run.id} (attack {attack.name}) is {state}"
        )
    poison = of_run(run)
    keep(poison, runs_root)
    steps = min(attack.upper_steps, max(1, attack.restart_every // 2))
    return ["attack.name=pacd", f"attack.file={poison.sha256}", f"attack.upper_steps={steps}"]


def check(config: Config, *, runs_root: Path, data_root: Path) -> None:
    """That the file an attack asks for is here, is of images like these and of the target class, where the data set is
    here already, and keeps the budget, which it need not where it is only a start; nothing for other attacks.

    Raises: ConfigError.
    """
    if not config.attack.file:
        return
    try:
        poison = kept(config.attack.file, runs_root)
        _check_shape(poison, config.dataset, data_root)
        if datasets.available(config.dataset, data_root):
            _check_class(_labels(poison, config.dataset, data_root), config.threat.target_class)
    except (PoisonFileRefused, datasets.DatasetUnavailable) as error:
        raise ConfigError(f"attack.file: {error}") from None
    if config.attack.name == "from-file" and poison.largest_change > config.threat.epsilon + TOLERANCE:
        raise ConfigError(
            f"threat.epsilon must be at least {_smallest_budget(poison)} for this poison file, got "
            f"{config.threat.epsilon:g}"
        )


def fit(poison: PoisonFile, dataset: str, data_root: Path) -> Fit:
    """Target class and budget that this poison of a data set's training images asks for.

    Raises: PoisonFileRefused, where it is none: of another shape, of several classes, or leaving the pixel range.
    """
    _check_shape(poison, dataset, data_root)
    classes = np.unique(_labels(poison, dataset, data_root))
    if len(classes) > 1:
        raise PoisonFileRefused(
            f"a poison changes images of one class, the target class; these are of {len(classes)} classes of {dataset}"
        )
    images = datasets.read_training_images(dataset, data_root, poison.indices)
    within_pixels(poison.delta, images, rounding=poison.rounding)
    return Fit(int(classes[0]), _smallest_budget(poison))


def within_pixels(delta: np.ndarray, x_clean: np.ndarray, *, rounding: float) -> tuple[np.ndarray, int]:
    """(A file's delta [P, C, H, W], cut so that x_clean + delta stays in [0, 1], how many values were cut for that).

    Only what whole numbers are off by is cut. Raises: PoisonFileRefused, where more had to be.
    """
    if x_clean.shape != delta.shape:
        raise PoisonFileRefused(f"images are {_times(x_clean.shape)}, the poison file's {_times(delta.shape)}")
    changed = x_clean + delta
    excess = float(max(-changed.min(), changed.max() - 1))
    if excess > rounding + TOLERANCE:
        raise PoisonFileRefused(
            f"a changed image must stay in [0, 1]; the poison file takes a pixel {excess:.3g} beyond it, so it was "
            "made for other images"
        )
    inside = np.where((changed < 0) | (changed > 1), changed.clip(0, 1) - x_clean, delta).astype(np.float32)
    return inside, int((np.abs(inside - delta) > TOLERANCE).sum())


def within_run(
    poison: PoisonFile, *, original: np.ndarray, labels: np.ndarray, allowed: np.ndarray, target_class: int
) -> tuple[np.ndarray, np.ndarray]:
    """(positions [Q] in a run's training set, the changes [Q, C, H, W] of these images).

    Args:
        original, labels: of the training set: positions in the original one, ascending, and labels.
        allowed: positions in the training set of the images that may change.
    Raises: PoisonFileRefused, where images of other classes would change, or none may.
    """
    present = np.isin(poison.indices, original)
    positions = np.searchsorted(original, poison.indices[present])
    _check_class(labels[positions], target_class)
    may = np.isin(positions, allowed)
    if not may.any():
        raise PoisonFileRefused(f"none of the poison file's {len(poison.indices)} images may change in this run")
    return positions[may], poison.delta[present][may]


def _place(sha256: str, runs_root: Path) -> Path:
    return runs_root / "poisons" / f"{sha256}.safetensors"


def _smallest_budget(poison: PoisonFile) -> float:
    return max(0.0, math.ceil((poison.largest_change - TOLERANCE) * 1e6) / 1e6)


def _check_shape(poison: PoisonFile, dataset: str, data_root: Path) -> None:
    if (shape := datasets.shape(dataset, data_root)) != poison.delta.shape[1:]:
        raise PoisonFileRefused(
            f"an image of {dataset} is {_times(shape)} (channels × height × width); the poison file has "
            f"{_times(poison.delta.shape[1:])}"
        )


def _labels(poison: PoisonFile, dataset: str, data_root: Path) -> np.ndarray:
    """[P]: of its images. Raises: PoisonFileRefused, where the data set has not as many; DatasetUnavailable."""
    labels = datasets.training_labels(dataset, data_root)
    if poison.indices[-1] >= len(labels):
        raise PoisonFileRefused(
            f"indices must be below {len(labels)}, the training images of {dataset}, got {poison.indices[-1]}"
        )
    return labels[poison.indices]


def _check_class(labels: np.ndarray, target_class: int) -> None:
    if others := int((labels != target_class).sum()):
        raise PoisonFileRefused(f"the poison file changes {others} training images outside target class {target_class}")


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
