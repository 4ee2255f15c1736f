"""The threat model, checked from outside."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.data import LabelledImages
from engine.streams import stream
from engine.threat import (
    Poison,
    ThreatModelViolated,
    check,
    choose_attacker_indices,
    choose_poison_indices,
    project_linf,
)

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=100)
seeds = st.integers(0, 10**6)


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=stream(seed, "test threat"), dtype=torch.float64)


@quickly
@given(seeds, st.floats(0, 1))
def test_a_projection_is_feasible_idempotent_and_the_nearest_point(seed, epsilon):
    clean = uniform(3, 1, 4, 4, seed=seed)
    clean[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # pixels at the ends of their range too
    wanted = uniform(3, 1, 4, 4, seed=seed + 1, low=-1, high=2)
    found = project_linf(wanted, clean, epsilon=epsilon)

    assert float((found - clean).abs().max()) <= epsilon + 1e-12
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(project_linf(found, clean, epsilon=epsilon), found)

    other = uniform(3, 1, 4, 4, seed=seed + 2, low=-epsilon, high=epsilon) + clean
    other = other.clamp(0, 1)  # feasible, and found without the projection
    assert ((found - wanted).abs() <= (other - wanted).abs() + 1e-12).all()


@quickly
@given(seeds, st.floats(0, 1))
def test_what_is_feasible_is_left_as_it_is(seed, epsilon):
    clean = uniform(2, 1, 4, 4, seed=seed)
    feasible = (clean + uniform(2, 1, 4, 4, seed=seed + 1, low=-0.999, high=0.999) * epsilon).clamp(0, 1)
    assert torch.equal(project_linf(feasible, clean, epsilon=epsilon), feasible)


def test_a_budget_of_zero_leaves_the_clean_images_bit_for_bit():
    clean = torch.rand(3, 1, 4, 4, generator=stream(0, "clean"))
    assert torch.equal(project_linf(1 - clean, clean, epsilon=0.0), clean)


@pytest.fixture
def training() -> LabelledImages:
    labels = torch.arange(30) % 3
    return LabelledImages(torch.rand(30, 1, 4, 4, generator=stream(0, "training")), labels, torch.arange(30))


@pytest.fixture
def poison(training) -> Poison:
    """Within 0.1 of class 2."""
    indices = torch.tensor([2, 8, 29])
    clean = training.images[indices]
    signs = torch.randint(0, 2, clean.shape, generator=stream(0, "signs")) * 2.0 - 1
    return Poison((clean + 0.1 * signs).clamp(0, 1) - clean, indices)


def violation(poison: Poison, training: LabelledImages, *, target_class: int = 2, epsilon: float = 0.1, **rest) -> str:
    with pytest.raises(ThreatModelViolated) as caught:
        check(poison, training, target_class=target_class, epsilon=epsilon, **rest)
    return str(caught.value)


def test_a_poison_within_its_budget_passes(training, poison):
    check(poison, training, target_class=2, epsilon=0.1)
    check(Poison(poison.delta[:0], poison.indices[:0]), training, target_class=2, epsilon=0.0)


def test_a_pixel_beyond_epsilon_is_found(training, poison):
    delta = poison.delta.clone()
    assert "more than epsilon = 0.09" in violation(poison, training, epsilon=0.09)
    middle = (training.images[poison.indices] - 0.5).abs().argmin()
    delta.view(-1)[middle] = 0.10001
    assert "more than epsilon" in violation(replace(poison, delta=delta), training)
    delta.view(-1)[middle] = -0.10001
    assert "more than epsilon" in violation(replace(poison, delta=delta), training)


def test_a_pixel_outside_its_range_is_found(training, poison):
    for bright, change in ((1.0, 1e-5), (0.0, -1e-5)):
        images = training.images.clone()
        images[8, 0, 1, 1] = bright
        delta = poison.delta.clone()
        delta[1, 0, 1, 1] = change
        assert "pixel range" in violation(replace(poison, delta=delta), replace(training, images=images))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found(training, poison, value):
    delta = poison.delta.clone()
    delta[0, 0, 0, 0] = value
    assert "not finite" in violation(replace(poison, delta=delta), training)


def test_an_image_of_another_class_is_found(training, poison):
    assert "outside target class 2" in violation(replace(poison, indices=torch.tensor([2, 8, 28])), training)
    assert "outside target class 1" in violation(poison, training, target_class=1)


def test_an_image_named_twice_is_found(training, poison):
    assert "twice" in violation(replace(poison, indices=torch.tensor([2, 8, 8])), training)
    assert "twice" in violation(replace(poison, indices=torch.tensor([2, 8, 29, 5])), training)
    assert "twice" in violation(Poison(poison.delta[:0], poison.indices), training)


@pytest.mark.parametrize("position", [-1, 30, 10**9])
def test_an_image_that_is_not_in_the_training_set_is_found(training, poison, position):
    """−1 would be the last image under a second name."""
    assert "not in the training set" in violation(replace(poison, indices=torch.tensor([2, 8, position])), training)


def test_labels_are_for_an_attack_that_is_not_clean_label_alone(training, poison):
    flipped = replace(poison, labels=torch.tensor([0, 1, 0]))
    check(flipped, training, target_class=2, epsilon=0.1, clean_label=False)
    check(poison, training, target_class=2, epsilon=0.1, clean_label=False)
    assert "not clean-label" in violation(flipped, training)
    own = replace(poison, labels=torch.tensor([2, 2, 2]))
    assert "not clean-label" in violation(own, training)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3]), "no training image has"),
        (torch.tensor([0, -1, 1]), "no training image has"),
        (torch.tensor([0, 2, 1]), "target class 2 among the labels"),
        (torch.tensor([0, 1]), "one whole number per image"),
        (torch.tensor([0.0, 1.0, math.nan]), "one whole number per image"),
    ],
)
def test_labels_must_be_those_of_other_classes(training, poison, labels, message):
    assert message in violation(replace(poison, labels=labels), training, clean_label=False)


def test_an_attack_that_may_change_labels_is_held_to_the_budget_too(training, poison):
    flipped = replace(poison, labels=torch.tensor([0, 1, 0]))
    assert "more than epsilon" in violation(flipped, training, epsilon=0.05, clean_label=False)


def test_applying_labels_replaces_those_of_its_images_only(training, poison):
    before = training.labels.clone()
    found = replace(poison, labels=torch.tensor([0, 1, 0])).apply(training)
    assert torch.equal(training.labels, before)
    assert found.labels[poison.indices].tolist() == [0, 1, 0]
    assert int((found.labels != before).sum()) == 3
    assert torch.equal(found.images, poison.apply(training).images)


def test_applying_a_poison_changes_its_images_only_and_no_label(training, poison):
    before = training.images.clone()
    found = poison.apply(training)
    assert torch.equal(training.images, before)
    assert torch.equal(found.labels, training.labels)
    assert torch.equal(found.indices, training.indices)
    assert torch.equal(found.images[poison.indices], before[poison.indices] + poison.delta)
    others = torch.ones(30, dtype=torch.bool)
    others[poison.indices] = False
    assert torch.equal(found.images[others], before[others])


def test_a_digest_is_that_of_changes_positions_and_labels(poison):
    assert poison.digest() == Poison(poison.delta.clone(), poison.indices.clone()).digest()
    assert poison.digest() != replace(poison, delta=poison.delta * 0.5).digest()
    assert poison.digest() != replace(poison, indices=torch.tensor([2, 5, 29])).digest()
    flips = [replace(poison, labels=torch.tensor(labels)).digest() for labels in ([0, 1, 0], [0, 1, 1])]
    assert len({poison.digest(), *flips}) == 3


LABELS = torch.arange(100) % 4


@quickly
@given(st.just(0.0) | st.floats(0.0201, 1), seeds)
def test_the_images_to_poison_are_a_share_of_the_class_each_once_in_order(fraction, seed):
    found = choose_poison_indices(LABELS, target_class=3, poison_fraction=fraction, seed=seed)
    assert len(found) == round(25 * fraction)
    assert (LABELS[found] == 3).all()
    assert found.tolist() == sorted(set(found.tolist()))
    assert torch.equal(found, choose_poison_indices(LABELS, target_class=3, poison_fraction=fraction, seed=seed))


def test_a_fraction_of_one_is_the_whole_class_and_another_seed_chooses_otherwise():
    whole = choose_poison_indices(LABELS, target_class=3, poison_fraction=1.0, seed=0)
    assert torch.equal(whole, (LABELS == 3).nonzero().squeeze(1))
    one, other = (choose_poison_indices(LABELS, target_class=3, poison_fraction=0.5, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_a_larger_fraction_keeps_the_images_of_a_smaller_one():
    small, large = (choose_poison_indices(LABELS, target_class=1, poison_fraction=f, seed=0) for f in (0.2, 0.6))
    assert set(small.tolist()) < set(large.tolist())


def test_a_class_that_does_not_occur_cannot_be_poisoned():
    with pytest.raises(ValueError, match="have none of target_class 9"):
        choose_poison_indices(LABELS, target_class=9, poison_fraction=1.0, seed=0)


def test_a_fraction_above_zero_that_would_poison_nothing_is_refused():
    with pytest.raises(ValueError, match=r"0.02 of the 25 training images .* must be 0, or more than 0.02"):
        choose_poison_indices(LABELS, target_class=3, poison_fraction=0.02, seed=0)


@quickly
@given(st.floats(0.01, 1), seeds)
def test_the_attackers_images_are_a_share_of_all_each_once_in_order(share, seed):
    found = choose_attacker_indices(LABELS, attacker_share=share, seed=seed)
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == round(100 * share)
    assert set(found.tolist()) <= set(range(100))
    assert torch.equal(found, choose_attacker_indices(LABELS, attacker_share=share, seed=seed))


def test_a_larger_share_keeps_the_images_of_a_smaller_one_and_the_seed_decides():
    small, large = (choose_attacker_indices(LABELS, attacker_share=share, seed=0) for share in (0.2, 0.6))
    assert set(small.tolist()) < set(large.tolist())
    assert not torch.equal(small, choose_attacker_indices(LABELS, attacker_share=0.2, seed=1))
    assert torch.equal(choose_attacker_indices(LABELS, attacker_share=1.0, seed=0), torch.arange(100))
