"""Reading the data sets and splitting them."""

import gzip
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import datasets
from engine.choices import DATASETS
from engine.data import LabelledImages, load, split
from engine.datasets import DatasetUnavailable, cifar10

NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def fake_mnist(root: Path, *, packed: bool) -> dict[str, np.ndarray]:
    """Seven training and three test images in MNIST's layout."""
    rng, folder = np.random.default_rng(0), root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = {}
    for name in NAMES:
        count = 7 if name.startswith("train") else 3
        arrays[name] = rng.integers(0, 256, (count, 28, 28), np.uint8) if "images" in name else np.arange(count) % 10
        arrays[name] = arrays[name].astype(np.uint8)
        content = idx(arrays[name])
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_from_its_files_packed_or_not_without_writing(tmp_path, packed):
    arrays = fake_mnist(tmp_path, packed=packed)
    folder = tmp_path / "MNIST" / "raw"
    before = sorted(path.name for path in folder.iterdir())
    folder.chmod(0o555)
    try:
        assert datasets.available("mnist", tmp_path)
        datasets.fetch("mnist", tmp_path)  # nothing to do
        for train, prefix in ((True, "train"), (False, "t10k")):
            found = load("mnist", tmp_path, train=train)
            expected = arrays[f"{prefix}-images-idx3-ubyte"]
            assert found.images.shape == (len(expected), 1, 28, 28)
            assert found.images.dtype == torch.float32
            assert found.labels.dtype == torch.int64
            assert np.array_equal(found.images[:, 0].numpy(), expected.astype(np.float32) / 255)
            assert found.labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()
            assert found.indices.tolist() == list(range(len(expected)))
    finally:
        folder.chmod(0o755)
    assert sorted(path.name for path in folder.iterdir()) == before


