"""A poison that somebody brings as a file: checked from its headers before any of it is read, then kept by its hash.

Two forms are read: safetensors, as a run's poison.safetensors has it, and NumPy's .npz without pickled content. Inside:

    delta    float32 [P, C, H, W], pixel units of [0, 1]; or int8, of which `unit` float32 [1] says how large 1 is
    indices  int64 [P]: which images of the original training set these are the changes of

What is kept, under <runs root>/poisons/<SHA-256>.safetensors, is the same tensors in the order of indices.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from engine import datasets
from engine.config import Config, ConfigError
from engine.records import Run, write_atomically

LARGEST_FILE = 20 * 2**20  # bytes; .streamlit/config.toml lets no more through
LARGEST_HEADER = 2**16  # bytes
MOST_VALUES = 20_000_000  # of delta: the 5 000 images of a class of CIFAR-10 have 15 million
LARGEST_SIDE = 224  # pixels
TOLERANCE = 1e-6  # of pixels and budgets, for float32's rounding
DTYPES = {"F32": "<f4", "I8": "|i1", "I64": "<i8"}  # safetensors' name → NumPy's


class PoisonFileRefused(ValueError):
    """The file is no poison that can be used; the message says what was wrong, and what is allowed."""


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
    if len(content) > LARGEST_FILE:
        raise PoisonFileRefused(
            f"a poison file has at most {LARGEST_FILE >> 20} MB, got {len(content) / 2**20:.1f} MB; a large one fits "
            "as int8 with a unit"
        )
    found = _from_npz(content) if content[:2] == b"PK" else _from_safetensors(content)
    _check_headers({name: (array.dtype.str, array.shape) for name, array in found.items()})
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


def check(config: Config, *, runs_root: Path, data_root: Path) -> None:
    """That the file an attack asks for is here, is of images like these, and keeps the budget; nothing for others.

    Raises: ConfigError.
    """
    if config.attack.name != "from-file":
        return
    try:
        poison = kept(config.attack.file, runs_root)
        _check_shape(poison, config.dataset, data_root)
    except (PoisonFileRefused, datasets.DatasetUnavailable) as error:
        raise ConfigError(f"attack.file: {error}") from None
    if poison.largest_change > config.threat.epsilon + TOLERANCE:
        raise ConfigError(
            f"threat.epsilon must be at least {_smallest_budget(poison)} for this poison file, got "
            f"{config.threat.epsilon:g}"
        )


def fit(poison: PoisonFile, dataset: str, data_root: Path) -> Fit:
    """Target class and budget that this poison of a data set's training images asks for.

    Raises: PoisonFileRefused, where it is none: of another shape, of several classes, or leaving the pixel range.
    """
    _check_shape(poison, dataset, data_root)
    images, labels = datasets.read(dataset, data_root, train=True)
    if poison.indices[-1] >= len(labels):
        raise PoisonFileRefused(
            f"indices must be below {len(labels)}, the training images of {dataset}, got {poison.indices[-1]}"
        )
    classes = np.unique(labels[poison.indices])
    if len(classes) > 1:
        raise PoisonFileRefused(
            f"a poison changes images of one class, the target class; these are of {len(classes)} classes of {dataset}"
        )
    within_pixels(poison, images[poison.indices])
    return Fit(int(classes[0]), _smallest_budget(poison))


def within_pixels(poison: PoisonFile, x_clean: np.ndarray) -> tuple[np.ndarray, int]:
    """(delta [P, C, H, W] that leaves no pixel of x_clean + delta outside [0, 1], how many values were cut for that).

    Only what whole numbers are off by is cut. Raises: PoisonFileRefused, where more had to be.
    """
    if x_clean.shape != poison.delta.shape:
        raise PoisonFileRefused(f"images are {_times(x_clean.shape)}, the poison file's {_times(poison.delta.shape)}")
    changed = x_clean + poison.delta
    excess = float(max(-changed.min(), changed.max() - 1))
    if excess > poison.rounding + TOLERANCE:
        raise PoisonFileRefused(
            f"a changed image must stay in [0, 1]; the poison file takes a pixel {excess:.3g} beyond it, so it was "
            "made for other images"
        )
    inside = np.where((changed < 0) | (changed > 1), changed.clip(0, 1) - x_clean, poison.delta).astype(np.float32)
    return inside, int((np.abs(inside - poison.delta) > TOLERANCE).sum())


def within_run(
    poison: PoisonFile, *, original: np.ndarray, labels: np.ndarray, allowed: np.ndarray, target_class: int
) -> tuple[np.ndarray, PoisonFile]:
    """(positions [Q] in a run's training set, the part of the poison [Q, C, H, W] that changes these images).

    Args:
        original, labels: of the training set: positions in the original one, ascending, and labels.
        allowed: positions in the training set of the images that may change.
    Raises: PoisonFileRefused, where images of other classes would change, or none may.
    """
    present = np.isin(poison.indices, original)
    positions = np.searchsorted(original, poison.indices[present])
    if others := int((labels[positions] != target_class).sum()):
        raise PoisonFileRefused(f"the poison file changes {others} training images outside target class {target_class}")
    may = np.isin(positions, allowed)
    if not may.any():
        raise PoisonFileRefused(f"none of the poison file's {len(poison.indices)} images may change in this run")
    part = replace(poison, delta=poison.delta[present][may], indices=poison.indices[present][may])
    return positions[may], part


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


# --- reading ---


def _check_headers(headers: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Names, kinds and shapes, before anything is read."""
    if not {"delta", "indices"} <= set(headers) <= {"delta", "indices", "unit"}:
        raise PoisonFileRefused(
            "a poison file has delta and indices, and unit where delta is int8, and nothing else (no labels: it is "
            f"clean-label), got {', '.join(sorted(headers))[:100] or 'nothing'}"
        )
    (kind, shape), (index_kind, index_shape) = headers["delta"], headers["indices"]
    unit = headers.get("unit")
    wanted = "|i1" if unit else "<f4"
    if kind != wanted:
        raise PoisonFileRefused(f"delta must be float32, or int8 beside a unit, got {_name(kind)}")
    if unit and unit != ("<f4", (1,)):
        raise PoisonFileRefused(f"unit must be float32 of shape [1], got {_name(unit[0])} of shape {list(unit[1])}")
    if len(shape) != 4 or shape[0] < 1 or shape[1] not in (1, 3) or not all(1 <= s <= LARGEST_SIDE for s in shape[2:]):
        raise PoisonFileRefused(
            f"delta must be [P, C, H, W] with P at least 1, C 1 or 3, H and W from 1 to {LARGEST_SIDE}, got "
            f"{list(shape)[:8]}"
        )
    if math.prod(shape) > MOST_VALUES:
        raise PoisonFileRefused(f"delta may have at most {MOST_VALUES:,} values, got {math.prod(shape):,}")
    if index_kind != "<i8" or index_shape != shape[:1]:
        raise PoisonFileRefused(
            f"indices must be int64 of shape [{shape[0]}], one for each image, got {_name(index_kind)} of shape "
            f"{list(index_shape)[:8]}"
        )


def _from_safetensors(content: bytes) -> dict[str, np.ndarray]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or not 2 <= length <= min(LARGEST_HEADER, len(content) - 8) or content[8:9] != b"{":
        raise PoisonFileRefused("a poison file is a safetensors file or an .npz file, and this is neither")
    try:
        header = json.loads(content[8 : 8 + length])
        headers = {
            str(name): (DTYPES.get(entry["dtype"], str(entry["dtype"])), tuple(int(side) for side in entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except Exception:  # whatever the parser makes of what a stranger wrote
        raise PoisonFileRefused("the header of the safetensors file cannot be read") from None
    _check_headers(headers)
    try:
        return load(content)
    except Exception:
        raise PoisonFileRefused("the safetensors file is damaged: its header does not fit its content") from None


def _from_npz(content: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > 3:
                raise PoisonFileRefused(f"a poison file has at most 3 arrays, got {len(members)}")
            headers = {member.filename.removesuffix(".npy"): _header(archive, member) for member in members}
            _check_headers(headers)
            return {
                member.filename.removesuffix(".npy"): _array(
                    archive, member, *headers[member.filename.removesuffix(".npy")]
                )
                for member in members
            }
    except PoisonFileRefused:
        raise
    except Exception:  # of zipfile, and of each way of packing
        raise PoisonFileRefused("the .npz file is damaged, or packed in a way that is not read") from None


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[str, tuple[int, ...]]:
    """(kind, shape) of an .npy file within."""
    with archive.open(member) as file:
        return _npy_header(file)


def _npy_header(file: Any) -> tuple[str, tuple[int, ...]]:
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, in_columns, kind = readers[np.lib.format.read_magic(file)](file)
    except Exception:  # NumPy gives the header to Python's parser
        raise PoisonFileRefused("an array of the .npz file has no header that can be read") from None
    if in_columns or kind.hasobject or kind.fields:
        raise PoisonFileRefused("arrays of a poison file hold plain numbers, row by row, and no Python objects")
    return kind.str, tuple(shape)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape) * np.dtype(kind).itemsize
    with archive.open(member) as file:
        _npy_header(file)
        data = file.read(size + 1)
    if len(data) != size:
        raise PoisonFileRefused(f"{member.filename} has not as many bytes as its header says")
    return np.frombuffer(data, dtype=kind).reshape(shape)


def _name(kind: str) -> str:
    """NumPy's "<f8" as a reader knows it."""
    try:
        return str(np.dtype(kind))
    except TypeError:
        return kind[:20]


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
