"""PACD: clean-label poison that lowers the certified radius of a class, by bilevel optimisation with ApproxGrad.

    min over x_poison of upper(w*, x_poison)   with   w* = argmin_w lower(w, x_poison),   ‖x_poison − x_clean‖∞ ≤ ε

upper: mean soft radius of held-out target-class images.
lower: the victim's own training loss on clean and poison images.
Source: Mehra, Kailkhura, Chen, Hamm, CVPR 2021, arXiv:2012.01274, Algorithm 1, with the released code's settings.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.config import AttackConfig
from engine.data import LabelledImages
from engine.hypergradient import Adam, ApproxGrad, Loss
from engine.models import build, flat_weights, with_weights
from engine.smoothing import Classifier, gaussian_noise, noisy_copies, soft_radius
from engine.streams import stream
from engine.threat import project_linf
from engine.training import Procedure

MOST_RESTARTS = 3  # surrogates that may diverge before the attack gives up


@dataclass(frozen=True)
class AttackRecord:
    """One upper step. Losses are of the minibatch just used; delta [P, C, H, W] is the whole poison after the step."""

    step: int
    steps: int
    delta: Tensor
    upper_loss: float  # soft radius of the target class at the surrogate, pixel units
    lower_loss: float
    relative_residual: float
    event: str | None = None  # what went wrong, in words


def upper_loss(
    base_classifier: Classifier, images: Tensor, labels: Tensor, noise: Tensor, *, sigma: float, config: AttackConfig
) -> Tensor:
    """Mean soft radius of images [N, C, H, W] under noise [N, M, C, H, W]; wrong ones count as 0 (method: f)."""
    logits = base_classifier(noisy_copies(images, noise)).view(*noise.shape[:2], -1)
    radii = soft_radius(
        logits, labels, sigma=sigma, inverse_temperature=config.inverse_temperature, squeeze=config.squeeze
    )
    return radii.mean()


def pacd(
    training: LabelledImages,
    validation: LabelledImages,
    *,
    indices: Tensor,
    epsilon: float,
    procedure: Procedure,
    architecture: str,
    sigma: float,
    config: AttackConfig,
    seed: int,
) -> Iterator[AttackRecord]:
    """Optimises the poison of training[indices], yielding after every upper step; the last record has the result.

    Args:
        validation: held-out target-class images, the attacker's view of the class.
        indices: positions [P] of the images that may change, all of the target class.
    Raises: ValueError without validation images; FloatingPointError when more than MOST_RESTARTS surrogates in a row
        diverged.
    Departs: Adam's state for the poison belongs to images, where the authors' belongs to minibatch slots, so that
        their momentum leaks between images; all surrogates live equally long, where the authors' first lives one
        epoch less; a diverged surrogate is replaced at once and reported, where theirs is replaced unreported.
    """
    if len(validation) == 0:
        raise ValueError("validation must have images of the target class, got none: draw more of them")
    device = training.images.device
    x_clean, poison_labels = training.images[indices], training.labels[indices]
    x_poison = x_clean.clone()
    untouched = torch.ones(len(training), dtype=torch.bool, device=device)
    untouched[indices] = False
    clean = training.select(untouched)
    draw = stream(seed, "attack", device=device)
    clean_batches = _shuffled_batches(len(clean), config.clean_batch, generator=draw)
    lives, diverged, blind = 0, 0, False
    age = config.restart_every  # so that the first step begins a life
    if len(indices) == 0:
        return

    for step in range(config.upper_steps):
        warmup = 0
        if age == config.restart_every:
            generator = stream(seed, "surrogate", lives, device=device)
            model = build(architecture, channels=x_clean.shape[1], generator=generator)
            bilevel = _fresh_approx_grad(model, config)
            adam = Adam(x_clean, learning_rate=config.poison_learning_rate, per_row=True)
            lives, age, warmup = lives + 1, 0, config.warmup_steps
        for _ in range(warmup):
            rows = _sample(len(indices), config.poison_batch, generator=draw)
            lower = _lower_level(model, clean.select(next(clean_batches)), poison_labels[rows], procedure, sigma, draw)
            bilevel.descend(lower, x_poison[rows], steps=1)
        age += 1

        rows = _sample(len(indices), config.poison_batch, generator=draw)
        lower = _lower_level(model, clean.select(next(clean_batches)), poison_labels[rows], procedure, sigma, draw)
        upper = _upper_level(model, validation, sigma, config, draw)
        lower_value = bilevel.descend(lower, x_poison[rows], steps=config.lower_steps)
        found = bilevel.hypergradient(lower, upper, x_poison[rows])

        event = None
        if found.upper_loss == 0 and not blind:
            event = f"step {step + 1}: the surrogate gets no held-out image right, so there is nothing to differentiate"
        blind = found.upper_loss == 0
        if bool(found.gradient.isfinite().all()) and math.isfinite(lower_value):
            moved = x_poison[rows] + adam.step(found.gradient, rows)
            x_poison[rows] = project_linf(moved, x_clean[rows], epsilon=epsilon)
            diverged = 0
        else:
            event = f"step {step + 1}: the surrogate diverged (lower loss {lower_value:.3g}); it starts again"
            diverged, age = diverged + 1, config.restart_every
            if diverged > MOST_RESTARTS:
                raise FloatingPointError(f"{diverged} surrogates in a row diverged. {event}")
        yield AttackRecord(
            step + 1,
            config.upper_steps,
            x_poison - x_clean,
            found.upper_loss,
            lower_value,
            found.relative_residual,
            event,
        )


def _lower_level(
    model: nn.Module,
    batch: LabelledImages,
    poison_labels: Tensor,
    procedure: Procedure,
    sigma: float,
    draw: torch.Generator,
) -> Loss:
    """The victim's loss on a clean minibatch and poison images, with fresh noise at every call (method: g)."""
    labels = torch.cat([batch.labels, poison_labels])

    def loss(weights: Tensor, x_poison: Tensor) -> Tensor:
        images = torch.cat([batch.images, x_poison])
        noise = procedure.draw_noise(images, sigma=sigma, generator=draw)
        return procedure.loss(with_weights(model, weights), images, labels, noise)

    return loss