def damaged(content: bytes) -> dict[str, bytes]:
    packed = bytearray(gzip.compress(content))
    garbled = packed.copy()
    garbled[10:20] = b"\xff" * 10
    return {
        "empty": b"",
        "no gzip file": content,
        "cut short": bytes(packed[: len(packed) // 2]),
        "garbled inside": bytes(garbled),
        "wrong checksum": bytes(packed[:-8]) + b"\0" * 8,
        "other numbers than bytes": gzip.compress(b"\0\0\x0d" + content[3:]),
        "a header cut short": gzip.compress(content[:3]),
        "sizes cut short": gzip.compress(content[:9]),
        "fewer pixels than it says": gzip.compress(content[:-1]),
        "more pixels than it says": gzip.compress(content + b"\0"),
    }


@pytest.mark.parametrize("how", list(damaged(b"\0" * 100)))
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_damaged_file_is_named(tmp_path, name, how):
    arrays = fake_mnist(tmp_path, packed=True)
    path = tmp_path / "MNIST" / "raw" / f"{name}.gz"
    path.write_bytes(damaged(idx(arrays[name]))[how])
    with pytest.raises(DatasetUnavailable, match="damaged") as caught:
        load("mnist", tmp_path, train=True)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (NAMES[1], np.zeros(6, np.uint8)),
        (NAMES[1], np.full(7, 10, np.uint8)),
        (NAMES[1], np.zeros((7, 2), np.uint8)),
        (NAMES[0], np.zeros((7, 27, 28), np.uint8)),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, name, content):
    fake_mnist(tmp_path, packed=False)
    (tmp_path / "MNIST" / "raw" / name).write_bytes(idx(content))
    with pytest.raises(DatasetUnavailable, match="do not belong together") as caught:
        load("mnist", tmp_path, train=True)
    assert str(tmp_path) in str(caught.value)


def test_files_without_a_single_image_are_refused(tmp_path):
    fake_mnist(tmp_path, packed=False)
    for name, shape in zip(NAMES[:2], [(0, 28, 28), (0,)], strict=True):
        (tmp_path / "MNIST" / "raw" / name).write_bytes(idx(np.zeros(shape, np.uint8)))
    with pytest.raises(DatasetUnavailable):
        load("mnist", tmp_path, train=True)


def test_without_files_and_network_it_is_said_what_to_do(tmp_path, monkeypatch):
    def no_network(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", no_network)
    assert not datasets.available("mnist", tmp_path)
    with pytest.raises(DatasetUnavailable) as caught:
        datasets.fetch("mnist", tmp_path)
    for needed in ("Error downloading", str(tmp_path / "MNIST" / "raw"), "PACD_DATA", "dataset=digits"):
        assert needed in str(caught.value)
    with pytest.raises(DatasetUnavailable, match="MNIST is not under"):
        load("mnist", tmp_path, train=True)


def test_one_missing_file_is_as_bad_as_four(tmp_path):
    fake_mnist(tmp_path, packed=True)
    (tmp_path / "MNIST" / "raw" / f"{NAMES[3]}.gz").unlink()
    assert not datasets.available("mnist", tmp_path)
    with pytest.raises(DatasetUnavailable, match="MNIST is not under"):
        load("mnist", tmp_path, train=False)


def test_the_data_folder_is_the_projects_own_unless_the_environment_names_one(monkeypatch):
    monkeypatch.delenv("PACD_DATA", raising=False)
    assert datasets.default_root() == Path(datasets.__file__).parents[2] / "data"
    monkeypatch.setenv("PACD_DATA", "/elsewhere")
    assert datasets.default_root() == Path("/elsewhere")


def fake_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Six files of four records each, in CIFAR-10's binary layout; returns them: uint8 [24, 3073]."""
    monkeypatch.setattr(cifar10, "RECORDS", 4)
    records = np.random.default_rng(0).integers(0, 256, (24, 3073), np.uint8)
    records[:, 0] %= 10
    (root / "cifar-10-batches-bin").mkdir(parents=True)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, records.reshape(6, 4, 3073), strict=True):
        (root / "cifar-10-batches-bin" / name).write_bytes(part.tobytes())
    return records


def test_cifar10_is_read_from_its_binary_files(tmp_path, monkeypatch):
    records = fake_cifar10(tmp_path, monkeypatch)
    assert datasets.available("cifar10", tmp_path)
    datasets.fetch("cifar10", tmp_path)  # nothing to do
    for train, part in ((True, records[:20]), (False, records[20:])):
        found = load("cifar10", tmp_path, train=train)
        assert found.images.shape == (len(part), 3, 32, 32)
        assert found.images.dtype == torch.float32
        assert found.labels.tolist() == part[:, 0].tolist()
        for channel, row, column in ((0, 0, 1), (1, 5, 0), (2, 31, 31)):  # red, green, blue; each row by row
            expected = part[:, 1 + 1024 * channel + 32 * row + column].astype(np.float32) / 255
            assert np.array_equal(found.images[:, channel, row, column].numpy(), expected)
    some = datasets.read_training_images("cifar10", tmp_path, np.array([19, 0, 7]))
    assert np.array_equal(some, datasets.read("cifar10", tmp_path, train=True)[0][[19, 0, 7]])
    assert datasets.class_names("cifar10", tmp_path)[8] == "ship"  # the class that Mehra et al. attack
    assert datasets.shape("cifar10", tmp_path) == (3, 32, 32)


def test_cifar10_files_of_the_real_size_hold_50_000_and_10_000_images():
    assert cifar10.RECORDS * cifar10.RECORD_BYTES == 30_730_000
    assert DATASETS["cifar10"].training_images == 5 * cifar10.RECORDS
    assert DATASETS["cifar10"].test_images == cifar10.RECORDS
    assert set(DATASETS) == set(datasets.BUILT_IN)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"\0" * 3073 * 3, "must have 12292 bytes, and has 9219"), (b"\x0a" * 3073 * 4, "less than 10")],
)
def test_a_damaged_cifar10_file_is_named(tmp_path, monkeypatch, content, told):
    fake_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(content)
    with pytest.raises(DatasetUnavailable, match=told) as caught:
        load("cifar10", tmp_path, train=True)
    assert str(path) in str(caught.value)


