"""The data sets as arrays: MNIST from its four files, or the embedded digits. No torch, so that pages open at once."""

import gzip
import os
import zlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

DATASETS = {
    "mnist": "MNIST (70 000 handwritten digits, 28×28)",
    "digits": "embedded digits (scikit-learn's 1 797 handwritten digits, 8×8 brought to 28×28), not MNIST",
}
NUM_CLASSES = 10


class DatasetUnavailable(ValueError):
    """The data set is neither on this machine nor to be had from the network, or its files are damaged."""


def default_root() -> Path:
    """Where data sets are looked for: the environment variable PACD_DATA, or data/ beside the project."""
    return Path(os.environ.get("PACD_DATA") or Path(__file__).parents[1] / "data")


def available(dataset: str, root: Path) -> bool:
    """Whether the data set can be read from this machine, without a network."""
    return dataset == "digits" or all(_mnist_file(root, name) for train in (True, False) for name in _names(train))


def fetch(dataset: str, root: Path) -> None:
    """Makes the data set available under root, downloading it with a progress bar if need be.

    Raises: DatasetUnavailable with what to do instead.
    """
    if available(dataset, root):
        return
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


def class_names(dataset: str, root: Path) -> tuple[str, ...]:
    """The classes' names in the order of their labels."""
    return tuple(map(str, range(10)))


@lru_cache(maxsize=4)
def read(dataset: str, root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [N, 1, 28, 28] in [0, 1], labels int64 [N]) in their original order; read-only arrays.

    Raises: DatasetUnavailable if it is not there or damaged.
    """
    images, labels = _embedded_digits(train) if dataset == "digits" else _mnist(root, train)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def read_training_images(dataset: str, root: Path, indices: np.ndarray) -> np.ndarray:
    """Only these training images, float32 [N, 1, 28, 28]: a few early ones of a packed file come without the rest.

    Raises: DatasetUnavailable if they are not there or damaged.
    """
    if dataset == "digits" or not len(indices):
        return read(dataset, root, train=True)[0][indices]
    images = _read_idx(_mnist_file(root, _names(True)[0]), root, most=int(indices.max()) + 1)
    if images.shape[1:] != (28, 28) or len(images) <= indices.max():
        raise DatasetUnavailable(f"the MNIST files under {root} have no image {indices.max()} of 28×28 pixels")
    return images[indices, None].astype(np.float32) / 255


def _names(train: bool) -> tuple[str, str]:
    prefix = "train" if train else "t10k"
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def _mnist_file(root: Path, name: str) -> Path | None:
    """The file as torchvision lays it out, unpacked or not."""
    paths = (root / "MNIST" / "raw" / f"{name}{ending}" for ending in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)


def _mnist(root: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (_read_idx(_mnist_file(root, name), root) for name in _names(train))
    fits = labels.ndim == 1 and images.shape == (len(labels), 28, 28)
    if not fits or len(labels) == 0 or labels.max() >= NUM_CLASSES:
        raise DatasetUnavailable(f"the MNIST files under {root} do not belong together: {images.shape}, {labels.shape}")
    return images[:, None].astype(np.float32) / 255, labels.astype(np.int64)


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


def _embedded_digits(train: bool) -> tuple[np.ndarray, np.ndarray]:
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
