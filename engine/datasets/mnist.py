"""MNIST from its four files, packed with gzip or not, under <root>/MNIST/raw as torchvision lays them out."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from engine.choices import DATASETS
from engine.datasets.base import DatasetUnavailable

KNOWN = DATASETS["mnist"]


def available(root: Path) -> bool:
    return all(_file(root, name) for train in (True, False) for name in _names(train))


def fetch(root: Path) -> None:
    """Downloads it. Raises: DatasetUnavailable with what to do instead."""
    from torchvision.datasets import MNIST  # takes seconds to import, knows the mirrors and the checksums

    try:
        root.mkdir(parents=True, exist_ok=True)
        MNIST(str(root), download=True)
    except (RuntimeError, OSError) as error:
        raise DatasetUnavailable(
            f"MNIST is not under {root} and could not be downloaded ({error}). Put its four .gz files in "
            f"{root / 'MNIST' / 'raw'}, point --data-root or PACD_DATA at a folder that has MNIST/raw, or choose "
            "the embedded digits (dataset=digits)"
        ) from error


def read(root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (_read_idx(_file(root, name), root) for name in _names(train))
    fits = labels.ndim == 1 and images.shape == (len(labels), *KNOWN.shape[1:])
    if not fits or len(labels) == 0 or labels.max() >= len(KNOWN.class_names):
        raise DatasetUnavailable(f"the MNIST files under {root} do not belong together: {images.shape}, {labels.shape}")
    pixels = images[:, None].astype(np.float32)
    pixels /= 255  # in place: half the time
    return pixels, labels.astype(np.int64)


def read_training_images(root: Path, indices: np.ndarray) -> np.ndarray:
    """A few early ones of a packed file come without the rest."""
    images = _read_idx(_file(root, _names(True)[0]), root, most=int(indices.max()) + 1)
    if images.shape[1:] != KNOWN.shape[1:] or len(images) <= indices.max():
        raise DatasetUnavailable(f"the MNIST files under {root} have no image {indices.max()} of 28×28 pixels")
    return images[indices, None].astype(np.float32) / 255


def _names(train: bool) -> tuple[str, str]:
    prefix = "train" if train else "t10k"
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def _file(root: Path, name: str) -> Path | None:
    paths = (root / "MNIST" / "raw" / f"{name}{ending}" for ending in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)


def _read_idx(path: Path | None, root: Path, *, most: int | None = None) -> np.ndarray:
    """An IDX file of unsigned bytes, packed with gzip or not, or its first `most` items: no more is unpacked then."""
    if path is None:
        raise DatasetUnavailable(f"MNIST is not under {root}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if head[:3] != b"\0\0\x08" or len(head) < 4:
                raise ValueError("no IDX file of bytes")
            shape = np.frombuffer(file.read(4 * head[3]), ">i4", count=head[3]).astype(int)
            if most is not None:
                shape[0] = min(shape[0], most)
            content = file.read() if most is None else file.read(int(shape.prod()))
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetUnavailable(f"{path} is damaged: {error}") from error
