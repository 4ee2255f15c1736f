"""A visitor's picture in MNIST's form: exact answers, what must not matter, and files that mean harm."""

import base64
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from engine import datasets, handwriting
from engine.handwriting import PictureRefused, from_data_url, read_picture, to_digit, to_shape

BYTES = st.integers(0, 2**32 - 1)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def coloured(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.float32)[:, :, None], 3, axis=2)


def scribble(seed: int, side: int = 60) -> np.ndarray:
    """A few thick random strokes, light on black, with a free rim. [side, side]"""
    rng, grey = np.random.default_rng([seed, 5]), np.zeros((side, side))
    for _ in range(int(rng.integers(1, 5))):
        top, left = rng.integers(2, side - 22, 2)
        height, width = rng.integers(3, 20, 2)
        grey[top : top + height, left : left + width] = rng.uniform(0.3, 1)
    return grey


def header(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this size."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


# --- exact answers ---


def test_a_bar_fills_the_box_and_stands_in_the_middle() -> None:
    grey = np.zeros((100, 100))
    grey[10:50, 60:70] = 1  # 40 × 10, so 20 × 5
    digit = to_digit(coloured(grey), box=20)
    expected = np.zeros((28, 28))
    expected[5:25, 12:17] = 1  # its centre of mass comes to 14, or half a pixel from it
    assert not digit.inverted
    assert np.array_equal(digit.cut, np.ones((40, 10)))
    np.testing.assert_allclose(digit.image[0], expected, atol=1e-6)


def test_pixels_are_kept_as_they_are_stored() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(read_picture(encoded(Image.fromarray(values)))[:, :, 1], values / 255, atol=1e-6)
    deep = (values.astype(np.uint16) * 257).astype(np.uint16)
    np.testing.assert_allclose(read_picture(encoded(Image.fromarray(deep)))[:, :, 1], values / 255, atol=1e-4)


KINDS = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_every_usual_kind_of_picture_gives_the_same_digit(kind: str, mode: str) -> None:
    grey = np.full((64, 64), 255, dtype=np.uint8)
    grey[16:48, 24:40] = 0
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    digit = to_digit(read_picture(encoded(picture, kind)), box=20)
    assert digit.inverted
    assert np.abs(digit.image[0, 5:23, 10:18] - 1).max() < 0.06
    assert digit.image[0, :, :8].max() < 0.06


def test_what_is_transparent_lies_on_white() -> None:
    values = np.zeros((32, 32, 4), dtype=np.uint8)
    values[8:24, 12:20, 3] = 255
    for picture in (Image.fromarray(values), Image.fromarray(values).quantize()):
        colours = read_picture(encoded(picture))
        assert colours[0, 0].tolist() == [1, 1, 1]
        assert colours[16, 16].tolist() == [0, 0, 0]


def test_rotation_that_exif_asks_for_is_ignored() -> None:
    picture, exif = Image.fromarray(np.zeros((20, 40), dtype=np.uint8)), Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encoded(picture, "JPEG", exif=exif)).shape == (20, 40, 3)


def test_colours_are_cut_to_the_middle_square_and_scaled() -> None:
    colours = np.zeros((40, 80, 3), dtype=np.float32)
    colours[:, 20:60] = (0.2, 0.4, 0.6)
    image = to_shape(colours, (3, 32, 32))
    np.testing.assert_allclose(
        image, np.broadcast_to(np.float32([0.2, 0.4, 0.6])[:, None, None], (3, 32, 32)), atol=1e-6
    )
    assert to_shape(colours, (1, 28, 28)).shape == (1, 28, 28)


# --- what holds for every picture ---


@given(BYTES)
def test_output_is_an_image_whose_ink_fits_the_box_and_is_centred(seed: int) -> None:
    image = to_digit(coloured(scribble(seed)), box=20).image
    assert image.shape == (1, 28, 28)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() == 1
    for axis in (0, 1):
        mass = image[0].sum(axis=axis)
        filled = np.flatnonzero(mass)
        assert np.ptp(filled) < 20
        if filled[0] > 0 and filled[-1] < 27:
            assert abs(mass @ np.arange(28) / mass.sum() - 14) <= 0.5 + 1e-4


