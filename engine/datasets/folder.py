"""Your own images: a folder for each class, as torchvision.datasets.ImageFolder has it.

Layout: <folder>/CLASS/*.png and so on, or <folder>/train/CLASS/* and <folder>/test/CLASS/*. Without train and test,
every fifth image of a class, by name, is for testing; where neighbours are alike (frames of a film), choose them
yourself. Labels follow the classes' sorted names. All images have one size, of 8 to 224 pixels a side. If all are grey,
they have one channel; else all have three.

Departs: ImageFolder itself would import torch, for which pages would wait. Names that begin with a dot are passed over
    (systems leave such files about), as are notes beside images, but files of other endings are refused, so that no
    image is left out unnoticed. Folders inside a class's folder or beside train and test, and links, are refused, where
    ImageFolder reads on: a folder of train/ and validation/ would pass for one of two classes, and a link may lead
    anywhere. The folder itself may be a link. Transparency, CMYK and grey of 16 bits are refused instead of being
    converted, files of several pictures because only the first would be read, and photographs that only their EXIF
    data would turn upright because they would lie on their side.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from engine.choices import CLASS_NAME
from engine.datasets.base import DatasetUnavailable

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
NOTES = (".txt", ".md", ".rst", ".csv", ".json", ".xml", ".db", ".ini")  # Thumbs.db and desktop.ini are Windows' own
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # of the files' contents; no others' decoders are run
GREY, COLOUR = ("1", "L"), ("P", "RGB")  # what Pillow calls the kinds of pixels that fit
SMALLEST, LARGEST = 8, 224  # pixels a side
MOST_BYTES = 4 * 2**30  # of all images as float32
TEST_EVERY = 5

Files = tuple[tuple[Path, int], ...]  # of an image and its label each


@dataclass(frozen=True)
class Contents:
    """What a folder holds."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W)
    files: dict[bool, Files]  # for training (True) and for testing (False), class by class

    def count(self, *, train: bool, label: int | None = None) -> int:
        """Images for training or testing, of a class or in all."""
        return sum(label in (None, of) for _, of in self.files[train])


def available(folder: Path) -> bool:
    return folder.is_dir()


def fetch(folder: Path) -> None:
    """A folder of your own images cannot be downloaded. Raises: DatasetUnavailable."""
    raise DatasetUnavailable(f"{folder} is not there: put a folder of images for each class into it")


def contents(folder: Path) -> Contents:
    """Read from all images, and again only when a file's name, size or time has changed.

    Raises: DatasetUnavailable, naming the first file that does not fit, what was found and what is allowed.
    """
    return _contents(folder, _stamp(folder))


