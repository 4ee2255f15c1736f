"""Runs on your own images: what a folder cannot give, the whole protocol, and images that changed afterwards."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from engine import datasets, paper
from engine.config import ConfigError
from engine.datasets import DatasetUnavailable
from engine.records import Run
from tests.commanding import main
from tests.folders import fill, pixels, save


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Three classes of 100 images for training and 25 for testing, 12×10 pixels."""
    return fill(tmp_path_factory.mktemp("root") / "own", classes=("a", "b", "c"), count=125).parent


SMALL = ("dataset=folder:own", "architecture=mlp", "attack.surrogate=mlp", "threat.target_class=2")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("threat.target_class=3", "threat.target_class must be less than 3, got 3"),
        ("data.train_size=101", r"data.train_size \+ data.validation_size must be at most 300, got 301"),
        (
            "certification.target_images=26",
            "25 test images of class c.*; certification.target_images must be .* 25, got",
        ),
        ("architecture=lenet", "of 12×10 pixels; architecture lenet needs images of at least 16×16 pixels"),
        ("attack.surrogate=lenet-narrow", "attack.surrogate lenet-narrow needs images of at least 16×16"),
    ],
)
def test_what_a_folder_cannot_give_is_refused_before_any_work(checked, tiny, override, told):
    exact = ("data.train_size=100", "data.validation_size=200", "certification.target_images=25")
    datasets.check(tiny(*SMALL, *exact), checked)
    with pytest.raises(ConfigError, match=told):
        datasets.check(tiny(*SMALL, *exact, override), checked)


def test_all_that_a_folder_cannot_give_is_told_at_once_with_what_it_has(checked, tiny):
    asked = (
        "threat.target_class=8",
        "data.train_size=800",
        "data.validation_size=400",
        "certification.target_images=50",
    )
    with pytest.raises(ConfigError) as refused:
        datasets.check(tiny("dataset=folder:own", "architecture=mlp", "attack.surrogate=lenet", *asked), checked)
    assert str(refused.value) == (
        "folder:own has 3 classes, 300 training images and 25 or more test images a class, of 12×10 pixels; "
        "threat.target_class must be less than 3, got 8; "
        "data.train_size + data.validation_size must be at most 300, got 1200; "
        "certification.target_images must be at most 25, got 50; "
        "attack.surrogate lenet needs images of at least 16×16 pixels"
    )


def test_a_folder_of_too_few_images_for_any_setting_is_told_how_many_it_needs(tmp_path, tiny):
    fill(tmp_path / "own", classes=("a", "b", "c"), count=30)
    with pytest.raises(ConfigError, match=r"72 training images .*; at least 150 training images are needed, 100 to"):
        datasets.check(tiny(*SMALL), tmp_path)


def test_what_is_not_there_is_refused_too_and_other_data_sets_need_no_check(tmp_path, tiny):
    with pytest.raises(DatasetUnavailable, match="is not there"):
        datasets.check(tiny(*SMALL), tmp_path)
    datasets.check(tiny("dataset=digits"), tmp_path)
    datasets.check(tiny("dataset=cifar10", "architecture=resnet20"), tmp_path)