def _upper_level(
    model: nn.Module, validation: LabelledImages, sigma: float, config: AttackConfig, draw: torch.Generator
) -> Loss:
    """The soft radius of one minibatch of held-out images, with fresh noise at every call (method: f)."""
    held_out = validation.select(_sample(len(validation), config.upper_batch, generator=draw))
    shape = (len(held_out), config.upper_noise, *held_out.images.shape[1:])

    def loss(weights: Tensor, _x_poison: Tensor) -> Tensor:
        noise = gaussian_noise(shape, sigma=sigma, generator=draw)
        classifier = with_weights(model, weights)
        return upper_loss(classifier, held_out.images, held_out.labels, noise, sigma=sigma, config=config)

    return loss


def _fresh_approx_grad(model: nn.Module, config: AttackConfig) -> ApproxGrad:
    return ApproxGrad(
        flat_weights(model),
        linear_solver=config.linear_solver,
        linear_steps=config.linear_steps,
        damping=config.damping,
        weights_learning_rate=config.weights_learning_rate,
        linear_learning_rate=config.linear_learning_rate,
    )


def _sample(population: int, size: int, *, generator: torch.Generator) -> Tensor:
    """At most `size` positions drawn without replacement."""
    return torch.randperm(population, generator=generator, device=generator.device)[:size]


def _shuffled_batches(population: int, size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    """Epoch after epoch of shuffled minibatches of positions, the last partial one dropped, for ever."""
    while True:
        order = _sample(population, population, generator=generator)
        yield from order.split(size)[: max(1, population // size)]
