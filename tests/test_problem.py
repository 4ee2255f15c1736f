"""What an experiment is given."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine import datasets
from engine.experiment.problem import pose
from engine.overrides import with_overrides

SHAPE = ("data.train_size=100", "data.validation_size=50")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of colour images of 12×10 pixels: 90, 80 and 70, of which a fifth is for testing."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count in {"apple": 90, "plum": 80, "pear": 70}.items():
        (root / "fruit" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(root / "fruit" / name / f"{number:03}.png")
    return root


@pytest.fixture
def fruit(tiny):
    return lambda *overrides: tiny(
        "dataset=folder:fruit", "threat.target_class=1", "architecture=mlp", "attack.surrogate=mlp", *SHAPE, *overrides
    )


def test_a_folder_poses_a_problem_of_its_own_size_and_classes(root, fruit):
    problem = pose(fruit(), root, torch.device("cpu"))
    assert problem.class_names == ("apple", "pear", "plum")
    assert problem.training.images.shape == (100, 3, 10, 12)
    assert set(problem.validation.labels.tolist()) == {1}
    assert problem.test.labels.tolist() == [0, 1, 1, 1, 2]  # 3 of the target class, 1 of every other
    original = datasets.read("folder:fruit", root, train=True)
    for part, of in ((problem.training, original), (problem.test, datasets.read("folder:fruit", root, train=False))):
        assert np.array_equal(part.images.numpy(), of[0][part.indices])
        assert np.array_equal(part.labels.numpy(), of[1][part.indices])


def test_the_weights_make_the_certified_images_stand_for_the_whole_test_set(root, fruit):
    problem = pose(fruit(), root, torch.device("cpu"))
    assert problem.test_weights.sum() == pytest.approx(1)
    shares = torch.zeros(3, dtype=torch.float64).index_add(0, problem.test.labels, problem.test_weights)
    assert shares.tolist() == pytest.approx([18 / 48, 14 / 48, 16 / 48])


@pytest.mark.parametrize(("share", "fraction"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.25), (0.5, 0.25)])
def test_the_fraction_is_taken_of_what_the_attacker_has(tmp_path, tiny, share, fraction):
    config = tiny("data.train_size=1000", f"threat.attacker_share={share}", f"threat.poison_fraction={fraction}")
    problem, target = pose(config, tmp_path, torch.device("cpu")), config.threat.target_class
    known, changed = problem.attacker_indices, problem.poison_indices
    assert len(known) == round(share * 1000)
    assert torch.equal(known, known.unique())  # ascending, each once
    of_class = known[problem.training.labels[known] == target]
    assert len(changed) == round(fraction * len(of_class))
    assert set(changed.tolist()) <= set(of_class.tolist())
    theirs, positions = problem.attackers_training()
    assert torch.equal(theirs.indices[positions], problem.training.indices[changed])
    assert torch.equal(theirs.images, problem.training.images[known])


def test_attackers_of_a_share_change_what_those_of_all_might(tmp_path, tiny):
    """The victims' data do not depend on the attacker."""
    config = tiny("data.train_size=1000")
    whole, part = (
        pose(with_overrides(config, [f"threat.attacker_share={share}"]), tmp_path, torch.device("cpu"))
        for share in (1, 0.3)
    )
    assert torch.equal(whole.training.indices, part.training.indices)
    assert torch.equal(whole.test.indices, part.test.indices)
    assert set(part.poison_indices.tolist()) < set(whole.poison_indices.tolist())
