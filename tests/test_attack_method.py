"""Steps of the attack against a second derivation, in float64, from the method's formulas."""

import math
from collections import defaultdict, deque
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import engine.attacks.levels as levels
from engine import models
from engine.data import LabelledImages
from engine.streams import stream
from tests.attacking import CONFIG, TARGET, TRAINING, VALIDATION, attack, attacked, procedure, tiny, tiny_networks

__all__ = ["tiny_networks"]  # a fixture that works by being here

STEPS = 3
DOUBLE = CONFIG.model_copy(
    update=dict(
        upper_steps=STEPS,
        restart_every=STEPS,
        warmup_steps=1,
        linear_solver="adam",
        linear_steps=3,
        clean_batch=40,
        poison_batch=20,
        upper_batch=10,
        poison_learning_rate=0.02,
    )
)
SECOND_SIGMA = 0.3


def second_logits(v: Tensor, x: Tensor) -> Tensor:
    """16-6-10 with softplus, from the weight vector."""
    first, bias, second, last = v[:96].view(6, 16), v[96:102], v[102:162].view(10, 6), v[162:]
    return torch.log(1 + torch.exp(x.flatten(1) @ first.T + bias)) @ second.T + last


def second_lower(v: Tensor, u: Tensor, clean: LabelledImages, labels: Tensor, noise: Tensor) -> Tensor:
    """g: the sum of cross-entropies of clean and poison images with noise, divided by their number."""
    z = second_logits(v, torch.cat([clean.images, u]) + noise[:, 0])
    y = torch.cat([clean.labels, labels])
    return (torch.log(torch.exp(z).sum(dim=1)) - z[torch.arange(len(y)), y]).sum() / len(y)


