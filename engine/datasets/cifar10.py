"""CIFAR-10: its binary version under <root>/cifar-10-batches-bin, or else what torchvision.datasets.CIFAR10 finds.

torchvision's is the Python version, whose files are pickles, and unpickling runs whatever a file says. So what is
downloaded here (by torchvision, with the checksum of https://www.cs.toronto.edu/~kriz/cifar.html) is the binary one,
read below: records of one byte for the label and 3 072 for the image (red, green, blue; each row by row). A Python
version that is there already is left to torchvision, which unpickles no file before its MD5 is the published one.
Images and their order are the same in both.
"""

from pathlib import Path

import numpy as np

from engine.choices import DATASETS
from engine.datasets.base import DatasetUnavailable

KNOWN = DATASETS["cifar10"]
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
RECORDS = 10_000  # in each file
RECORD_BYTES = 1 + 3 * 32 * 32


def available(root: Path) -> bool:
    return _binary(root) or (root / PICKLED).is_dir()


def fetch(root: Path) -> None:
    """Downloads it, 162 MB. Raises: DatasetUnavailable with what to do instead."""
    from torchvision.datasets.utils import download_and_extract_archive  # takes seconds to import

    try:
        root.mkdir(parents=True, exist_ok=True)
        download_and_extract_archive(URL, str(root), md5=MD5, remove_finished=True)
    except (RuntimeError, OSError) as error:
        raise DatasetUnavailable(
            f"CIFAR-10 is not under {root / FOLDER}, and its binary version could not be downloaded ({error}). Unpack "
            f"cifar-10-binary.tar.gz in {root}, or point --data-root or PACD_DATA at a folder that has {FOLDER}"
        ) from error


def read(root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    if not _binary(root) and (root / PICKLED).is_dir():
        return _python_version(root, train=train)
    records = np.concatenate([_records(path, root) for path in _files(root, train)])
    return _images(records[:, 1:].reshape(-1, *KNOWN.shape)), records[:, 0].astype(np.int64)


def read_training_images(root: Path, indices: np.ndarray) -> np.ndarray:
    if not _binary(root) and (root / PICKLED).is_dir():
        return _python_version(root, train=True)[0][indices]
    files = [_records(path, root) for path in _files(root, True)]
    chosen = np.stack([files[index // RECORDS][index % RECORDS] for index in indices])
    return _images(chosen[:, 1:].reshape(-1, *KNOWN.shape))


def _python_version(root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import CIFAR10  # takes seconds to import

    try:
        found = CIFAR10(str(root), train=train, download=False)
    except RuntimeError as error:  # a checksum differs
        raise DatasetUnavailable(
            f"the files of {root / PICKLED} are not those that were published ({error}); they are pickles, which run "
            f"whatever they say, so nothing of them was read. Remove them, and `python -m engine fetch cifar10`"
        ) from error
    return _images(found.data.transpose(0, 3, 1, 2)), np.array(found.targets, dtype=np.int64)


def _binary(root: Path) -> bool:
    return all(_size(path) == RECORDS * RECORD_BYTES for train in (True, False) for path in _files(root, train))


def _files(root: Path, train: bool) -> list[Path]:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    return [root / FOLDER / name for name in names]


def _records(path: Path, root: Path) -> np.ndarray:
    """uint8 [RECORDS, RECORD_BYTES], mapped, so that only the parts in use are read."""
    if (size := _size(path)) is None:
        raise DatasetUnavailable(f"CIFAR-10 is not under {root / FOLDER}")
    if size != RECORDS * RECORD_BYTES:
        raise DatasetUnavailable(f"{path} is damaged: it must have {RECORDS * RECORD_BYTES} bytes, and has {size}")
    records = np.memmap(path, np.uint8, mode="r").reshape(RECORDS, RECORD_BYTES)
    if records[:, 0].max() >= len(KNOWN.class_names):
        raise DatasetUnavailable(f"{path} is damaged: a label must be less than 10, and one is {records[:, 0].max()}")
    return records


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _images(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of bytes [N, 3, 32, 32]."""
    images = pixels.astype(np.float32)
    images /= 255  # in place: the training images take 614 MB
    return images