@given(BYTES, st.integers(0, 40), st.integers(0, 40))
def test_where_on_the_sheet_it_stands_does_not_matter(seed: int, down: int, right: int) -> None:
    grey, sheet = scribble(seed), np.zeros((100, 100))
    sheet[down : down + 60, right : right + 60] = grey
    assert np.array_equal(to_digit(coloured(sheet), box=20).image, to_digit(coloured(grey), box=20).image)


@given(BYTES)
@example(514132)  # its centre of mass is half-way between two pixels
def test_dark_on_light_is_the_same_digit(seed: int) -> None:
    grey = scribble(seed)
    light, dark = to_digit(coloured(grey), box=20), to_digit(coloured(1 - grey), box=20)
    assert (light.inverted, dark.inverted) == (False, True)
    np.testing.assert_allclose(dark.image, light.image, atol=1e-5)


@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_an_image_of_the_data_set_comes_out_as_it_went_in(dataset: str) -> None:
    root = datasets.default_root()
    if not datasets.available(dataset, root):
        pytest.skip(f"{dataset} is not on this machine")
    for image in datasets.read(dataset, root, train=False)[0][:50]:
        once = to_digit(coloured(image[0]), box=handwriting.BOX[dataset]).image
        again = to_digit(coloured(once[0]), box=handwriting.BOX[dataset]).image
        assert nearest_shift(once[0], image[0]) < 0.05
        assert nearest_shift(again[0], once[0]) < 0.02


def nearest_shift(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference to the other image, moved by at most three pixels: digits are not centred by mass."""
    shifts = range(-3, 4)
    return min(float(np.abs(np.roll(one, (dy, dx), (0, 1)) - other).mean()) for dy in shifts for dx in shifts)


# --- what is refused ---


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "1 to 10,000,000 bytes"),
        (b"\x89PNG" + b"0" * 10_000_000, "1 to 10,000,000 bytes"),
        (b"not a picture at all", "must be a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "must be a PNG, JPEG or WebP"),
        (encoded(Image.new("L", (30, 30)), "GIF"), "must be a PNG, JPEG or WebP"),
        (encoded(Image.new("L", (30, 30)), "BMP"), "must be a PNG, JPEG or WebP"),
        (header(20_000, 20_000), "far more"),
        (header(9000, 100), "8 to 8,000 pixels a side"),
        (header(7000, 7000), "at most 24 million"),
        (encoded(Image.new("L", (7, 30))), "8 to 8,000 pixels a side"),
        (header(30, 3000), "cut short or damaged"),
    ],
    ids=["empty", "large", "text", "svg", "gif", "bmp", "bomb", "wide", "too many pixels", "tiny", "cut short"],
)
def test_what_is_no_fitting_picture_is_refused_with_a_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(PictureRefused, match=sentence):
        read_picture(content)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (30, 30), shade) for shade in ("red", "green")]
    with pytest.raises(PictureRefused, match="animated"):
        read_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50))


@given(st.data())
def test_a_file_cut_short_or_changed_is_read_or_refused_and_never_more(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), kind))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        colours = read_picture(bytes(content))
    except PictureRefused:
        return
    assert max(colours.shape[:2]) <= 512
    assert colours.min() >= 0
    assert colours.max() <= 1


@pytest.mark.parametrize("shade", [0.0, 0.4, 1.0])
def test_an_empty_sheet_is_refused(shade: float) -> None:
    with pytest.raises(PictureRefused, match="nothing does"):
        to_digit(np.full((50, 50, 3), shade, dtype=np.float32), box=20)


@pytest.mark.parametrize("text", [None, 7, "", "data:image/svg+xml;base64,AAAA", "data:image/png;base64,@@"])
def test_a_drawing_that_is_no_data_url_is_refused(text: object) -> None:
    with pytest.raises(PictureRefused, match="drawing must come as"):
        from_data_url(text)


def test_a_drawing_arrives_as_its_bytes() -> None:
    content = encoded(Image.new("L", (28, 28)))
    assert from_data_url("data:image/png;base64," + base64.b64encode(content).decode()) == content


def test_files_are_judged_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "convert", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(PictureRefused):
        read_picture(header(7000, 7000))
    with pytest.raises(AssertionError, match="decoded"):
        read_picture(encoded(Image.new("L", (30, 30))))
