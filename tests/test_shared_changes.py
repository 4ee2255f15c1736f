"""One change for the whole class, blending and flips: each by what it claims to do."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.attacks.patterns import FREQUENCIES
from engine.attacks.universal import Shared
from engine.attacks.watermark import OPACITY
from engine.data import LabelledImages
from engine.solvers import Adam
from engine.streams import stream
from engine.threat import Poison
from tests.bilevel import exact
from tests.rivals import CONFIG, EPSILON, PROBLEM, TARGET, TRAINING, attacked, tiny_networks

__all__ = ["tiny_networks"]  # a fixture that works by being here


def shared_change(delta: Tensor, x_clean: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """The one [C, H, W] that gives delta [P, C, H, W] by adding it and cutting at the range, or an assertion fails."""
    uncut = ((x_clean + delta) > 0) & ((x_clean + delta) < 1)
    found = (delta * uncut).sum(dim=0) / uncut.sum(dim=0).clamp(min=1)
    cut_only = ~uncut.any(dim=0)  # pixels that are 0 or 1 in all images: any change that leads there will do
    found = torch.where(cut_only, delta.gather(0, delta.abs().argmax(dim=0, keepdim=True))[0], found)
    assert torch.allclose((x_clean + found).clamp(0, 1) - x_clean, delta, atol=1e-6)
    return found


@pytest.mark.parametrize("name", ["universal", "brightness", "white-pattern", "low-frequency-pattern"])
def test_all_images_share_one_change_before_it_is_cut(name):
    for record in attacked(name):
        shared_change(record.delta, PROBLEM.x_clean)


def pattern(name: str, side: int = 28) -> Tensor:
    """The pattern [side, side] of a class of gray images, which nothing cuts."""
    gray = LabelledImages(torch.full((4, 1, side, side), 0.5), torch.tensor([2, 2, 2, 1]), torch.arange(4))
    (record,) = attacked(name, replace(PROBLEM, training=gray, indices=torch.arange(3)))
    return shared_change(record.delta, gray.images[:3])[0]


def test_brightness_is_epsilon_everywhere_but_where_the_pixel_range_ends():
    assert torch.allclose(pattern("brightness"), torch.tensor(EPSILON), atol=1e-6)
    (record,) = attacked("brightness")
    assert torch.equal(record.delta, (PROBLEM.x_clean + EPSILON).clamp(max=1) - PROBLEM.x_clean)


def test_a_white_pattern_has_balanced_independent_signs_of_full_size():
    signs = pattern("white-pattern", 100) / EPSILON
    assert torch.allclose(signs.abs(), torch.ones(()), atol=1e-5)
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(signs.sum())) < 5 * 100
    assert abs(float((signs[1:] * signs[:-1]).sum())) < 5 * 100


def test_a_low_frequency_pattern_is_of_full_size_and_changes_sign_seldom():
    """A sum of k cosines is a polynomial of degree k − 1 in cos: each row and column has at most k − 1 zeros."""
    signs = pattern("low-frequency-pattern")
    assert torch.allclose(signs.abs(), torch.tensor(EPSILON), atol=1e-6)
    for lines in (signs, signs.T):
        changes = (lines[:, 1:] * lines[:, :-1] < 0).sum(dim=1)
        assert int(changes.max()) <= FREQUENCIES - 1
    assert 0.1 < float((signs > 0).float().mean()) < 0.9


def test_the_shared_step_is_that_of_the_exact_hypergradient_which_sums_over_images():
    """Lower: ½ w·Hw − w·B Σx; upper: ½ |w − t|². Two steps of different length, as Adam's first knows no length."""
    draw = stream(0, "quadratic")
    root, mixing, target = (torch.randn(s, generator=draw) for s in ((3, 3), (3, 64), (3,)))
    hessian = root @ root.T + torch.eye(3)
    gray = replace(TRAINING, images=0.25 + 0.5 * TRAINING.images)  # nothing is cut
    problem = replace(PROBLEM, training=gray, epsilon=0.2)
    unknowns, adam = Shared(problem, CONFIG), Adam(torch.zeros(1, 1, 8, 8), learning_rate=CONFIG.poison_learning_rate)

    def lower(w: Tensor, x: Tensor) -> Tensor:
        return 0.5 * w @ hessian @ w - w @ (mixing @ x.flatten(1).sum(dim=0))

    expected = torch.zeros(1, 1, 8, 8)
    for rows, scale in ((torch.tensor([0, 1, 2]), 1.0), (torch.tensor([5, 3]), 7.0)):
        images = unknowns.images(rows)
        weights = torch.linalg.solve(hessian, mixing @ images.flatten(1).sum(dim=0))
        x_clean = problem.x_clean[rows]

        def upper(w: Tensor, _: Tensor, scale: float = scale) -> Tensor:
            return scale * 0.5 * (w - target).square().sum()

        def lower_of_shared(w: Tensor, change: Tensor, x_clean: Tensor = x_clean) -> Tensor:
            return lower(w, x_clean + change)

        expected = expected + adam.step(exact(lower_of_shared, upper, weights, expected))
        unknowns.update(exact(lower, upper, weights, images), rows)
        assert torch.allclose(unknowns.shared, expected, atol=1e-5)


