"""Pictures: PNG that decodes to the very pixels, a signed scale with zero in its middle."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from engine.figures import pictures


def decoded(content: bytes) -> np.ndarray:
    assert content.startswith(b"\x89PNG")
    return np.asarray(Image.open(BytesIO(content)))


@pytest.mark.parametrize("shape", [(28, 28), (5, 9, 3)])
def test_png_decodes_to_the_exact_pixels_enlarged_by_whole_ones(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(decoded(pictures.png(picture)), picture)
    large = decoded(pictures.png(picture, scale=4))
    assert large.shape[:2] == (4 * shape[0], 4 * shape[1])
    for row in range(4):
        np.testing.assert_array_equal(large[row::4, 3 - row :: 4], picture)


def test_shades_are_never_stretched():
    np.testing.assert_array_equal(pictures.shades(np.array([0.0, 0.25, 0.5, 1.0])), [0, 64, 128, 255])
    np.testing.assert_array_equal(pictures.shades(np.array([0.4, 0.4])), [102, 102])
    np.testing.assert_array_equal(pictures.shades(np.array([-0.2, 1.3])), [0, 255])


def test_shades_of_the_data_set_are_lossless():
    stored = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pictures.shades(stored.astype(np.float32) / 255), stored)


def test_signed_map_has_its_middle_at_zero_and_its_ends_at_the_limit():
    middle, low, high = pictures.signed_colours(np.array([0.0, -0.1, 0.1]), limit=0.1)
    assert (np.ptp(middle), middle.min() > 240) == (0, True)
    assert low[2] > low[1]  # violet: darker
    assert high[0] > high[2]  # orange: brighter
    beyond = pictures.signed_colours(np.array([-5.0, 5.0]), limit=0.1)
    np.testing.assert_array_equal(beyond, [low, high])


def test_signed_map_is_symmetric_in_strength():
    """δ and −δ lie as far from the middle along their own half of the scale; scale and limit shrink together."""
    values = np.linspace(0, 0.1, 21)
    plus, minus = (pictures.signed_colours(sign * values, limit=0.1).astype(int) for sign in (1, -1))
    for half in (plus, minus):
        away = np.abs(half - half[0]).sum(axis=1)
        assert (np.diff(away) > 0).all()
    np.testing.assert_array_equal(plus, pictures.signed_colours(values / 2, limit=0.05))


def test_mosaic_puts_each_tile_in_its_place():
    tiles = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), dtype=np.uint8)
    picture = pictures.mosaic(tiles, columns=3)
    assert picture.shape == (12, 15)
    for k in range(5):
        cell = picture[(k // 3) * 6 : (k // 3) * 6 + 6, (k % 3) * 5 : (k % 3) * 5 + 5]
        np.testing.assert_array_equal(cell[1:-1, 1:-1], tiles[k])
        assert (cell[0] == 128).all()
    assert (picture[6:, 10:] == 128).all()
    assert pictures.mosaic(tiles[:0], columns=3).shape == (6, 15)
    assert pictures.mosaic(np.zeros((2, 4, 3, 3), np.uint8), columns=2).shape == (6, 10, 3)


def test_wipe_shows_one_image_left_and_the_other_right():
    left, right = np.zeros((4, 6), np.uint8), np.full((4, 6), 7, np.uint8)
    for position in (0, 2, 6):
        both = pictures.wipe(left, right, position=position)
        assert (both[:, :position] == 0).all()
        assert (both[:, position:] == 7).all()
    with pytest.raises(ValueError, match=r"position must be in \[0, 6\], got 7"):
        pictures.wipe(left, right, position=7)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (32, 32), (96, 64)])
def test_images_of_any_size_are_shown_pixel_by_pixel_grey_or_in_colour(height, width):
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        stored = rng.integers(0, 256, (2, channels, height, width)).astype(np.uint8)
        found = pictures.shown(stored.astype(np.float32) / 255)
        assert found.shape == ((2, height, width) if channels == 1 else (2, height, width, 3))
        np.testing.assert_array_equal(np.moveaxis(found.reshape(2, height, width, channels), -1, 1), stored)
        scale = pictures.enlargement(height, pixels=112)
        assert scale == max(1, scale)
        assert 0.6 < scale * height / 112 < 1.5
        assert decoded(pictures.png(found[0], scale=scale)).shape[:2] == (scale * height, scale * width)


def test_changes_of_coloured_images_are_shown_channel_by_channel_within_the_limit():
    delta = np.zeros((1, 3, 1, 4), dtype=np.float32)
    delta[0, :, 0, 1] = [0.1, -0.1, 0]
    delta[0, :, 0, 2] = [0.05, 9, -9]
    unchanged, full, beyond, _ = pictures.shown_changes(delta, limit=0.1)[0, 0]
    np.testing.assert_array_equal(unchanged, [128, 128, 128])
    np.testing.assert_array_equal(full, [255, 0, 128])
    np.testing.assert_array_equal(beyond, [191, 255, 0])


def test_changes_of_grey_images_are_shown_on_the_signed_scale():
    delta = np.random.default_rng(0).uniform(-0.1, 0.1, (2, 1, 5, 7))
    np.testing.assert_array_equal(
        pictures.shown_changes(delta, limit=0.1), pictures.signed_colours(delta[:, 0], limit=0.1)
    )


def test_a_wipe_works_in_colour():
    left, right = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 7, np.uint8)
    both = pictures.wipe(left, right, position=2)
    assert both.shape == (4, 6, 3)
    assert (both[:, :2] == 0).all()
    assert (both[:, 2:] == 7).all()
