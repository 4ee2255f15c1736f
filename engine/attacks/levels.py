"""PACD's two levels as plain functions of weights (through a classifier), images and given noise.

    min over x_poison of upper(w*)   with   w* = argmin_w lower(w, x_poison),   ‖x_poison − x_clean‖∞ ≤ ε

To retrace an upper step by hand, say with another implementation's weights, minibatches and noise, compose

    f = with_weights(model, weights)                                     # weights [W] in flat_weights' order
    upper_loss(f, held_out, labels, noise, sigma=…)                      # noise [N, M, C, H, W]; a scalar
    batch = Batch(cat([clean, x_poison]), labels, noise)                 # of engine.training.base
    batch = batch._replace(constants=procedure.prepare(f, batch, generator=…))  # if procedure.prepares
    procedure.loss(f, batch)                                             # of make(settings, sigma=…); a scalar
    hypergradient.gradient(loss, weights, x_poison)                      # of any loss(weights, x_poison)
    hypergradient.hessian(loss, weights, x_poison)(vector)
    solvers.adam_on_residual(system, p, steps=…, damping=…, adam=Adam(p, learning_rate=…))
                                       # system() → (hessian of lower, gradient of upper), asked anew for each step
    hypergradient.cross_term(lower, weights, x_poison, p)                # minus the hypergradient
    updated_poison(x_poison, x_clean, change, epsilon=…)                 # change = Adam.step(hypergradient)

tests/test_levels.py does so for Gaussian augmentation and MACER; tests/test_levels_of_networks.py, through whole
networks.

Source: Mehra, Kailkhura, Chen, Hamm, CVPR 2021, arXiv:2012.01274, Section 3, with the released code's settings.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.attacks.base import AttackProblem
from engine.augmentation import augment, crop_and_flip, draw_crops
from engine.config import AttackConfig
from engine.hypergradient import Loss, Part, Sum
from engine.models import with_weights
from engine.smoothing import Classifier, gaussian_noise, noisy_copies, noisy_logits, soft_radius
from engine.streams import stream
from engine.threat import project_linf
from engine.training.base import Batch

Crops = tuple[Tensor, ...]  # as draw_crops gives them, or nothing
Tap = Callable[[Tensor], Tensor]  # sees logits


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
    logits = noisy_logits(base_classifier, images, noise)
    return soft_radius(logits, labels, sigma=sigma, inverse_temperature=inverse_temperature, squeeze=squeeze).mean()


def updated_poison(x_poison: Tensor, x_clean: Tensor, change: Tensor, *, epsilon: float) -> Tensor:
    """x_poison + change, brought back within epsilon (L∞) of x_clean and within [0, 1]; all [B, C, H, W]."""
    return project_linf(x_poison + change, x_clean, epsilon=epsilon)


class Levels:
    """Draws the minibatches of both levels, each of which has a loss of (weights [W], x_poison [B, C, H, W]).

    Noise and augmentation are fresh at every call of a loss, unless the settings fix one noise draw per image. Where
    the procedure has an adversary, its answer holds for the whole minibatch, and so do the draws that it answered.
    Where there is batch normalisation, the lower level uses the batch's statistics, as training does; the upper level
    and the adversary use running ones, as certification does, which each minibatch moves a little.
    """

    def __init__(self, problem: AttackProblem, config: AttackConfig, *, seed: int, generator: torch.Generator) -> None:
        self._problem, self._config, self._seed, self._draw = problem, config, seed, generator
        training, procedure, device = problem.training, problem.procedure, generator.device
        touched = torch.zeros(len(training), dtype=torch.bool, device=device)
        touched[problem.indices] = True
        self._clean = (~touched).nonzero().squeeze(1)
        self._order = torch.zeros_like(self._clean)  # of clean images, in this epoch
        self._lower_noise = self._upper_noise = None
        if config.fixed_lower_noise:
            fixed = stream(seed, "fixed lower noise", device=device)
            self._lower_noise = procedure.draw_noise(training.images, generator=fixed)
        if config.fixed_upper_noise:
            shape = (len(problem.validation), config.upper_noise, *training.images.shape[1:])
            fixed = stream(seed, "fixed upper noise", device=device)
            self._upper_noise = gaussian_noise(shape, sigma=procedure.sigma, generator=fixed)
        self._drawn = torch.zeros((), dtype=torch.int64)  # minibatches

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step, in place; fixed noise follows from the seed."""
        return {"order": self._order, "drawn": self._drawn}

    def draw_lower(self, rows: Tensor) -> Tensor:
        """Positions of the next clean minibatch and, behind it, of the poison images problem.indices[rows].

        Epoch after epoch of shuffled images, the last partial minibatch dropped, for ever.
        """
        size, clean = self._config.clean_batch, len(self._clean)
        batch = int(self._drawn) % max(1, clean // size)
        if batch == 0:
            self._order.copy_(sample(clean, clean, generator=self._draw))
        self._drawn += 1
        return torch.cat([self._clean[self._order.split(size)[batch]], self._problem.indices[rows]])

    def draw_upper(self) -> Tensor:
        """Positions of a minibatch of held-out images of the target class."""
        return sample(len(self._problem.validation), self._config.upper_batch, generator=self._draw)

    def minibatch(self, which: Tensor, *, poison: int, strength: float) -> "Minibatch":
        """The minibatch that `draw_lower` found, whose last images are poison ones."""
        return Minibatch(
            self._problem,
            self._problem.training.images[which],
            self._problem.training.labels[which],
            clean=len(which) - poison,
            fixed_noise=None if self._lower_noise is None else self._lower_noise[which],
            generator=self._draw,
            strength=strength,
        )

    def shared_draws(
        self, model: nn.Module, weights: Tensor, x_poison: Tensor, which: Tensor, *, strength: float
    ) -> tuple[Tensor, ...]:
        """What all losses of that minibatch have in common; moves running statistics if there are any."""
        if not self._problem.procedure.prepares and not is_normalised(model):
            return ()
        minibatch = self.minibatch(which, poison=len(x_poison), strength=strength)
        if self._problem.procedure.prepares:
            own = stream(self._seed, f"minibatch {int(self._drawn)}", device=which.device)
            minibatch = replace(minibatch, generator=own)
        return minibatch.shared_draws(model, weights, x_poison)

    def upper(self, model: nn.Module, rows: Tensor) -> Loss:
        """f on the held-out images that `draw_upper` found."""
        problem, config, draw = self._problem, self._config, self._draw
        held_out, sigma = problem.validation.select(rows), problem.procedure.sigma

        def parts() -> list[Part]:
            images = augment(held_out.images, problem.augmentation, generator=draw)
            shape = (len(images), config.upper_noise, *images.shape[1:])
            fixed = self._upper_noise
            noise = gaussian_noise(shape, sigma=sigma, generator=draw) if fixed is None else fixed[rows]
            model.eval()

            def part(some: slice) -> Part:
                def loss(weights: Tensor, _x_poison: Tensor) -> Tensor:
                    mean = upper_loss(
                        with_weights(model, weights),
                        images[some],
                        held_out.labels[some],
                        noise[some],
                        sigma=sigma,
                        inverse_temperature=config.inverse_temperature,
                        squeeze=config.squeeze,
                    )
                    return mean * ((some.stop - some.start) / len(images))

                return Part(loss, has_x=False)

            return [part(some) for some in _cut(slice(0, len(images)), config.upper_noise, problem.part)]

        return Sum(parts, problem.each)


@dataclass(frozen=True)
class Minibatch:
    """Clean images and poison ones behind them, for the lower level: what is drawn for them, and the loss in parts."""

    problem: AttackProblem
    originals: Tensor  # [N, C, H, W], the poison images as they were
    labels: Tensor  # [N]
    clean: int  # how many of the N are clean
    fixed_noise: Tensor | None  # [N, M, C, H, W], where every image has one draw for ever
    generator: torch.Generator
    strength: float

    def drawn(self) -> tuple[Crops, Tensor]:
        """(Crops, noise [N, M, C, H, W]); to the released code clean images are one batch and poison another."""
        batches = self.clean, len(self.labels) - self.clean
        crops = draw_crops(batches, self.problem.augmentation, generator=self.generator) or ()
        if self.fixed_noise is not None:
            return crops, self.fixed_noise
        return crops, self.problem.procedure.draw_noise(self.originals, generator=self.generator)

    def shared_draws(self, model: nn.Module, weights: Tensor, x_poison: Tensor) -> tuple[Tensor, ...]:
        """(Noise, crops, what the procedure prepares at these weights and poison images), for all losses to share.

        Nothing where the procedure prepares nothing. Moves running statistics if there are any. An adversary, if the
        procedure has one, answers to these weights and to x_poison.
        """
        crops, noise = self.drawn()
        images = self._images(x_poison, slice(0, len(self.labels)), crops)
        _move_statistics(model, weights, noisy_copies(images, noise) if noise.shape[1] else images)
        if not self.problem.procedure.prepares:
            return ()
        f, prepare = with_weights(model.eval(), weights), self.problem.procedure.prepare
        batch = Batch(images, self.labels, noise, strength=self.strength)
        return noise, *crops, *prepare(f, batch, generator=self.generator)

    def loss(self, model: nn.Module, shared: tuple[Tensor, ...] = ()) -> Sum:
        """g, in parts of clean or poison images; in one where batch normalisation ties them together, or on a GPU."""

        def parts() -> list[Part]:
            crops, noise, constants = self._taken_apart(shared) if shared else (*self.drawn(), ())
            model.train()
            ranges = [slice(0, len(self.labels))]
            if not is_normalised(model) and noise.device.type == "cpu":
                separate = (slice(0, self.clean), slice(self.clean, len(self.labels)))
                ranges = [each for one in separate for each in _cut(one, noise.shape[1], self.problem.part)]
            return [self._part(model, images, crops, noise, constants) for images in ranges]

        return Sum(parts, self.problem.each)

    def _taken_apart(self, shared: tuple[Tensor, ...]) -> tuple[Crops, Tensor, tuple[Tensor, ...]]:
        end = 1 if self.problem.augmentation == "none" else 3  # behind the noise offsets and flips, if there are crops
        return shared[1:end], shared[0], shared[end:]

    def _part(
        self, model: nn.Module, images: slice, crops: Crops, noise: Tensor, constants: tuple[Tensor, ...]
    ) -> Part:
        def loss(weights: Tensor, x_poison: Tensor, tap: Tap = lambda logits: logits) -> Tensor:
            x, some = self._images(x_poison, images, crops), tuple(each[images] for each in constants)
            batch = Batch(x, self.labels[images], noise[images], some, self.strength)
            f = with_weights(model, weights)
            mean = self.problem.procedure.loss(lambda noisy: tap(f(noisy)), batch)
            return mean * (len(x) / len(self.labels))

        return Part(loss, has_x=images.stop > self.clean)

    def _images(self, x_poison: Tensor, which: slice, crops: Crops) -> Tensor:
        """Some of [clean; x_poison], augmented."""
        poison = slice(max(0, which.start - self.clean), max(0, which.stop - self.clean))
        x = torch.cat([self.originals[: self.clean][which], x_poison[poison]])
        return crop_and_flip(x, *(each[which] for each in crops)) if crops else x


def is_normalised(model: nn.Module) -> bool:
    """Whether it has running statistics, and so batch normalisation."""
    return next(model.buffers(), None) is not None


def _cut(images: slice, draws: int, part: int | None) -> list[slice]:
    """Ranges of images that have about `part` noisy copies each; all in one without it."""
    size = max(1, images.stop - images.start if part is None else part // max(1, draws))
    starts = range(images.start, images.stop, size)
    return [slice(start, min(start + size, images.stop)) for start in starts]


def _move_statistics(model: nn.Module, weights: Tensor, images: Tensor) -> None:
    """Moves batch normalisation's running statistics towards those of these images [N, C, H, W] at these weights."""
    nn.utils.vector_to_parameters(weights, model.parameters())
    with torch.no_grad():
        model.train()(images)


def sample(population: int, size: int, *, generator: torch.Generator) -> Tensor:
    """At most `size` positions drawn without replacement."""
    return torch.randperm(population, generator=generator, device=generator.device)[:size]
