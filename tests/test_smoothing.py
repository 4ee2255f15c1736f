"""Noise, votes and the soft radius."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from engine.smoothing import gaussian_noise, noisy_copies, soft_radius
from engine.streams import stream

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def test_noise_has_the_mean_and_the_spread_that_it_should_have():
    noise = gaussian_noise((1000, 100), sigma=0.3, generator=stream(0, "test")).double() / 0.3
    n = noise.numel()
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(noise.mean())) < 5 / math.sqrt(n)
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt(2 / n)


def test_noisy_copies_are_image_plus_noise_with_an_images_copies_adjacent():
    images = torch.arange(2.0).reshape(2, 1, 1, 1)
    noise = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).reshape(2, 3, 1, 1, 1)
    expected = torch.tensor([0.1, 0.2, 0.3, 1.4, 1.5, 1.6])
    assert torch.equal(noisy_copies(images, noise), expected.reshape(6, 1, 1, 1))


def logits_of(probabilities: Tensor, inverse_temperature: float = 16.0) -> Tensor:
    return probabilities.log() / inverse_temperature


def test_the_soft_radius_of_known_probabilities_is_exact():
    draws = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], dtype=torch.float64)  # mean 0.6, 0.15, 0.25
    found = soft_radius(logits_of(draws)[None], torch.tensor([0]), sigma=0.5, squeeze=1e-3)
    expected = 0.25 * (norm.ppf(0.998 * 0.6 + 0.001) - norm.ppf(0.998 * 0.25 + 0.001))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_with_two_classes_the_soft_radius_is_sigma_times_the_squeezed_quantile():
    draws = torch.tensor([[[0.8, 0.2]]], dtype=torch.float64)
    found = soft_radius(logits_of(draws, 3.0), torch.tensor([0]), sigma=2.0, inverse_temperature=3.0, squeeze=0.01)
    assert float(found) == pytest.approx(2.0 * norm.ppf(0.98 * 0.8 + 0.01), rel=1e-12)


def test_the_soft_radius_of_a_wrong_image_is_zero_and_so_is_its_gradient():
    logits = torch.randn(6, 5, 4, generator=stream(0, "test"), dtype=torch.float64).requires_grad_()
    top = (16 * logits).softmax(dim=2).mean(dim=1).argmax(dim=1)
    labels = torch.where(torch.arange(6) < 3, top, (top + 1) % 4)
    radii = soft_radius(logits, labels, sigma=0.5)
    radii.sum().backward()
    assert (radii[:3] > 0).all()
    assert (radii[3:] == 0).all()
    assert (logits.grad[:3].abs().sum(dim=(1, 2)) > 0).all()
    assert (logits.grad[3:] == 0).all()


@pytest.mark.parametrize("inverse_temperature", [1.0, 16.0])
def test_the_soft_radius_has_the_derivative_that_finite_differences_find(inverse_temperature):
    logits = 0.3 * torch.randn(5, 4, 3, generator=stream(0, "test"), dtype=torch.float64)
    labels = (inverse_temperature * logits).softmax(dim=2).mean(dim=1).argmax(dim=1)
    labels[-1] = (labels[-1] + 1) % 3  # one wrong image among them
    assert torch.autograd.gradcheck(
        lambda z: soft_radius(z, labels, sigma=0.5, inverse_temperature=inverse_temperature),
        logits.requires_grad_(),
    )


@quickly
@given(
    st.integers(0, 10**6),
    st.floats(0, 1000),
    st.floats(0.01, 4),
    st.sampled_from([1e-4, 1e-3, 0.01, 0.4]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_no_soft_radius_is_negative_or_above_its_cap_or_has_an_infinite_gradient(seed, scale, sigma, squeeze, dtype):
    generator = stream(seed, "test")
    logits = (scale * torch.randn(8, 3, 5, generator=generator, dtype=dtype)).requires_grad_()
    labels = torch.randint(0, 5, (8,), generator=generator)
    radii = soft_radius(logits, labels, sigma=sigma, squeeze=squeeze)
    radii.sum().backward()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert (radii >= 0).all()
    assert float(radii.detach().max()) <= sigma * norm.ppf(1 - squeeze) * (1 + tolerance)
    assert logits.grad.isfinite().all()


def test_logits_that_are_certain_reach_the_cap():
    logits = torch.tensor([[[1000.0, 0.0, 0.0]]], dtype=torch.float64)
    assert float(soft_radius(logits, torch.tensor([0]), sigma=0.5)) == pytest.approx(0.5 * norm.ppf(0.999), rel=1e-9)
