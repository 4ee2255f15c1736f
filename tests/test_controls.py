"""The controls: random noise and shuffled signs use their budget, keep sizes, and are balanced."""

import math

import torch
from torch import Tensor

from engine.attacks.random_noise import random_noise, random_signs
from engine.attacks.shuffled_signs import shuffled_signs
from engine.data import LabelledImages
from engine.streams import stream
from engine.threat import Poison, check


def clean_images(count: int = 200) -> Tensor:
    """With many pixels at 0, at 1, and near both."""
    return (1.4 * torch.rand(count, 1, 28, 28, generator=stream(0, "clean")) - 0.2).clamp(0, 1)


def test_random_noise_uses_its_whole_budget_where_the_pixel_range_allows():
    x, epsilon = clean_images(), 0.1
    delta = random_noise(x, epsilon=epsilon, generator=stream(0, "noise"))
    check_control(x, delta, epsilon)
    inside = (x >= epsilon) & (x <= 1 - epsilon)
    assert torch.allclose(delta[inside].abs(), torch.tensor(epsilon), atol=1e-6)
    room = torch.where(delta > 0, 1 - x, x)  # elsewhere it is cut at the range, or falls to the side without room
    assert torch.allclose(
        delta.abs()[~inside & (delta != 0)], room.clamp(max=epsilon)[~inside & (delta != 0)], atol=1e-6
    )
    assert ((x == 0) | (x == 1))[delta == 0].all()


def test_shuffled_signs_keep_every_size_where_the_pixel_range_allows():
    x, epsilon = clean_images(), 0.1
    poison = random_noise(x, epsilon=epsilon, generator=stream(0, "noise"))
    poison = poison * torch.rand(x.shape, generator=stream(0, "sizes"))
    delta = shuffled_signs(x, poison, epsilon=epsilon, generator=stream(1, "signs"))
    check_control(x, delta, epsilon)
    size = poison.abs()
    allowed = (x >= size) & (x <= 1 - size)
    assert torch.allclose(delta.abs()[allowed], size[allowed], atol=1e-6)
    assert (delta.abs() <= size + 1e-6).all()
    changed = allowed & (size > 1e-3)
    n = int(changed.sum())
    # half of the signs turn; 5 standard errors: false alarm 5.7e-7
    assert abs(int((delta.sign() != poison.sign())[changed].sum()) - n / 2) < 5 * math.sqrt(n) / 2


def check_control(x: Tensor, delta: Tensor, epsilon: float) -> None:
    images = LabelledImages(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)))
    check(Poison(delta, torch.arange(len(x))), images, target_class=0, epsilon=epsilon)


def test_controls_without_a_budget_change_nothing():
    x = clean_images(3)
    assert (random_noise(x, epsilon=0.0, generator=stream(0, "noise")) == 0).all()
    assert (shuffled_signs(x, torch.zeros_like(x), epsilon=0.1, generator=stream(0, "noise")) == 0).all()


def test_controls_follow_from_their_generator():
    x = clean_images(3)
    one, same, other = (random_noise(x, epsilon=0.1, generator=stream(seed, "noise")) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_random_signs_are_balanced_and_independent_of_their_neighbours():
    signs = random_signs(torch.empty(400, 500), generator=stream(0, "signs")).double()
    n = signs.numel()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(signs.sum())) < 5 * math.sqrt(n)
    assert abs(float((signs[:, 1:] * signs[:, :-1]).sum())) < 5 * math.sqrt(n)
    assert abs(float((signs[1:] * signs[:-1]).sum())) < 5 * math.sqrt(n)