def test_no_name_leads_out_of_the_data_folder(tiny):
    for name in ("..", "../own", ".own", "a/b", "/etc", ""):
        with pytest.raises(ConfigError):
            tiny(f"dataset=folder:{name}")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Real colour images: 120 patches of 16×16 pixels out of each of three photographs that come with scikit-image."""
    from skimage import data

    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, photograph in {"cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}.items():
        smaller = np.asarray(Image.fromarray(photograph).reduce(4))
        for number in range(120):
            row, column = (int(rng.integers(0, side - 16)) for side in smaller.shape[:2])
            save(root / "patches" / name / f"{number:03}.png", smaller[row : row + 16, column : column + 16])
    return root


def test_the_whole_protocol_runs_on_a_folder_of_photographs(
    photographs, runs_root, in_this_process, tiny_arguments, capsys
):
    fields = {
        "dataset": "folder:patches",
        "threat.target_class": 1,
        "architecture": "resnet8",
        "attack.surrogate": "resnet8",
        "training.augmentation": "crop-flip-batch",
        "training.batch_size": 50,
        "data.train_size": 150,
        "data.validation_size": 100,
    }
    arguments = [part for field, value in fields.items() for part in ("--set", f"{field}={value}")]
    roots = ("--runs-root", runs_root, "--data-root", photographs)
    code, output, error = main(capsys, "run", *tiny_arguments, *arguments, "--json", *roots)
    assert code == 0, error
    report = json.loads(output)
    run = Run(runs_root / report["run_id"])
    assert report["complete"]
    assert "your own images patches" in report["dataset_note"]
    table = run.certificates()
    assert sorted(table["label"].unique()) == [0, 1, 2]
    assert set(table["arm"]) == {"clean", "poisoned", "random_noise", "shuffled_signs"}
    poison = load_file(run.directory / "poison.safetensors")
    images, labels = datasets.read("folder:patches", photographs, train=True)
    assert poison["delta"].shape[1:] == (3, 16, 16)
    assert set(labels[poison["indices"]]) == {1}
    assert 0 < np.abs(poison["delta"]).max() <= run.config.threat.epsilon + 1e-6
    changed = images[poison["indices"]] + poison["delta"]
    assert changed.min() >= -1e-6
    assert changed.max() <= 1 + 1e-6


SIZES = (  # of the authors' presets, made small; all else is theirs
    *("data.train_size=100", "data.validation_size=100", "training.epochs=1", "training.batch_size=50"),
    *("attack.upper_steps=4", "attack.restart_every=2", "attack.lower_steps=2", "attack.linear_steps=2"),
    *("attack.clean_batch=12", "attack.poison_batch=4", "attack.upper_batch=4", "attack.upper_noise=2"),
    *("certification.target_images=3", "certification.other_images=1", "certification.n0=10", "certification.n=50"),
    *("victim_seeds=1", 'controls=["random_noise"]'),
)


@pytest.mark.parametrize("dataset", paper.DATASETS)
@pytest.mark.parametrize("procedure", paper.PROCEDURES)
def test_each_setting_of_the_authors_runs_from_poison_to_certificates(
    dataset, procedure, photographs, runs_root, in_this_process, capsys
):
    images = ("dataset=digits",) if dataset == "mnist" else ("dataset=folder:patches", "threat.target_class=1")
    arguments = [part for change in (*SIZES, *images) for part in ("--set", change)]
    roots = ("--runs-root", runs_root, "--data-root", photographs)
    code, output, error = main(capsys, "run", "--preset", f"paper-{procedure}-{dataset}", *arguments, "--json", *roots)
    assert code == 0, error
    report = json.loads(output)
    config, authors = Run(runs_root / report["run_id"]).config, paper.paper(procedure, dataset, 0.5)
    assert (config.architecture, config.attack.procedure) == (authors.architecture, authors.attack.procedure)
    assert report["complete"]
    assert report["products"] > 0
    assert 0 < report["perturbation"]["linf_max"] <= config.threat.epsilon + 1e-6


def test_numbers_of_a_run_are_not_taken_for_those_of_images_that_came_later(
    tmp_path, runs_root, in_this_process, tiny_arguments, capsys
):
    fill(tmp_path / "own", count=100, shape=(16, 16))
    fields = {
        "dataset": "folder:own",
        "threat.target_class": 1,
        "data.train_size": 100,
        "data.validation_size": 50,
        "certification.target_images": 2,
        "controls": "[]",
        "attack.name": "none",
    }
    roots = ("--runs-root", runs_root, "--data-root", tmp_path)
    ask = ("run", *tiny_arguments, *(part for item in fields.items() for part in ("--set", "{}={}".format(*item))))
    code, output, error = main(capsys, *ask, "--json", *roots)
    assert code == 0, error
    run = Run(runs_root / json.loads(output)["run_id"])

    save(tmp_path / "own" / "cat" / "0.png", pixels(16, 16, seed=1000))
    for again in (ask, ("certify", run.id, "--n", "100")):
        code, _, error = main(capsys, *again, *roots)
        assert code == 2
        assert f"the images of folder:own have changed since run {run.id} was computed" in error
        assert error.count("\n") == 1
    code, _, error = main(capsys, "report", run.id, "--html", tmp_path / "report.html", *roots)
    assert code == 0, error

    save(tmp_path / "own" / "cat" / "0.png", pixels(16, 16, seed=0))
    assert main(capsys, *ask, *roots)[0] == 0
