"""PACD's two levels as plain functions of weights (through a classifier), images and given noise.

    min over x_poison of upper(w*)   with   w* = argmin_w lower(w, x_poison),   ‖x_poison − x_clean‖∞ ≤ ε

Source: Mehra, Kailkhura, Chen, Hamm, CVPR 2021, arXiv:2012.01274, Section 3, with the released code's settings.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.attacks.base import AttackProblem
from engine.augmentation import augment
from engine.config import AttackConfig
from engine.hypergradient import Loss
from engine.models import with_weights
from engine.smoothing import Classifier, gaussian_noise, noisy_copies, soft_radius
from engine.streams import stream


def upper_loss(
    base_classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    sigma: float,
    inverse_temperature: float = 16.0,
    squeeze: float = 1e-3,
) -> Tensor:
    """f: mean soft radius of images [N, C, H, W] under noise [N, M, C, H, W]; wrong ones count as 0. A scalar."""
    logits = base_classifier(noisy_copies(images, noise)).view(*noise.shape[:2], -1)
    return soft_radius(logits, labels, sigma=sigma, inverse_temperature=inverse_temperature, squeeze=squeeze).mean()


class Levels:
    """Draws the minibatches of both levels, each as a loss of (weights [W], x_poison [B, C, H, W]).

    Noise and augmentation are fresh at every call of a loss, unless the settings fix one noise draw per image. Where
    the procedure has an adversary, its answer holds for the whole minibatch, and so do the draws that it answered.
    """

    def __init__(self, problem: AttackProblem, config: AttackConfig, *, seed: int, generator: torch.Generator) -> None:
        self._problem, self._config, self._seed, self._draw = problem, config, seed, generator
        training, procedure, device = problem.training, problem.procedure, generator.device
        touched = torch.zeros(len(training), dtype=torch.bool, device=device)
        touched[problem.indices] = True
        self._clean = (~touched).nonzero().squeeze(1)
        self._batches = _shuffled_batches(len(self._clean), config.clean_batch, generator=generator)
        self._lower_noise = self._upper_noise = None
        if config.fixed_lower_noise:
            fixed = stream(seed, "fixed lower noise", device=device)
            self._lower_noise = procedure.draw_noise(training.images, generator=fixed)
        if config.fixed_upper_noise:
            shape = (len(problem.validation), config.upper_noise, *training.images.shape[1:])
            fixed = stream(seed, "fixed upper noise", device=device)
            self._upper_noise = gaussian_noise(shape, sigma=procedure.sigma, generator=fixed)
        self._minibatches = 0

    def lower(self, model: nn.Module, weights: Tensor, x_poison: Tensor, rows: Tensor, *, strength: float) -> Loss:
        """g on the next clean minibatch and the poison images problem.indices[rows], which are x_poison now."""
        problem, procedure = self._problem, self._problem.procedure
        clean = self._clean[next(self._batches)]
        which = torch.cat([clean, problem.indices[rows]])
        clean_images, labels = problem.training.images[clean], problem.training.labels[which]
        self._minibatches += 1
        held = f"minibatch {self._minibatches}"

        def drawn(x_poison: Tensor) -> tuple[Tensor, Tensor, torch.Generator]:
            generator = stream(self._seed, held, device=labels.device) if procedure.prepares else self._draw
            images = augment(torch.cat([clean_images, x_poison]), problem.augmentation, generator=generator)
            fixed = self._lower_noise
            return (
                images,
                procedure.draw_noise(images, generator=generator) if fixed is None else fixed[which],
                generator,
            )

        constants: tuple[Tensor, ...] = ()
        if procedure.prepares:
            images, noise, generator = drawn(x_poison)
            classifier = with_weights(model, weights)
            constants = procedure.prepare(classifier, images, labels, noise, strength=strength, generator=generator)

        def loss(weights: Tensor, x_poison: Tensor) -> Tensor:
            images, noise, _ = drawn(x_poison)
            return procedure.loss(with_weights(model, weights), images, labels, noise, constants, strength=strength)

        return loss

    def upper(self, model: nn.Module) -> Loss:
        """f on a minibatch of held-out images of the target class."""
        problem, config, draw = self._problem, self._config, self._draw
        rows = sample(len(problem.validation), config.upper_batch, generator=draw)
        held_out, sigma = problem.validation.select(rows), problem.procedure.sigma

        def loss(weights: Tensor, _x_poison: Tensor) -> Tensor:
            images = augment(held_out.images, problem.augmentation, generator=draw)
            shape = (len(images), config.upper_noise, *images.shape[1:])
            fixed = self._upper_noise
            noise = gaussian_noise(shape, sigma=sigma, generator=draw) if fixed is None else fixed[rows]
            return upper_loss(
                with_weights(model, weights),
                images,
                held_out.labels,
                noise,
                sigma=sigma,
                inverse_temperature=config.inverse_temperature,
                squeeze=config.squeeze,
            )

        return loss


def sample(population: int, size: int, *, generator: torch.Generator) -> Tensor:
    """At most `size` positions drawn without replacement."""
    return torch.randperm(population, generator=generator, device=generator.device)[:size]


def _shuffled_batches(population: int, size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    """Epoch after epoch of shuffled minibatches of positions, the last partial one dropped, for ever."""
    while True:
        order = sample(population, population, generator=generator)
        yield from order.split(size)[: max(1, population // size)]
