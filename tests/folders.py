"""Folders of images for tests: class folders of random pixels."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def fill(where: Path, *, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6, shape=(10, 12, 3)) -> Path:
    for label, name in enumerate(classes):
        for number in range(count):
            save(where / name / f"{number}.png", pixels(*shape, seed=100 * label + number))
    return where
