"""Noise made on a surrogate, and gradient matching: each by what it claims to do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from engine import models
from engine.attacks.gradient_matching import mismatch_slope
from engine.attacks.pacd import PerImage
from engine.config import ProcedureConfig
from engine.hypergradient import ApproxGrad, Loss, gradient
from engine.smoothing import gaussian_noise
from engine.streams import stream
from engine.training.base import Batch
from engine.training.gaussian import Gaussian
from engine.training.smoothadv import SmoothAdv
from tests.rivals import CONFIG, GAUSSIAN, PROBLEM, SIGMA, TARGET, TRAINING, at, attacked, random_change, tiny_networks

__all__ = ["tiny_networks"]  # a fixture that works by being here

LONG: dict[str, Any] = dict(upper_steps=30, restart_every=15, warmup_steps=30, poison_batch=10)


@pytest.fixture(scope="module")
def judge() -> ApproxGrad:
    """A surrogate that no attack has seen, trained on clean data."""
    model = models.build("tiny", shape=(1, 8, 8), num_classes=3, generator=stream(7, "judge"))
    surrogate = at(models.flat_weights(model))
    noise = gaussian_noise((60, 1, 1, 8, 8), sigma=SIGMA, generator=stream(7, "noise"))
    surrogate.descend(lambda w, x: on(w, x, TRAINING.labels, noise), TRAINING.images, steps=20)
    return surrogate


def on(weights: Tensor, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """The Gaussian procedure's loss of a tiny network."""
    model = models.build("tiny", shape=(1, 8, 8), num_classes=3, generator=stream(0, "any"))
    return GAUSSIAN.loss(models.with_weights(model, weights), Batch(images, labels, noise))


def loss_of(judge: ApproxGrad, delta: Tensor) -> float:
    """The judge's loss of the poison images, averaged over 50 noise draws each."""
    noise = gaussian_noise((len(delta), 50, 1, 8, 8), sigma=SIGMA, generator=stream(8, "noise"))
    return float(on(judge.weights, PROBLEM.x_clean + delta, torch.full((len(delta),), TARGET), noise))


def test_error_minimising_lowers_and_error_maximising_raises_the_loss_beyond_any_random_noise(judge):
    noise = [loss_of(judge, random_change(index)) for index in range(20)]
    low, high = (loss_of(judge, attacked(name, **LONG)[-1].delta) for name in ("error-minimising", "error-maximising"))
    assert low < 0.8 * min(noise)
    assert high > 1.25 * max(noise)


class Spy(Gaussian):
    """Keeps the target-class images of every minibatch whose loss is asked for."""

    def loss(self, base_classifier, batch: Batch) -> Tensor:
        SEEN.append(batch.images[batch.labels == TARGET].detach())
        return super().loss(base_classifier, batch)


SEEN: list[Tensor] = []


@pytest.mark.parametrize(("name", "clean"), [("error-minimising", False), ("error-maximising", True)])
def test_only_error_maximising_surrogates_learn_from_clean_images(name, clean):
    SEEN.clear()
    attacked(name, replace(PROBLEM, procedure=Spy(GAUSSIAN.settings, SIGMA)), upper_steps=3, warmup_steps=0)
    known = {image.numpy().tobytes() for image in TRAINING.images}
    poison = SEEN[1::2]  # each evaluation has a clean part and one of the images that may change
    unchanged = [all(image.numpy().tobytes() in known for image in images) for images in poison]
    # a step: two lower steps, and the loss that the poison descends, at the poison
    learning, descended = [*unchanged[3::3], *unchanged[4::3]], unchanged[5::3]
    assert learning == [clean] * 4
    assert descended == [False] * 2


class SpyOnTheAdversary(SmoothAdv):
    """Keeps the target-class images that the adversary of every minibatch answers."""

    def prepare(self, base_classifier, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        SEEN.append(batch.images[batch.labels == TARGET].detach())
        return super().prepare(base_classifier, batch, generator=generator)


def test_where_a_surrogate_learns_from_clean_images_its_adversary_answers_those():
    SEEN.clear()
    settings = ProcedureConfig(name="smoothadv", draws=2, adversary_steps=1, adversary_size=0.5)
    attacked(
        "error-maximising",
        replace(PROBLEM, procedure=SpyOnTheAdversary(settings, SIGMA)),
        upper_steps=3,
        warmup_steps=0,
    )
    known = {image.numpy().tobytes() for image in TRAINING.images}
    unchanged = [all(image.numpy().tobytes() in known for image in images) for images in SEEN]
    assert unchanged == [True, True, True, False, True, False]  # the first poison is still what it was


def given_losses(dtype: torch.dtype) -> tuple[Loss, Loss]:
    """(lower, upper) of a linear 64-3 classifier, without any draw: cross-entropy, and minus the true class's logit."""
    clean, y = TRAINING.images[:9].to(dtype), TRAINING.labels[:9]

    def lower(w: Tensor, x: Tensor) -> Tensor:
        labels = torch.cat([y, torch.full((len(x),), TARGET)])
        return nn.functional.cross_entropy(torch.cat([clean, x]).flatten(1) @ w.view(64, 3), labels)

    def upper(w: Tensor, _: Tensor) -> Tensor:
        return (PROBLEM.validation.images.to(dtype).flatten(1) @ w.view(64, 3)).softmax(dim=1)[:, TARGET].mean()

    return lower, upper


def cosine(weights: Tensor, x: Tensor) -> Tensor:
    (_, found), (_, wanted) = (gradient(loss, weights, x) for loss in given_losses(x.dtype))
    return cosine_similarity(found, wanted, dim=0)


def test_the_mismatch_has_the_slope_of_central_differences():
    weights = torch.randn(192, generator=stream(0, "weights"), dtype=torch.float64)
    x = PROBLEM.x_clean[:2].double()
    found = mismatch_slope(at(weights), *given_losses(torch.float64), x)
    for pixel in (0, 5, 64, 127):
        step = torch.zeros_like(x)
        step.view(-1)[pixel] = 1e-5
        slope = -(cosine(weights, x + step) - cosine(weights, x - step)) / 2e-5
        assert float(found.gradient.view(-1)[pixel]) == pytest.approx(float(slope), rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_gradient_matching_raise_the_cosine(seed):
    weights = torch.randn(192, generator=stream(seed, "weights"))
    unknowns, rows = PerImage(PROBLEM, CONFIG.model_copy(update=dict(poison_learning_rate=0.01))), torch.arange(10)
    before = cosine(weights, unknowns.images(rows))
    for _ in range(20):
        found = mismatch_slope(at(weights), *given_losses(torch.float32), unknowns.images(rows))
        unknowns.update(found.gradient, rows)
    noise = cosine(weights, PROBLEM.x_clean + random_change())
    assert cosine(weights, unknowns.images(rows)) > before + 2 * (noise - before).abs()


def test_a_surrogate_that_gets_nothing_right_gives_no_direction():
    """The upper loss and its gradient are then 0, and so must the step be."""
    lower, _ = given_losses(torch.float32)
    found = mismatch_slope(at(torch.ones(192)), lower, lambda w, _: 0 * w.sum(), PROBLEM.x_clean)
    assert (found.gradient == 0).all()
