"""A visitor's own picture, read safely from PNG, JPEG or WebP and brought to the form of a data set's images."""

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 10_000_000
MOST_PIXELS = 24_000_000
SIDES = (8, 8000)  # pixels
SIDE = 28  # pixels, of the image that comes out
BOX = {"mnist": 20, "digits": 24}  # longer side of a digit in its image, where images are centred digits
GROUND = 0.1  # ink fainter than this share of the darkest is paper
LEAST_CONTRAST = 0.15
_WORKING_SIDE = 512  # a larger picture is first reduced to this
_DATA_URL = "data:image/png;base64,"
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error, zlib.error, MemoryError)


class PictureRefused(ValueError):
    """This picture cannot be used; the message is a sentence that says why, and what is allowed."""


@dataclass(frozen=True)
class Digit:
    """A picture's way to a data set's form, step by step; all values float32 in [0, 1]."""

    grey: np.ndarray  # [H, W], as it came, at most 512 pixels a side
    inverted: bool  # whether it was dark on light
    ink: np.ndarray  # [H, W], light on black: ground at 0, the strongest ink at 1
    cut: np.ndarray  # [h, w], the ink's own box
    image: np.ndarray  # [1, 28, 28], scaled, the strongest ink at 1, and centred


def read_picture(content: bytes) -> np.ndarray:
    """The picture's colours as they are stored, float32 [H, W, 3] in [0, 1], at most 512 pixels a side.

    What is transparent lies on white; EXIF, and the rotation that it may ask for, is ignored. Size, kind and frames are
    read from the header and judged before any pixel is decoded.
    Raises: PictureRefused.
    """
    if not 0 < len(content) <= MOST_BYTES:
        raise PictureRefused(f"The file must hold 1 to {MOST_BYTES:,} bytes, and this one has {len(content):,}.")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            _check_header(picture)
            return _colours(picture)
    except Image.UnidentifiedImageError:
        raise PictureRefused("The file must be a PNG, JPEG or WebP picture, and its content is none of them.") from None
    except Image.DecompressionBombError:
        raise PictureRefused(
            f"The picture must have at most {MOST_PIXELS // 10**6} million pixels, and its header claims far more."
        ) from None
    except PictureRefused:
        raise
    except _DAMAGED:
        raise PictureRefused("The picture cannot be decoded: the file is cut short or damaged.") from None


def from_data_url(text: object) -> bytes:
    """The bytes of a PNG picture that a browser handed over as "data:image/png;base64,…". Raises: PictureRefused."""
    if not isinstance(text, str) or not text.startswith(_DATA_URL) or len(text) > 2 * MOST_BYTES:
        raise PictureRefused(f'The drawing must come as text that begins with "{_DATA_URL}".')
    try:
        return base64.b64decode(text.removeprefix(_DATA_URL), validate=True)
    except binascii.Error:
        raise PictureRefused("The drawing must come as base64 text, and this is none.") from None


def to_digit(colours: np.ndarray, *, box: int) -> Digit:
    """The picture in MNIST's form: light on black, its longer side `box` pixels, its centre of mass in the middle.

    Args:
        colours: [H, W, 3] in [0, 1].
    Raises: PictureRefused where nothing stands out from the ground.
    Source: LeCun, Cortes, Burges, The MNIST database: scaled into 20×20 with aspect ratio kept, centred by mass.
    Departs: bilinear scaling, a ground that need not be even, the strongest ink 1 again after scaling (thin lines fade
        in it), shifts by whole pixels, as far as the frame allows.
    """
    grey = (colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.float32).clip(0, 1)
    ground = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))  # of the rim
    inverted = ground > 0.5
    ink = (ground - grey if inverted else grey - ground).clip(0, None)
    if (strongest := float(ink.max())) < LEAST_CONTRAST:
        raise PictureRefused(
            "The picture must hold something that stands out from its edges (lighter on dark, or darker on light, by "
            f"{LEAST_CONTRAST:.0%} at least), and nothing does."
        )
    ink = np.where(ink < GROUND * strongest, 0, ink / strongest)
    rows, columns = (np.flatnonzero((ink > 0).any(axis=axis)) for axis in (1, 0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = box / max(cut.shape)
    height, width = (max(1, round(scale * length)) for length in cut.shape)
    small = _resized(cut, height, width)
    small = small / small.max()
    top, left = (_start(small.sum(axis=axis), SIDE) for axis in (1, 0))
    image = np.zeros((1, SIDE, SIDE), dtype=np.float32)
    image[0, top : top + height, left : left + width] = small
    return Digit(grey=grey, inverted=inverted, ink=ink.astype(np.float32), cut=cut.astype(np.float32), image=image)


def to_shape(colours: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture's middle square [H, W, 3], brought to images of this shape [C, H, W]: no more than cut and scaled."""
    channels, height, width = shape
    scale = min(colours.shape[0] / height, colours.shape[1] / width)
    tall, wide = (max(1, round(scale * length)) for length in (height, width))
    top, left = (colours.shape[0] - tall) // 2, (colours.shape[1] - wide) // 2
    part = colours[top : top + tall, left : left + wide]
    planes = np.moveaxis(part, -1, 0) if channels == 3 else part.mean(axis=-1)[None]
    return np.stack([_resized(plane, height, width) for plane in planes])


def _check_header(picture: Image.Image) -> None:
    width, height = picture.size
    if not (SIDES[0] <= min(width, height) and max(width, height) <= SIDES[1] and width * height <= MOST_PIXELS):
        raise PictureRefused(
            f"The picture must have {SIDES[0]} to {SIDES[1]:,} pixels a side and at most {MOST_PIXELS // 10**6} million"
            f" in all, and this one has {width:,}×{height:,}."
        )
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:  # MPO: a JPEG with a second view of the scene
        raise PictureRefused("The picture must be a single one, and this one is animated.")


def _colours(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits of grey
        reduced = Image.fromarray(np.asarray(picture, dtype=np.float32) / 65_535)
        reduced.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BILINEAR)
        return np.repeat(np.asarray(reduced)[:, :, None], 3, axis=2).clip(0, 1)
    picture.draft("RGB", (2 * _WORKING_SIDE, 2 * _WORKING_SIDE))  # a large JPEG is decoded small
    coloured = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    coloured.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(coloured, dtype=np.float32) / 255
    if values.shape[2] == 4:
        opaque = values[:, :, 3:]
        values = values[:, :, :3] * opaque + (1 - opaque)
    return values.astype(np.float32)


def _resized(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    if plane.shape == (height, width):
        return plane.astype(np.float32)
    scaled = Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled).clip(0, 1)


def _start(mass: np.ndarray, side: int) -> int:
    """Where to put a line of masses so that their centre falls on side / 2, MNIST's own, and nothing is cut off."""
    centre = float(mass @ np.arange(len(mass)) / mass.sum())
    away = round(side / 2 - centre, 4)  # a tie is one whatever the last digits are: of light on dark, and dark on light
    return int(np.clip(np.floor(away + 0.5), 0, side - len(mass)))