def test_a_cut_pixel_counts_only_where_descent_leads_it_back():
    images = torch.tensor([0.5, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8).clone()
    rows = torch.arange(3)
    problem = replace(PROBLEM, training=LabelledImages(images, torch.full((3,), TARGET), rows), indices=rows)

    def change_after(gradient: list[float], start: float) -> float:
        unknowns = Shared(problem, CONFIG)
        unknowns.shared += start
        unknowns.update(torch.tensor(gradient).view(3, 1, 1, 1).expand(3, 1, 8, 8), rows)
        return float(unknowns.shared.mean()) - start

    assert change_after([0.0, 1.0, 0.0], start=-0.02) == pytest.approx(
        0, abs=1e-8
    )  # the black pixel is cut, and would go on down
    assert change_after([0.0, -1.0, 0.0], start=-0.02) > 0
    assert change_after([0.0, 0.0, -1.0], start=0.02) == pytest.approx(0, abs=1e-8)  # the white one likewise
    assert change_after([0.0, 0.0, 1.0], start=0.02) < 0
    assert change_after([0.0, 1.0, 0.0], start=0.0) < 0  # at the very edge it counts


def test_a_watermark_is_a_faint_image_of_another_class_and_needs_one():
    (record,) = attacked("watermark", replace(PROBLEM, epsilon=1.0))
    others = TRAINING.images[TRAINING.labels != TARGET].flatten(1)
    shown = (record.delta / OPACITY + PROBLEM.x_clean).flatten(1)
    nearest = torch.cdist(shown, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert float(nearest.values.max()) < 1e-5
    assert len(nearest.indices.unique()) > 1
    (cut,) = attacked("watermark")
    assert torch.allclose(cut.delta, record.delta.clamp(-EPSILON, EPSILON), atol=1e-6)
    alone = replace(PROBLEM, training=TRAINING.of_class(TARGET), indices=torch.arange(5))
    with pytest.raises(ValueError, match="images of another class"):
        attacked("watermark", alone)


def test_a_label_flip_changes_no_pixel_and_no_other_label():
    (record,) = attacked("label-flip")
    found = Poison(record.delta, PROBLEM.indices, record.labels).apply(TRAINING)
    assert torch.equal(found.images, TRAINING.images)
    others = torch.ones(len(TRAINING), dtype=torch.bool)
    others[PROBLEM.indices] = False
    assert torch.equal(found.labels[others], TRAINING.labels[others])
    assert set(found.labels[PROBLEM.indices].tolist()) == {0, 1}
