"""Pictures as PNG bytes: grey mosaics, signed maps, a wipe. Enlarged by whole pixels, never smoothed, never JPEG.

A picture has 256 shades, so changes below 1/510 vanish in it: numbers are read from the float arrays, not from here.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageColor

from engine.figures.style import SIGNED_SCALE


def shades(values: np.ndarray) -> np.ndarray:
    """uint8 of pixels in [0, 1], to the nearest of 256 shades: always the same scale, whatever the image holds."""
    return np.rint(np.asarray(values, dtype=np.float32).clip(0, 1) * 255).astype(np.uint8)


def signed_colours(delta: np.ndarray, *, limit: float) -> np.ndarray:
    """RGB uint8 [..., 3] of signed values: the scale's middle at 0, its ends at ±limit, clipped beyond."""
    scale = np.array([ImageColor.getrgb(colour) for colour in SIGNED_SCALE], dtype=np.float64)
    position = (np.asarray(delta, dtype=np.float64) / limit).clip(-1, 1)
    places = np.linspace(-1, 1, len(scale))
    channels = [np.interp(position, places, scale[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def shown(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W] of grey images [N, 1, H, W] in [0, 1], or [N, H, W, 3] of coloured ones [N, 3, H, W]."""
    return _channels_last(shades(images))


def shown_changes(delta: np.ndarray, *, limit: float) -> np.ndarray:
    """RGB uint8 [N, H, W, 3] of signed changes [N, C, H, W], on a scale that ends at ±limit.

    Of grey images: `signed_colours`. Of coloured ones, each channel by itself: mid-grey where nothing changed, more
    red, green or blue where that channel rose. A mean over channels would hide changes that cancel out in it.
    """
    if delta.shape[1] == 1:
        return signed_colours(delta[:, 0], limit=limit)
    return _channels_last(shades(0.5 + np.asarray(delta, dtype=np.float32) / (2 * limit)))


def enlargement(height: int, *, pixels: int) -> int:
    """The whole factor that brings an image of this height nearest to so many pixels."""
    return max(1, round(pixels / height))


def mosaic(tiles: np.ndarray, *, columns: int) -> np.ndarray:
    """uint8 tiles [N, H, W] or [N, H, W, 3] row by row in one picture, each with a pixel of grey around it.

    Every tile takes (H + 2) × (W + 2) pixels, so that tile k lies at row k // columns, column k % columns.
    """
    count, height, width, *colours = tiles.shape
    rows = max(1, -(-count // columns))
    cell = (height + 2, width + 2)
    picture = np.full((rows * cell[0], columns * cell[1], *colours), 128, dtype=np.uint8)
    for k, tile in enumerate(tiles):
        top, left = (k // columns) * cell[0] + 1, (k % columns) * cell[1] + 1
        picture[top : top + height, left : left + width] = tile
    return picture


def wipe(left: np.ndarray, right: np.ndarray, *, position: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]: the first `position` columns of one image, the rest of the other."""
    width = left.shape[1]
    if not 0 <= position <= width:
        raise ValueError(f"position must be in [0, {width}], got {position}")
    return np.concatenate([left[:, :position], right[:, position:]], axis=1)


def png(picture: np.ndarray, *, scale: int = 1) -> bytes:
    """PNG of a uint8 picture [H, W] or [H, W, 3], each pixel enlarged to scale × scale of the same shade."""
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = BytesIO()
    Image.fromarray(large).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _channels_last(images: np.ndarray) -> np.ndarray:
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)
