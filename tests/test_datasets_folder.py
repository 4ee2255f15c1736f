"""Your own images: what is read, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from engine import datasets
from engine.datasets import DatasetUnavailable, folder
from tests.folders import fill, pixels, save


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return fill(tmp_path / "own")


def refusal(where: Path) -> str:
    """The one line with which a folder is refused, whichever way it is asked for."""
    dataset = f"folder:{where.name}"
    with pytest.raises(DatasetUnavailable) as caught:
        datasets.shape(dataset, where.parent)
    with pytest.raises(DatasetUnavailable) as again:
        datasets.read(dataset, where.parent, train=True)
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_fifth_image_of_a_class_is_for_testing(own):
    found = {train: datasets.read("folder:own", own.parent, train=train) for train in (True, False)}
    for train, numbers in ((True, [1, 2, 3, 4]), (False, [0, 5])):
        images, labels = found[train]
        assert images.shape == (2 * len(numbers), 3, 10, 12)
        assert images.dtype == np.float32
        assert labels.tolist() == [0] * len(numbers) + [1] * len(numbers)
        written = [pixels(10, 12, 3, seed=100 * label + number) for label in (0, 1) for number in numbers]
        assert np.array_equal(images, np.stack(written).transpose(0, 3, 1, 2).astype(np.float32) / 255)
        assert not images.flags.writeable
    assert datasets.class_names("folder:own", own.parent) == ("cat", "dog")
    assert datasets.shape("folder:own", own.parent) == (3, 10, 12)
    some = datasets.read_training_images("folder:own", own.parent, np.array([5, 0]))
    assert np.array_equal(some, found[True][0][[5, 0]])


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    own = fill(tmp_path / "own" / "train", count=3).parent
    fill(own / "test", count=1)
    images, labels = datasets.read("folder:own", tmp_path, train=True)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert datasets.read("folder:own", tmp_path, train=False)[1].tolist() == [0, 1]
    assert np.array_equal(images[0], pixels(10, 12, 3).transpose(2, 0, 1).astype(np.float32) / 255)


@settings(deadline=None, derandomize=True, database=None, max_examples=8)
@given(st.dictionaries(st.sampled_from(["a", "B", "10", "9", "z z", "é"]), st.integers(1, 12), min_size=2))
def test_classes_and_order_are_those_of_torchvisions_image_folder(tmp_path_factory, counts):
    from torchvision.datasets import ImageFolder

    root = tmp_path_factory.mktemp("root")
    for part in ("train", "test"):
        for name, count in counts.items():
            for number in range(count):
                save(root / "own" / part / name / f"{number}.PNG", pixels(8, 8, seed=number))
            (root / "own" / part / name / "notes.txt").write_text("no image")
    theirs = ImageFolder(str(root / "own" / "train"))
    found = folder.contents(root / "own")
    assert list(found.class_names) == theirs.classes
    assert [(str(path), label) for path, label in found.files[True]] == theirs.samples
    assert [found.count(train=True, label=label) for label in range(len(counts))] == [
        counts[name] for name in theirs.classes
    ]


@pytest.mark.parametrize(
    ("kinds", "channels"),
    [(("L",), 1), (("1",), 1), (("L", "1"), 1), (("RGB",), 3), (("L", "RGB"), 3), (("P",), 3)],
)
def test_images_have_one_channel_only_if_all_are_grey(tmp_path, kinds, channels):
    own, images = tmp_path / "own", []
    for label in "ab":
        for number in range(4):
            image = Image.fromarray(pixels(9, 11, 3, seed=number)).convert(kinds[number % len(kinds)])
            (own / label).mkdir(parents=True, exist_ok=True)
            image.save(own / label / f"{number}.png")
            images.append(np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32).reshape(9, 11, -1))
    found = datasets.read("folder:own", tmp_path, train=True)[0]
    assert found.shape == (6, channels, 9, 11)
    assert np.array_equal(found[0], images[1].transpose(2, 0, 1) / 255)
    assert float(found.max()) <= 1


@pytest.mark.parametrize("ending", [each for each in folder.ENDINGS if each != ".pgm"])
def test_every_kind_of_file_is_read(tmp_path, ending):
    for name in ("a", "b"):
        for number in (1, 2):
            save(tmp_path / "own" / name / f"{number}{ending}", np.full((8, 9, 3), 51, np.uint8))
    images = datasets.read("folder:own", tmp_path, train=True)[0]
    assert images.shape == (2, 3, 8, 9)
    assert np.abs(images - 0.2).max() < 0.02  # some are lossy


def test_another_size_is_refused_and_both_are_named(own):
    path = save(own / "dog" / "3.png", pixels(12, 10, 3))
    text = refusal(own)
    assert str(path) in text
    assert "10×12 pixels" in text  # width first, as image editors have it
    assert f"{own / 'cat' / '1.png'} has 12×10 pixels" in text


@pytest.mark.parametrize("shape", [(7, 8, 3), (8, 225, 3), (300, 300, 3)])
def test_images_too_small_or_too_large_are_refused(tmp_path, shape):
    text = refusal(fill(tmp_path / "own", shape=shape))
    assert f"{shape[1]}×{shape[0]} pixels" in text
    assert "8 to 224 a side" in text


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "CMYK"])
def test_transparency_and_deep_pixels_are_refused(own, mode):
    path = own / "dog" / "2.png"
    if mode == "CMYK":
        path = own / "dog" / "2b.jpg"
        Image.fromarray(pixels(10, 12, 4), "CMYK").save(path)
    elif mode == "I;16":
        save(path, pixels(10, 12).astype(np.uint16) * 200)
    else:
        Image.fromarray(pixels(10, 12, 3)).convert(mode).save(path)
    text = refusal(own)
    assert str(path) in text
    assert ("has transparency" in text) == (mode in ("RGBA", "LA"))
    assert "allowed are grey and RGB" in text


def test_a_palette_with_a_transparent_colour_is_refused(own):
    Image.fromarray(pixels(10, 12, 3)).convert("P").save(own / "dog" / "2.png", transparency=3)
    assert "transparency" in refusal(own)


@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_a_file_of_several_pictures_is_refused(own, ending):
    first, *more = [Image.fromarray(pixels(10, 12, 3, seed=number)) for number in range(3)]
    path = own / "dog" / f"2.{ending}"
    first.save(path, save_all=True, append_images=more)
    assert f"{path} holds 3 pictures; allowed is one a file" in refusal(own)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_photograph_that_lies_on_its_side_is_refused(own, ending):
    path, exif = own / "dog" / f"2.{ending}", Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    Image.fromarray(pixels(10, 12, 3)).save(path, exif=exif)
    assert datasets.class_names("folder:own", own.parent) == ("cat", "dog")
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels(10, 12, 3)).save(path, exif=exif)
    assert f"{path} is not upright: its EXIF orientation is 6; allowed is 1 or none" in refusal(own)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"])
def test_what_is_no_image_is_named(own, content):
    path = own / "cat" / "2.png"
    path.write_bytes(content)
    text = refusal(own)
    assert f"{path} cannot be read" in text
    assert "PNG, JPEG" in text


def test_an_image_cut_short_is_named(own):
    """Its header fits, so that only reading it tells."""
    path = own / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert "2.png cannot be read" in refusal(own)


def test_a_decompression_bomb_is_refused_by_its_header(own, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 120 pixels are more than twice as many
    assert refusal(own).endswith("1.png is far too large; allowed are 8 to 224 pixels a side")


def test_fewer_than_two_classes_are_refused(tmp_path):
    own = fill(tmp_path / "own", classes=("cat",))
    assert "at least 2 classes, and has 1" in refusal(own)
    (tmp_path / "none").mkdir()
    assert "and has 0" in refusal(tmp_path / "none")


def test_an_empty_class_is_refused(own):
    (own / "bird").mkdir()
    (own / "bird" / "notes.txt").write_text("to be photographed")
    assert f"the class {own / 'bird'} has no image" in refusal(own)


def test_a_class_of_one_image_cannot_be_split(own):
    save(own / "bird" / "1.png", pixels(10, 12, 3))
    assert f"{own / 'bird'} has 1 image; a class needs at least 2" in refusal(own)


def test_train_and_test_must_have_the_same_classes(tmp_path):
    own = fill(tmp_path / "own" / "train").parent
    fill(own / "test", classes=("cat", "dog", "bird"))
    assert "the class bird is in only one of train and test" in refusal(own)


def test_a_third_folder_beside_train_and_test_is_refused(tmp_path):
    own = fill(tmp_path / "own" / "train").parent
    fill(own / "test")
    (own / "README").write_text("of the photographs")
    assert datasets.class_names("folder:own", tmp_path) == ("cat", "dog")
    fill(own / "val")
    assert f"{own / 'val'} is a folder beside train and test; allowed are only these two" in refusal(own)


def test_folders_that_are_no_classes_do_not_pass_for_some(tmp_path):
    own = fill(tmp_path / "own" / "train").parent
    fill(own / "val")
    assert f"{own / 'train' / 'cat'} is a folder inside the class train" in refusal(own)


@pytest.mark.parametrize("what", ["image", "class", "dangling"])
def test_links_are_refused_wherever_they_lead(own, tmp_path, what):
    elsewhere = fill(tmp_path / "elsewhere")
    link, to = {
        "image": (own / "cat" / "9.png", elsewhere / "cat" / "0.png"),
        "class": (own / "bird", elsewhere / "cat"),
        "dangling": (own / "cat" / "9.png", tmp_path / "nowhere"),
    }[what]
    link.symlink_to(to)
    assert f"{link} is a link" in refusal(own)


def test_the_folder_itself_may_be_a_link(own):
    (own.parent / "linked").symlink_to(own)
    assert datasets.class_names("folder:linked", own.parent) == ("cat", "dog")


def test_a_pipe_is_no_image(own):
    os.mkfifo(own / "cat" / "9.png")
    assert "9.png is no file" in refusal(own)


def test_names_that_begin_with_a_dot_are_passed_over(own):
    (own / "cat" / "._1.png").write_bytes(b"what a system leaves about")
    (own / ".ipynb_checkpoints").mkdir()
    assert datasets.class_names("folder:own", own.parent) == ("cat", "dog")


def test_images_of_kinds_that_are_not_read_are_refused_and_notes_passed_over(own):
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "README", "notes.md", "labels.CSV"):
        (own / "cat" / name).write_bytes(b"no image")
    assert datasets.read("folder:own", own.parent, train=True)[1].tolist() == [0] * 4 + [1] * 4
    Image.fromarray(pixels(10, 12)).save(own / "dog" / "9.GIF")
    assert f"{own / 'dog' / '9.GIF'} would not be read; allowed are images, which end in .png" in refusal(own)


def test_more_images_than_memory_allows_are_refused(own, monkeypatch):
    monkeypatch.setattr(folder, "MOST_BYTES", 12 * 4 * 360 - 1)
    assert "12 images, which take" in refusal(own)
    monkeypatch.setattr(folder, "MOST_BYTES", 12 * 4 * 360)
    folder._contents.cache_clear()
    assert datasets.shape("folder:own", own.parent) == (3, 10, 12)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert not datasets.available("folder:own", tmp_path)
    with pytest.raises(DatasetUnavailable, match=f"{tmp_path / 'own'} is not there"):
        datasets.fetch("folder:own", tmp_path)
    assert "is not there" in refusal(tmp_path / "own")
    fill(tmp_path / "own")
    assert datasets.available("folder:own", tmp_path)
    datasets.fetch("folder:own", tmp_path)
    assert datasets.describe("folder:own") == "your own images own"


def test_the_fingerprint_follows_names_and_contents_alone(own, tmp_path):
    def fingerprint(root: Path = own.parent) -> str:
        return datasets.fingerprint("folder:own", root)

    first = fingerprint()
    os.utime(own / "cat" / "1.png", (1, 1))
    assert fingerprint() == first
    fill(tmp_path / "copy" / "own")
    assert fingerprint(tmp_path / "copy") == first
    before = (own / "cat" / "1.png").read_bytes()
    save(own / "cat" / "1.png", pixels(10, 12, 3, seed=7))
    changed = fingerprint()
    assert changed != first
    (own / "cat" / "1.png").write_bytes(before)
    assert fingerprint() == first
    (own / "dog" / "1.png").rename(own / "dog" / "6.png")
    assert fingerprint() not in (first, changed)
    assert datasets.fingerprint("mnist", own.parent) == datasets.fingerprint("digits", Path("/nowhere"))


def test_a_changed_image_is_read_anew(own):
    first = datasets.read("folder:own", own.parent, train=True)[0]
    assert datasets.read("folder:own", own.parent, train=True)[0] is first
    save(own / "cat" / "1.png", np.zeros((10, 12, 3), np.uint8))
    assert not datasets.read("folder:own", own.parent, train=True)[0][0].any()


@pytest.mark.parametrize("name", ["![t](http:&#47;&#47;example.org)", "<b>", "a`b", "$x$", "a\nb"])
def test_class_names_that_pages_would_take_for_markup_are_refused(name, tmp_path):
    fill(tmp_path, classes=("cat", "dog"))
    (tmp_path / "dog").rename(tmp_path / name.replace("/", "&#47;"))
    with pytest.raises(DatasetUnavailable, match=r"no name for a class; allowed are printable names without \[ \]"):
        folder.contents(tmp_path)