def read(folder: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    found = contents(folder)
    images = _images([path for path, _ in found.files[train]], found.shape)
    return images, np.array([label for _, label in found.files[train]], np.int64)


def read_training_images(folder: Path, indices: np.ndarray) -> np.ndarray:
    found = contents(folder)
    if indices.max() >= found.count(train=True):
        raise DatasetUnavailable(f"{folder} has no training image {indices.max()}: its files have changed")
    return _images([found.files[True][index][0] for index in indices], found.shape)


def fingerprint(folder: Path) -> str:
    """SHA-256 of all names and contents."""
    return _fingerprint(folder, _stamp(folder))


@lru_cache(maxsize=8)
def _contents(folder: Path, _stamp: str) -> Contents:
    class_names, files = _list(folder)
    paths = [path for part in files.values() for path, _ in part]
    first, kinds = None, set()
    for path in paths:
        with _opened(path) as image:
            kinds.add(image.mode)
            size = image.size
            if not all(SMALLEST <= side <= LARGEST for side in size):
                raise DatasetUnavailable(f"{path} has {_words(size)}; allowed are {SMALLEST} to {LARGEST} a side")
            if size != (first := first or size):
                raise DatasetUnavailable(
                    f"{path} has {_words(size)}, where {paths[0]} has {_words(first)}; all images must have one size"
                )
            image.load()  # a whole header may stand before half an image
            if (turned := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:  # Pillow turns TIFF files itself
                raise DatasetUnavailable(
                    f"{path} is not upright: its EXIF orientation is {turned}; allowed is 1 or none "
                    "(PIL.ImageOps.exif_transpose turns an image)"
                )
    assert first is not None
    shape = (1 if kinds <= set(GREY) else 3, first[1], first[0])
    if (needed := 4 * len(paths) * int(np.prod(shape))) > MOST_BYTES:
        raise DatasetUnavailable(
            f"{folder} has {len(paths)} images, which take {needed / 2**30:.1f} GiB of memory; allowed are "
            f"{MOST_BYTES / 2**30:.0f} GiB"
        )
    return Contents(class_names, shape, files)


@lru_cache(maxsize=8)
def _fingerprint(folder: Path, _stamp: str) -> str:
    digest = sha256()
    for part in _list(folder)[1].values():
        for path, _ in part:
            content = path.read_bytes()
            digest.update(os.fsencode(path.relative_to(folder)) + f"\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _stamp(folder: Path) -> str:
    """Changes whenever a file's name, size or time does."""
    digest = sha256()
    for part in _list(folder)[1].values():
        for path, _ in part:
            state = path.stat()
            digest.update(os.fsencode(path) + f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _list(folder: Path) -> tuple[tuple[str, ...], dict[bool, Files]]:
    """(class names, files for training and testing), by names alone."""
    if not folder.is_dir():
        fetch(folder)
    if all((folder / part).is_dir() for part in ("train", "test")):
        for entry in _entries(folder):
            if entry.is_dir() and entry.name not in ("train", "test"):
                raise DatasetUnavailable(
                    f"{entry.path} is a folder beside train and test; allowed are only these two, and images for "
                    "validation are drawn from train"
                )
        parts = {True: _classes(folder / "train"), False: _classes(folder / "test")}
        if only := set(parts[True]) ^ set(parts[False]):
            raise DatasetUnavailable(
                f"the class {min(only)} is in only one of train and test of {folder}; both must have the same classes"
            )
    else:
        whole = _classes(folder)
        for name, paths in whole.items():
            if len(paths) < 2:
                raise DatasetUnavailable(
                    f"{folder / name} has 1 image; a class needs at least 2, of which the first is for testing"
                )
        parts = {
            True: {name: [path for i, path in enumerate(paths) if i % TEST_EVERY] for name, paths in whole.items()},
            False: {name: paths[::TEST_EVERY] for name, paths in whole.items()},
        }
    files = {
        train: tuple((path, label) for label, paths in enumerate(classes.values()) for path in paths)
        for train, classes in parts.items()
    }
    return tuple(parts[True]), files


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Each class's images, all by name."""
    classes: dict[str, list[Path]] = {}
    for of_class in _entries(folder):
        if not of_class.is_dir():
            continue
        if not of_class.name.isprintable() or not re.fullmatch(CLASS_NAME, of_class.name):
            raise DatasetUnavailable(
                f"{of_class.path!a} is no name for a class; allowed are printable names without [ ] < > ` $ | and \\"
            )
        found = classes[of_class.name] = []
        for entry in _entries(Path(of_class)):
            if entry.is_dir():
                raise DatasetUnavailable(
                    f"{entry.path} is a folder inside the class {of_class.name}; allowed are images. To choose the "
                    f"images for testing, name two folders train and test, with a folder for each class in both"
                )
            name = entry.name.lower()
            if name.endswith(ENDINGS):
                if not entry.is_file():
                    raise DatasetUnavailable(f"{entry.path} is no file; allowed are files of images")
                found.append(Path(entry))
            elif "." in name and not name.endswith(NOTES):
                raise DatasetUnavailable(
                    f"{entry.path} would not be read; allowed are images, which end in {', '.join(ENDINGS)}, and "
                    f"notes, which end in {', '.join(NOTES)} or have no ending"
                )
        if not found:
            raise DatasetUnavailable(
                f"the class {of_class.path} has no image; allowed are files that end in {', '.join(ENDINGS)}"
            )
    if len(classes) < 2:
        raise DatasetUnavailable(
            f"{folder} needs a folder of images for each of at least 2 classes, and has {len(classes)}"
        )
    return classes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Raises: DatasetUnavailable, of a link and of what may not be read."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetUnavailable(f"{folder} cannot be read: {error.strerror}") from error
    for entry in found:
        if entry.is_symlink():
            raise DatasetUnavailable(f"{entry.path} is a link; allowed are files and folders that lie there themselves")
    return found


def _images(paths: list[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """float32 [N, C, H, W] in [0, 1]."""
    channels, height, width = shape
    images = np.empty((len(paths), *shape), np.float32)
    for path, into in zip(paths, images, strict=True):
        with _opened(path) as image:
            if image.size != (width, height):
                raise DatasetUnavailable(f"{path} has changed while it was read")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
        into[:] = pixels.reshape(height, width, channels).transpose(2, 0, 1) / 255
    return images


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header fits; whatever the decoder stumbles over, later too, is told in our words."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in GREY + COLOUR or "transparency" in image.info:
                kind = "transparency" if "transparency" in image.info or "A" in image.mode else f"mode {image.mode}"
                raise DatasetUnavailable(
                    f"{path} has {kind}; allowed are grey and RGB of 8 bits a channel, palettes, and black and white"
                )
            if (pictures := getattr(image, "n_frames", 1)) > 1:
                raise DatasetUnavailable(f"{path} holds {pictures} pictures; allowed is one a file")
            yield image
    except DatasetUnavailable:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetUnavailable(
            f"{path} is far too large; allowed are {SMALLEST} to {LARGEST} pixels a side"
        ) from error
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise DatasetUnavailable(
            f"{path} cannot be read; allowed are whole {', '.join(FORMATS)} images: {error}"
        ) from error


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} pixels"
