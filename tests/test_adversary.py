"""The adversaries of SmoothAdv and SmoothMix: exact where all is linear, within range and radius elsewhere."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.models import with_weights
from engine.streams import stream
from engine.training import PROCEDURES
from engine.training.adversary import ascend, l2, normalised
from engine.training.base import Batch
from tests.procedures import (
    ADVERSARIAL,
    GREY,
    IMAGES,
    LABELS,
    MODEL,
    ONE,
    SIGMA,
    WEIGHTS,
    ZERO,
    K,
    W,
    given,
    linear,
    normal,
    prepared,
    procedure,
)


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("steps", [2, 5, 10])
@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_smoothadv_goes_straight_to_its_radius_where_all_is_linear(draws, steps, strength):
    """Steps of 2 ε/T along one direction reach the radius after half of them, and then stay there."""
    of = procedure("smoothadv", draws=draws, adversary_steps=steps, adversary_size=0.3)
    noise = SIGMA * normal(2, draws, 1, 4, 4, name="noise")
    (change,) = prepared(of, linear, Batch(GREY, ONE, noise, strength=strength)).constants
    expected = 0.3 * strength * torch.stack([-W, W]) / 5
    assert torch.allclose(change, expected, rtol=1e-9)


def test_smoothadv_stops_at_the_pixel_range_and_goes_on_along_it():
    """From a black pixel of weight 3 it cannot go down; all of the change falls to the pixel of weight −4."""
    images = GREY[:1].clone()
    images[0, 0, 0, 0] = 0.0
    of = procedure("smoothadv", draws=4, adversary_steps=10, adversary_size=0.3)
    batch = Batch(images, ONE[:1], ZERO[:1])
    (change,) = prepared(of, linear, batch).constants
    expected = torch.zeros_like(images)
    expected[0, 0, 0, 3] = 0.3
    assert torch.allclose(change, expected, rtol=1e-9)
    # with room for 0.5 alone, a radius beyond it is not reached
    (change,) = prepared(procedure("smoothadv", adversary_size=2.0), linear, batch).constants
    assert torch.allclose(change, expected / 0.3 * 0.5, rtol=1e-9)


def test_one_step_of_smoothadv_is_as_long_as_its_share():
    """T = 4: one step is half of the radius; the sum is taken from the changes of 1, 2, 3 steps."""
    lengths = []
    for steps in range(1, 5):
        step = lambda gradient: 0.2 * normalised(gradient)  # noqa: E731
        change = ascend(linear, Batch(GREY, ONE, ZERO), step=step, steps=steps, radius=0.5)
        lengths.append(float(l2(change)[0]))
    assert lengths == pytest.approx([0.2, 0.4, 0.5, 0.5])


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversaries_raise_the_smoothed_loss_within_range_and_radius(name):
    of, batch = given(name)
    f, change = with_weights(MODEL, WEIGHTS), batch.constants[0]

    def smoothed(images: Tensor) -> Tensor:
        logits = f((images[:, None] + batch.noise).flatten(0, 1)).view(len(images), -1, K)
        return -logits.softmax(dim=2).mean(dim=1).log()[torch.arange(len(images)), LABELS]

    assert (smoothed(IMAGES + change) > smoothed(IMAGES)).all()
    assert float((IMAGES + change).min()) >= -1e-12
    assert float((IMAGES + change).max()) <= 1 + 1e-12
    if name != "smoothmix":
        assert float(l2(change).max()) <= of.settings.adversary_size * (1 + 1e-12)


@pytest.mark.parametrize("name", ["smoothadv", "smoothadv-pacd"])
def test_without_a_change_adversarial_training_is_gaussian_augmentation(name):
    of, batch = given(name)
    f = with_weights(MODEL, WEIGHTS)
    batch = prepared(of, f, batch._replace(strength=0.0))
    assert (batch.constants[0] == 0).all()
    assert torch.equal(of.loss(f, batch), procedure("gaussian").loss(f, batch))


def test_without_a_gradient_the_adversary_stays():
    def certain(images: Tensor) -> Tensor:
        return torch.tensor([1e6, 0.0, 0.0]).expand(len(images), 3) + 0 * images.flatten(1)[:, :3]

    images = torch.rand(4, 1, 4, 4, generator=stream(0, "images"))
    labels = torch.zeros(4, dtype=torch.int64)
    for name in ADVERSARIAL:
        of = procedure(name)
        noise = of.draw_noise(images, generator=stream(0, "noise"))
        assert (prepared(of, certain, Batch(images, labels, noise)).constants[0] == 0).all()


def test_the_authors_adversary_is_adam_cut_at_the_range_and_scaled_to_the_radius():
    """Two steps written out, TensorFlow's form of Adam, with the gradient of the sum of cross-entropies."""
    of = procedure("smoothadv-pacd", draws=1, adversary_steps=2, adversary_size=0.8)
    noise = SIGMA * normal(len(IMAGES), 1, 1, 4, 4, name="noise")
    f = with_weights(MODEL, WEIGHTS)
    change, m, v = torch.zeros_like(IMAGES), 0.0, 0.0
    for t in (1, 2):
        at = (IMAGES + change).requires_grad_()
        cross_entropy(f(at + noise[:, 0]), LABELS, reduction="sum").backward()
        m, v = 0.9 * m + 0.1 * at.grad, 0.999 * v + 0.001 * at.grad**2
        change = change + 0.8 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v**0.5 + 1e-8)
        change = (IMAGES + change).clamp(0, 1) - IMAGES
        for i, part in enumerate(change):
            size = math.sqrt(sum(pixel**2 for pixel in part.flatten().tolist()))
            change[i] = part * min(1, 0.8 / size)
    found = prepared(of, f, Batch(IMAGES, LABELS, noise)).constants[0]
    assert torch.allclose(found, change, rtol=1e-9, atol=1e-12)
    assert type(of).fixed_noise
    assert not any(PROCEDURES[name].fixed_noise for name in PROCEDURES if name != "smoothadv-pacd")


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_smoothmixs_steps_have_their_length_and_no_limit_but_the_range(strength):
    of = procedure("smoothmix", adversary_steps=3, adversary_size=0.1)
    change, _ = prepared(of, linear, Batch(GREY, ONE, ZERO, strength=strength)).constants
    assert torch.allclose(change, 0.3 * torch.stack([-W, W]) / 5, rtol=1e-9)


def test_how_far_smoothmix_goes_is_uniform_up_to_one_half():
    batch = Batch(torch.zeros(4000, 1, 1, 1), torch.zeros(4000, dtype=torch.int64), torch.zeros(4000, 1, 1, 1, 1))
    of = procedure("smoothmix", adversary_steps=0)
    _, far = prepared(of, lambda images: images.flatten(1), batch).constants
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(far.mean()) - 0.25) < 5 * 0.5 / math.sqrt(12 * 4000)
    assert abs(float((far < 0.125).double().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)