def test_cifar10_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    def no_network(url: str, root: str, md5: str, remove_finished: bool) -> None:
        assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        assert md5 == "c32a1d4ab5d03f1284b67883e8d87530"
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", no_network)
    with pytest.raises(DatasetUnavailable, match="CIFAR-10 is not under"):
        load("cifar10", tmp_path, train=True)
    assert not datasets.available("cifar10", tmp_path)
    with pytest.raises(DatasetUnavailable) as caught:
        datasets.fetch("cifar10", tmp_path)
    for needed in ("no route to host", "cifar-10-binary.tar.gz", "PACD_DATA"):
        assert needed in str(caught.value)


def pickled_cifar10(root: Path, monkeypatch, content: bytes, *, published: bool) -> None:
    """One file of torchvision's Python version, as if its checksum were the published one or not."""
    name, md5 = "some_batch", hashlib.md5(content).hexdigest() if published else "0" * 32
    (root / "cifar-10-batches-py").mkdir(parents=True)
    (root / "cifar-10-batches-py" / name).write_bytes(content)
    meta = pickle.dumps({"label_names": [f"class {k}" for k in range(10)]})
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(meta)
    known = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr("torchvision.datasets.CIFAR10.meta", known)
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(f"torchvision.datasets.CIFAR10.{files}", [[name, md5]])


def test_a_python_version_of_cifar10_that_is_there_is_read_by_torchvision(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3 * 32 * 32), dtype=np.uint8)
    content = pickle.dumps({"data": pixels, "labels": [3, 1, 4, 1, 5, 9]})
    pickled_cifar10(tmp_path, monkeypatch, content, published=True)
    assert datasets.available("cifar10", tmp_path)
    found = load("cifar10", tmp_path, train=True)
    assert found.labels.tolist() == [3, 1, 4, 1, 5, 9]
    assert torch.equal(found.images, torch.from_numpy(pixels.reshape(6, 3, 32, 32)) / 255)
    few = datasets.read_training_images("cifar10", tmp_path, np.array([4, 2]))
    assert np.array_equal(few, found.images.numpy()[[4, 2]])


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    pickled_cifar10(tmp_path, monkeypatch, pickle.dumps(Trap()), published=False)
    with pytest.raises(DatasetUnavailable, match=r"not those that were published.*fetch cifar10"):
        load("cifar10", tmp_path, train=True)
    assert not (tmp_path / "sprung").exists()


def test_cifar10_is_unpacked_where_it_is_read(tmp_path, monkeypatch):
    """Through torchvision's own function, its checksum included, from an archive that is there already."""
    fake_cifar10(tmp_path / "made", monkeypatch)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    datasets.fetch("cifar10", tmp_path)
    assert not archive.exists()
    assert len(load("cifar10", tmp_path, train=True)) == 20


@pytest.fixture(scope="module")
def digits() -> dict[bool, LabelledImages]:
    return {train: load("digits", Path("/nowhere"), train=train) for train in (True, False)}


def test_embedded_digits_are_images_like_mnists(digits):
    assert datasets.available("digits", Path("/nowhere"))
    for data in digits.values():
        assert data.images.shape == (len(data), 1, 28, 28)
        assert data.images.dtype == torch.float32
        assert float(data.images.min()) >= 0
        assert float(data.images.max()) <= 1
        border = data.images.clone()
        border[:, :, 2:-2, 2:-2] = 0
        assert (border == 0).all()
        assert set(data.labels.tolist()) == set(range(10))


def test_embedded_digits_are_split_into_disjoint_halves_that_are_complete(digits):
    from sklearn.datasets import load_digits

    assert [len(digits[train]) for train in (True, False)] == [1437, 360]
    labels = load_digits().target
    assert digits[False].labels.tolist() == labels[::5].tolist()
    assert digits[True].labels.tolist() == np.delete(labels, np.arange(0, len(labels), 5)).tolist()
    seen = {train: {image.numpy().tobytes() for image in data.images} for train, data in digits.items()}
    assert not seen[True] & seen[False]
    known = DATASETS["digits"]
    assert (known.training_images, known.test_images) == (1437, 360)


