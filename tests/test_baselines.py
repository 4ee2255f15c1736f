"""Baselines are ordinary runs of the published recipes, side by side or not, in a table beside what was published."""

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
from conftest import PROJECT

from benchmarks import baselines
from engine.records import all_runs, find, run_id

SMALL = (
    *("dataset=digits", "architecture=mlp", "attack.surrogate=mlp", "data.train_size=400", "data.validation_size=50"),
    *("training.batch_size=50", "certification.n=1000"),
)
ARGUMENTS = ["--procedures", "gaussian", "macer", "--sigmas", "0.25", "--seeds", "2", "--images", "5", "--epochs", "3"]


def printed(root) -> list[str]:
    """The table's rows, without the seconds."""
    with redirect_stdout(StringIO()) as output:
        baselines.main([*ARGUMENTS, "--runs", str(root), *(word for field in SMALL for word in ("--set", field))])
    return [line.rpartition(" | ")[0] for line in output.getvalue().splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root of runs that were computed one by one, and their rows."""
    root = tmp_path_factory.mktemp("baselines")
    return root, printed(root)


def test_side_by_side_and_one_by_one_are_the_same_runs(finished, tmp_path, monkeypatch):
    root, one_by_one = finished
    monkeypatch.setattr(baselines.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("engine.experiment.protocol.choose_device", lambda **_: baselines.torch.device("cpu"))
    assert printed(tmp_path) == one_by_one
    assert re.search(r"gaussian \| 0.25 \| 0.898 ± 0.001 \| 0.\d{3} ± 0.\d{3} \| – \| 5 \(± ", one_by_one[2])
    certificates = [[run.certificates() for run in all_runs(each)] for each in (root, tmp_path)]
    assert len(certificates[0]) == 2
    assert all(first.equals(second) for first, second in zip(*certificates, strict=True))


def test_what_is_finished_is_not_computed_again(finished, monkeypatch):
    root, first = finished
    monkeypatch.setattr(baselines.jobs, "submit", None)
    assert printed(root) == first


def test_recipes_are_those_that_were_published():
    mild, strong = (baselines.baseline("mnist", "macer", sigma).procedure.weight for sigma in (1.0, 0.5))
    assert (mild, strong) == (6, 16)
    config = baselines.baseline("mnist", "smoothadv", 0.25)
    assert (config.procedure.adversary_steps, config.procedure.draws, config.training.batch_size) == (10, 4, 64)
    assert baselines.baseline("mnist", "gaussian", 0.25).training.batch_size == 256
    config = baselines.baseline("mnist", "consistency", 0.25)
    assert (config.procedure.draws, config.procedure.weight, config.training.batch_size) == (2, 10, 128)
    steps = [baselines.baseline("mnist", "smoothmix", sigma).procedure.adversary_steps for sigma in (0.25, 0.5, 1.0)]
    assert steps == [2, 4, 8]
    config = baselines.baseline("cifar10", "smoothadv", 0.5)
    assert (config.architecture, config.procedure.draws, config.training.batch_size) == ("resnet20", 8, 32)
    config = baselines.baseline("cifar10", "macer", 0.5)
    assert (config.procedure.weight, config.training.epochs, config.training.weight_decay) == (4, 440, 5e-4)


def test_published_deviations_are_told_at_the_published_draws_alone():
    run, few = (find(PROJECT / "gallery" / "baselines", identifier) for identifier in ("02ee", "2143"))
    key = "mnist", "gaussian", 1.0
    assert [baselines.table({key: each}).rows[0][4] for each in (run, few)] == ["-1.8", "–"]


def test_all_shipped_baselines_are_still_asked_for():
    """A recipe that changes would compute anew what comes with the project."""
    asked = {
        run_id(baselines.baseline(*key, [f"certification.target_images={images}", *more]))
        for key in baselines.PUBLISHED
        for images, *more in (
            *([974], [974, "victim_seeds=2"], [400], [80, "training.epochs=9"]),
            [974, "victim_seeds=2", "architecture=lenet-torch", "certification.n=10000"],
            [974, "victim_seeds=2", "training.epochs=93", "certification.n=10000"],
        )
    }
    assert {run.id for run in all_runs(PROJECT / "gallery" / "baselines")} <= asked


@pytest.mark.parametrize(
    "wrong",
    [
        ["--epochs", "0"],
        ["--sigmas", "0.3"],
        ["--dataset", "cifar10", "--sigmas", "0.25"],
        ["--set", "training.squeeze=1"],
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit):
        baselines.main(["--runs", str(tmp_path), *wrong])
    assert wrong[-1].partition("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_new_is_computed_among_the_projects_own_runs(capsys, monkeypatch):
    monkeypatch.setattr(baselines.jobs, "submit", None)
    with pytest.raises(SystemExit):
        baselines.main([*ARGUMENTS, "--runs", str(PROJECT / "gallery" / "baselines")])
    assert "name another folder" in capsys.readouterr().err
