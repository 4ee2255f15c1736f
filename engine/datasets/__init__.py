"""The data sets as arrays, one file each. No torch, so that pages open at once.

Each is a module of the same functions of the path where it lies; a folder of images lies at <root>/NAME, and what
depends on its contents is looked up there.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np

from engine.choices import DATASETS, FOLDER, SMALLEST_SIDE, DataSet
from engine.config import LEAST_TRAINING, LEAST_VALIDATION, Config, ConfigError
from engine.datasets import cifar10, digits, folder, mnist
from engine.datasets.base import DatasetUnavailable as DatasetUnavailable

BUILT_IN: dict[str, ModuleType] = {"mnist": mnist, "digits": digits, "cifar10": cifar10}


def default_root() -> Path:
    """Where data sets are looked for: the environment variable PACD_DATA, or data/ beside the project."""
    return Path(os.environ.get("PACD_DATA") or Path(__file__).parents[2] / "data")


def describe(dataset: str) -> str:
    """The data set in a few words, for the middle of a sentence."""
    return DATASETS[dataset].description if dataset in DATASETS else f"your own images {dataset.removeprefix(FOLDER)}"


def available(dataset: str, root: Path) -> bool:
    """Whether the data set can be read from this machine, without a network."""
    module, path = _source(dataset, root)
    return module.available(path)


def fetch(dataset: str, root: Path) -> None:
    """Makes the data set available under root, downloading it with a progress bar if need be.

    Raises: DatasetUnavailable with what to do instead.
    """
    module, path = _source(dataset, root)
    if not module.available(path):
        module.fetch(path)


def class_names(dataset: str, root: Path) -> tuple[str, ...]:
    """The classes' names in the order of their labels. Raises: DatasetUnavailable, of a folder that does not fit."""
    return _known(dataset, root).class_names


def class_in_words(dataset: str | None, label: int | None, names: Sequence[str] = ()) -> str:
    """A class as a reader calls it: "digit 8", "ship", or "class 3" where its name is not known."""
    if dataset in ("mnist", "digits"):
        return f"digit {label}"
    names = names or (DATASETS[dataset].class_names if dataset in DATASETS else ())
    return names[label] if label is not None and label < len(names) else f"class {label}"


def shape(dataset: str, root: Path) -> tuple[int, int, int]:
    """(C, H, W) of its images. Raises: DatasetUnavailable, of a folder that does not fit."""
    return _known(dataset, root).shape


def fingerprint(dataset: str, root: Path) -> str:
    """What stands for the images in the key of a stored result: a digest of a folder, nothing for a fixed data set."""
    own = folder_of(dataset, root)
    return "" if own is None else folder.fingerprint(own)


def read(dataset: str, root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [N, C, H, W] in [0, 1], labels int64 [N]) in their original order; read-only arrays.

    Raises: DatasetUnavailable if it is not there, damaged or unfit.
    """
    return _read(dataset, root, train, fingerprint(dataset, root))


def read_training_images(dataset: str, root: Path, indices: np.ndarray) -> np.ndarray:
    """Only these training images, float32 [N, C, H, W], and of most data sets without reading the rest.

    Raises: DatasetUnavailable if they are not there or damaged.
    """
    if not len(indices):
        return read(dataset, root, train=True)[0][indices]
    module, path = _source(dataset, root)
    return module.read_training_images(path, indices)


def training_labels(dataset: str, root: Path) -> np.ndarray:
    """int64 [N], as read has them, of a folder without reading its images.

    Raises: DatasetUnavailable if they are not there, damaged or unfit.
    """
    own = folder_of(dataset, root)
    if own is None:
        return read(dataset, root, train=True)[1]
    return np.array([label for _, label in folder.contents(own).files[True]], np.int64)


def check(config: Config, root: Path) -> None:
    """That a folder of images has what the configuration asks of it, before any work starts.

    Of the other data sets the configuration knows all that is needed.
    Raises: ConfigError, with what the folder has and all that does not fit; DatasetUnavailable, of a folder that is not
        there or cannot be read.
    """
    own = folder_of(config.dataset, root)
    if own is None:
        return
    found, target = folder.contents(own), config.threat.target_class
    classes, images, misfits = len(found.class_names), found.count(train=True), []
    if target < classes:
        most, of_class = found.count(train=False, label=target), f"test images of class {found.class_names[target]}"
    else:
        most, of_class = min(found.count(train=False, label=k) for k in range(classes)), "or more test images a class"
        misfits.append(f"threat.target_class must be less than {classes}, got {target}")
    if images < (least := LEAST_TRAINING + LEAST_VALIDATION):
        misfits.append(
            f"at least {least} training images are needed, {LEAST_TRAINING} to train on and {LEAST_VALIDATION} held "
            "out for the attacker"
        )
    elif (wanted := config.data.train_size + config.data.validation_size) > images:
        misfits.append(f"data.train_size + data.validation_size must be at most {images}, got {wanted}")
    if (wanted := config.certification.target_images) > most:
        misfits.append(f"certification.target_images must be at most {most}, got {wanted}")
    _, height, width = found.shape
    for field, architecture in (("architecture", config.architecture), ("attack.surrogate", config.attack.surrogate)):
        if min(height, width) < (side := SMALLEST_SIDE.get(architecture, 0)):
            misfits.append(f"{field} {architecture} needs images of at least {side}×{side} pixels")
    if misfits:
        has = f"{classes} classes, {images} training images and {most} {of_class}, of {width}×{height} pixels"
        raise ConfigError("; ".join([f"{config.dataset} has {has}", *misfits]))


def folder_of(dataset: str, root: Path) -> Path | None:
    """Where a folder of images lies; None of any other data set."""
    return root / dataset.removeprefix(FOLDER) if dataset.startswith(FOLDER) else None


def _source(dataset: str, root: Path) -> tuple[ModuleType, Path]:
    """(The module that reads a data set, where it lies.)"""
    own = folder_of(dataset, root)
    return (BUILT_IN[dataset], root) if own is None else (folder, own)


def _known(dataset: str, root: Path) -> DataSet | folder.Contents:
    return DATASETS[dataset] if dataset in DATASETS else folder.contents(_source(dataset, root)[1])


def folders(root: Path) -> list[str]:
    """Names under root that may be folders of images: those with two or more folders in them.

    Names that no data set can have are among them, so that whoever chooses one is told what is allowed.
    """
    return sorted(path.name for path in _folders_in(root) if path.name[0] != "." and len(_folders_in(path)) >= 2)


def _folders_in(folder: Path) -> list[Path]:
    """None, of one that may not be read (such as a disk's lost+found)."""
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


@lru_cache(maxsize=4)
def _read(dataset: str, root: Path, train: bool, _fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
    module, path = _source(dataset, root)
    found = module.read(path, train=train)
    for array in found:
        array.flags.writeable = False
    return found