def test_what_one_caller_does_to_the_images_no_other_sees(digits):
    first = load("digits", Path("/nowhere"), train=False)
    first.images.zero_()
    assert torch.equal(load("digits", Path("/nowhere"), train=False).images, digits[False].images)
    with pytest.raises(ValueError, match="read-only"):
        datasets.read("digits", Path("/nowhere"), train=False)[0][0] = 0


def numbered(count: int) -> LabelledImages:
    return LabelledImages(
        torch.arange(float(count)).reshape(-1, 1, 1, 1), torch.arange(count) % 10, torch.arange(count)
    )


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(st.data(), st.integers(2, 200), st.integers(0, 2**40))
def test_a_split_is_disjoint_and_of_the_sizes_asked_for(data, count, seed):
    validation_size = data.draw(st.integers(1, count - 1))
    train_size = data.draw(st.integers(1, count - validation_size))
    training, validation = split(numbered(count), train_size=train_size, validation_size=validation_size, seed=seed)
    assert (len(training), len(validation)) == (train_size, validation_size)
    for part in (training, validation):  # images, labels and positions stay together, in their original order
        assert part.images.flatten().tolist() == part.indices.tolist() == sorted(set(part.indices.tolist()))
        assert torch.equal(part.labels, part.indices % 10)
    assert not set(training.indices.tolist()) & set(validation.indices.tolist())


def test_a_split_follows_from_its_seed_alone():
    def indices(seed: int) -> list[list[int]]:
        return [part.indices.tolist() for part in split(numbered(50), train_size=20, validation_size=10, seed=seed)]

    assert indices(1) == indices(1)
    assert indices(1)[0] != indices(2)[0]
    assert indices(1)[1] != indices(2)[1]


def test_the_validation_images_stay_the_same_when_the_training_set_shrinks():
    large, small = (split(numbered(100), train_size=size, validation_size=30, seed=5) for size in (70, 10))
    assert torch.equal(large[1].indices, small[1].indices)
    assert set(small[0].indices.tolist()) <= set(large[0].indices.tolist())


def test_more_images_than_there_are_cannot_be_split_off():
    with pytest.raises(ValueError, match=r"train_size \+ validation_size must be at most 100, got 80 \+ 21"):
        split(numbered(100), train_size=80, validation_size=21, seed=0)


def test_images_are_selected_by_position_by_mask_and_by_class():
    data = numbered(30)
    assert data.select(torch.tensor([4, 2])).indices.tolist() == [4, 2]
    assert data.select(data.labels < 1).indices.tolist() == [0, 10, 20]
    assert data.of_class(3).indices.tolist() == [3, 13, 23]
    assert len(data.of_class(11)) == 0
    assert torch.equal(data.to("cpu").images, data.images)


@pytest.mark.parametrize("packed", [True, False])
def test_a_few_training_images_are_those_of_the_whole_set(tmp_path, packed):
    expected = fake_mnist(tmp_path, packed=packed)[NAMES[0]]
    for indices in ([3, 0, 5], [6], [0, 0], []):
        some = datasets.read_training_images("mnist", tmp_path, np.array(indices, dtype=int))
        assert np.array_equal(some[:, 0], expected[indices].astype(np.float32) / 255)
    with pytest.raises(DatasetUnavailable, match="no image 7"):
        datasets.read_training_images("mnist", tmp_path, np.array([7]))


def test_the_embedded_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    labels = {train: datasets.read("digits", tmp_path, train=train)[1] for train in (True, False)}
    images = datasets.read("digits", tmp_path, train=False)[0]
    theirs = load_digits()
    test = np.arange(len(theirs.target)) % 5 == 0
    assert labels[True].tolist() == theirs.target[~test].tolist()
    assert labels[False].tolist() == theirs.target[test].tolist()
    means = images.mean(axis=(1, 2, 3)) * 28**2 / 24**2  # resampling keeps an image's mean, but for clipping
    assert np.abs(means - theirs.images[test].mean(axis=(1, 2)) / 16).max() < 0.05