def second_upper(v: Tensor, held_out: LabelledImages, noise: Tensor) -> Tensor:
    """f: sigma / 2 / n times the sum, over images whose top class is right, of q(p_A) − q(p_B)."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y, draws in zip(held_out.images, held_out.labels, noise, strict=True):
        z = 16 * second_logits(v, x + draws)
        p = (torch.exp(z) / torch.exp(z).sum(dim=1, keepdim=True)).mean(dim=0)
        order = p.argsort(descending=True)
        if order[0] == y:
            quantiles = [math.sqrt(2) * torch.erfinv(2 * (0.998 * p[i] + 0.001) - 1) for i in order[:2]]
            total = total + quantiles[0] - quantiles[1]
    return SECOND_SIGMA / 2 * total / len(held_out)


def second_lower_along_p(u: Tensor, v: Tensor, p: Tensor, clean: LabelledImages, labels: Tensor, noise: Tensor):
    """g_v . p by a central difference in the weights, in place of a second derivative."""
    ahead, behind = (second_lower(v + step * p, u, clean, labels, noise) for step in (1e-4, -1e-4))
    return (ahead - behind) / 2e-4


def slope(loss, at: Tensor, *given) -> Tensor:
    """The derivative in the first argument."""
    return torch.autograd.functional.jacobian(lambda z: loss(z, *given), at)


def dense_hessian(loss, at: Tensor, *given) -> Tensor:
    return torch.autograd.functional.hessian(lambda z: loss(z, *given), at)


class SecondAdam:
    def __init__(self, learning_rate: float) -> None:
        self.m, self.v, self.t, self.learning_rate = 0.0, 0.0, 0, learning_rate

    def step(self, g: Tensor) -> Tensor:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        rate = self.learning_rate * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        return rate * self.m / (self.v**0.5 + 1e-8)


def test_upper_steps_are_those_of_the_method_with_the_same_noise(monkeypatch):
    """Warm-up, lower steps, p and u, with all Adam states and p carried over three upper steps of one life."""
    monkeypatch.setitem(models.BUILDERS, "tiny", tiny(torch.float64))
    for module in (attack, levels):
        monkeypatch.setattr(module, "sample", lambda population, size, *, generator: torch.arange(population)[:size])
    drawn: dict[tuple[int, ...], deque[Tensor]] = defaultdict(deque)
    source = stream(0, "given noise")

    def given_noise(shape, *, sigma: float, generator: torch.Generator) -> Tensor:
        assert sigma == SECOND_SIGMA
        noise = sigma * torch.randn(shape, generator=source, dtype=torch.float64)
        drawn[tuple(shape)].append(noise)
        return noise

    monkeypatch.setattr(levels, "gaussian_noise", given_noise)
    monkeypatch.setattr("engine.training.base.gaussian_noise", given_noise)

    v = models.flat_weights(models.build("tiny", shape=(1, 4, 4), generator=stream(0, "surrogate", 0)))
    training, validation = (replace(part, images=part.images.double()) for part in (TRAINING, VALIDATION))
    # relabel, so that the untrained surrogate is right about most validation images, and wrong about some
    answers = second_logits(v, validation.images).argmax(dim=1)
    target = int(answers.mode().values)
    validation = replace(validation, labels=torch.full((10,), target))
    training = replace(training, labels=torch.where(training.labels == TARGET, target, (training.labels + 1) % 3 + 5))
    indices = (training.labels == target).nonzero().squeeze(1)
    assert len(indices) == 20

    records = attacked(
        DOUBLE,
        training=training,
        validation=validation,
        indices=indices,
        epsilon=0.03,
        procedure=procedure(sigma=SECOND_SIGMA),
    )

    lower_noise, upper_noise = drawn[60, 1, 1, 4, 4], drawn[10, 4, 1, 4, 4]
    clean = training.select(training.labels != target)
    u_clean, labels = training.images[indices], training.labels[indices]
    u, p = u_clean.clone(), torch.zeros_like(v)
    adam_v, adam_p, adam_u = SecondAdam(0.05), SecondAdam(0.01), SecondAdam(0.02)

    v = v - adam_v.step(slope(second_lower, v, u, clean, labels, lower_noise.popleft()))
    upper_values = []
    for record in records:
        for _ in range(2):
            noise = lower_noise.popleft()
            lower_value = float(second_lower(v, u, clean, labels, noise))
            v = v - adam_v.step(slope(second_lower, v, u, clean, labels, noise))
        for _ in range(3):
            noise = upper_noise.popleft()
            f, f_v = float(second_upper(v, validation, noise)), slope(second_upper, v, validation, noise)
            h = dense_hessian(second_lower, v, u, clean, labels, lower_noise.popleft())
            damped = h + 0.1 * torch.eye(len(v), dtype=torch.float64)
            p = p - adam_p.step(2 * damped @ (damped @ p - f_v))
        g_uv_p = slope(second_lower_along_p, u, v, p, clean, labels, lower_noise.popleft())
        u = (u + adam_u.step(g_uv_p)).clamp(0, 1)
        u = u_clean + (u - u_clean).clamp(-0.03, 0.03)

        assert torch.allclose(record.delta, u - u_clean, rtol=0, atol=1e-6)
        assert record.lower_loss == pytest.approx(lower_value, rel=1e-9)
        assert record.upper_loss == pytest.approx(f, rel=1e-9)
        assert record.relative_residual == pytest.approx(float((damped @ p - f_v).norm() / f_v.norm()), rel=1e-9)
        upper_values.append(f)
    assert not lower_noise  # as many draws as the method makes, and no more
    assert not upper_noise
    assert min(upper_values) > 0
    assert (records[0].delta.abs() > 0.019).any()  # steps of Adam in full
    assert (records[-1].delta.abs() > 0.0299).any()  # and stopped by the budget


def test_the_upper_loss_is_the_mean_soft_radius_with_wrong_images_counted_as_zero():
    p = torch.tensor([[0.9, 0.06, 0.04], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], dtype=torch.float64)
    images, labels = torch.arange(3.0).reshape(3, 1, 1, 1), torch.tensor([0, 0, 0])

    def classifier(noisy: Tensor) -> Tensor:
        return p[noisy.flatten().round().long()].log() / 16

    def q(t: float) -> float:
        return norm.ppf(0.998 * t + 0.001)

    found = levels.upper_loss(classifier, images, labels, torch.zeros(3, 5, 1, 1, 1), sigma=0.5)
    expected = 0.25 / 3 * (q(0.9) - q(0.06) + q(0.6) - q(0.3))
    assert float(found) == pytest.approx(expected, rel=1e-9)
