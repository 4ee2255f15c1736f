"""Scikit-learn's 1 797 handwritten digits, brought to MNIST's size: what there is without network and files."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from engine.datasets.base import DatasetUnavailable


def available(_root: Path) -> bool:
    return True


def fetch(_root: Path) -> None:
    """Nothing is to be done."""


def read(_root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    return _read(train)


@lru_cache(maxsize=2)
def _read(train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every fifth image is for testing; 8×8 pixels become 24×24 bicubically, with a border of 2 as MNIST has one."""
    package = find_spec("sklearn")  # only located: importing it would cost the first screen a second or two
    if package is None or package.origin is None:
        raise DatasetUnavailable("the embedded digits come with scikit-learn, which is not installed")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    chosen = (np.arange(len(labels)) % 5 == 0) != train
    large = np.stack(
        [
            np.asarray(Image.fromarray(small.astype(np.float32) / 16).resize((24, 24), Image.Resampling.BICUBIC))
            for small in pixels[chosen]
        ]
    )
    images = np.pad(large.clip(0, 1), ((0, 0), (2, 2), (2, 2)))[:, None]
    return images, labels[chosen].astype(np.int64)


def read_training_images(root: Path, indices: np.ndarray) -> np.ndarray:
    return read(root, train=True)[0][indices]
