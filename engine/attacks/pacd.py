"""PACD: clean-label poison that lowers the certified radius of a class, by bilevel optimisation with ApproxGrad.

Source: Mehra, Kailkhura, Chen, Hamm, CVPR 2021, arXiv:2012.01274, Algorithm 1, with the released code's settings.
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.levels import Levels, is_normalised, sample, updated_poison
from engine.config import AttackConfig
from engine.hypergradient import ApproxGrad, Hypergradient, Loss
from engine.models import build, flat_weights
from engine.replay import Replayed
from engine.solvers import Adam, Scalar
from engine.streams import stream
from engine.training.base import State

MOST_RESTARTS = 3  # surrogates that may diverge before the attack gives up
WITHOUT_LOOKING = ("adam", "adam-shared", "one-step", "unrolled")  # linear solvers that read no number on their way
Direction = Callable[[ApproxGrad, Loss, Loss, Tensor], Hypergradient]  # (surrogate, lower, upper, x_poison [B, …])


class Unknowns(Protocol):
    """What the upper level optimises, and how a minibatch of poison images follows from it."""

    def images(self, rows: Tensor) -> Tensor:
        """Poison images [B, C, H, W] as they are now."""

    def restart(self) -> None:
        """Forgets the optimiser's state, as with every new surrogate."""

    def update(self, gradient: Tensor, rows: Tensor) -> None:
        """One step for this hypergradient [B, C, H, W] of those images; the result is within the budget."""

    def delta(self) -> Tensor:
        """The whole poison [P, C, H, W]."""

    def tensors(self) -> dict[str, Tensor]:
        """All that an update changes: as they are now, to be read or to be copied into."""


class PerImage:
    """Every image's pixels are unknowns of their own, and Adam's state belongs to the images."""

    def __init__(self, problem: AttackProblem, config: AttackConfig) -> None:
        self._x_clean, self._epsilon, self._rate = problem.x_clean, problem.epsilon, config.poison_learning_rate
        self._x_poison = self._x_clean.clone()
        self.restart()

    def images(self, rows: Tensor) -> Tensor:
        return self._x_poison[rows]

    def restart(self) -> None:
        self._adam = Adam(self._x_clean, learning_rate=self._rate, per_row=True)

    def update(self, gradient: Tensor, rows: Tensor) -> None:
        change = self._adam.step(gradient, rows)
        self._x_poison[rows] = updated_poison(self._x_poison[rows], self._x_clean[rows], change, epsilon=self._epsilon)

    def delta(self) -> Tensor:
        return self._x_poison - self._x_clean

    def tensors(self) -> dict[str, Tensor]:
        return {"x_poison": self._x_poison, **self._adam.tensors()}


class Surrogate:
    """A network that the attacker trains and differentiates through, for one life of restart_every upper steps."""

    def __init__(self, problem: AttackProblem, config: AttackConfig, *, seed: int, life: int) -> None:
        device, shape = problem.training.images.device, tuple(problem.training.images.shape[1:])
        generator = stream(seed, "surrogate", life, device=device)
        self.model = build(config.surrogate, shape=shape, num_classes=problem.num_classes, generator=generator)
        self.sketches = stream(seed, "sketch", life, device=device)
        self.bilevel = ApproxGrad(
            flat_weights(self.model),
            linear_solver=config.linear_solver,
            linear_steps=config.linear_steps,
            damping=config.damping,
            weights_learning_rate=config.weights_learning_rate,
            linear_learning_rate=config.linear_learning_rate,
            generator=self.sketches,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, in place, but for the state of the generator."""
        return self.bilevel.tensors() | dict(self.model.named_buffers())


def pacd(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Optimises the pixels of each image of the class, yielding after every upper step.

    Raises: as `optimise`.
    Departs: Adam's state for the poison belongs to images, where the authors' belongs to minibatch slots, so that
        their momentum leaks between images; all surrogates live equally long, where the authors' first lives one
        epoch less; a diverged surrogate is replaced at once and reported, where theirs is replaced unreported;
        SmoothAdv's warm-up grows with every step, where theirs grows with every epoch, and its adversarial images
        are not cut at the pixel range between the poison's step and the budget.
    """
    return optimise(problem, config, seed, PerImage(problem, config))


def optimise(
    problem: AttackProblem,
    config: AttackConfig,
    seed: int,
    unknowns: Unknowns,
    *,
    direction: Direction = ApproxGrad.hypergradient,
    clean_surrogates: bool = False,
) -> Iterator[AttackRecord]:
    """The bilevel loop: surrogates live for restart_every upper steps each; the poison lives through them all.

    Args:
        direction: what the poison descends.
        clean_surrogates: surrogates learn from the images as they were, not from the poison.
    Raises: ValueError without validation images; FloatingPointError when more than MOST_RESTARTS surrogates in a row
        diverged.
    """
    if len(problem.validation) == 0:
        raise ValueError("validation must have images of the target class, got none: draw more of them")
    if len(problem.indices) == 0:
        return
    draw = stream(seed, "attack", device=problem.training.images.device)
    levels = Levels(problem, config, seed=seed, generator=draw)
    steps, lives, diverged, blind = 0, 0, 0, False
    age = config.restart_every  # so that the first step begins a life

    def learned(which: Tensor, x_poison: Tensor) -> Tensor:
        return problem.training.images[which[-len(x_poison) :]] if clean_surrogates else x_poison

    def both_levels(which: Tensor, held_out: Tensor, x_poison: Tensor, *held: Tensor) -> tuple[Scalar, Hypergradient]:
        lower = levels.minibatch(which, poison=len(x_poison), strength=strength).loss(surrogate.model, held)
        upper = levels.upper(surrogate.model, held_out)
        lower_value = surrogate.bilevel.descend(lower, learned(which, x_poison), steps=config.lower_steps)
        return lower_value, direction(surrogate.bilevel, lower, upper, x_poison)

    def born(life: int) -> tuple[Surrogate, Replayed]:
        surrogate = Surrogate(problem, config, seed=seed, life=life)
        able = config.linear_solver in WITHOUT_LOOKING and not is_normalised(surrogate.model)
        return surrogate, Replayed(both_levels, generators=[draw], able=able)

    def tensors() -> dict[str, Tensor]:
        owners: dict[str, Levels | Unknowns | Surrogate] = {
            "levels": levels,
            "unknowns": unknowns,
            "surrogate": surrogate,
        }
        return {f"{whose} {name}": each for whose, owner in owners.items() for name, each in owner.tensors().items()}

    def state() -> State:
        generators = {"draw": draw.get_state(), "sketches": surrogate.sketches.get_state()}
        return {"counts": torch.tensor([steps, lives, age, diverged, blind]), **generators, **tensors()}

    if problem.state is not None:
        steps, lives, age, diverged, blind = problem.state["counts"].tolist()
        surrogate, work = born(lives - 1)
        for name, tensor in tensors().items():
            tensor.copy_(problem.state[name])
        draw.set_state(problem.state["draw"].cpu())
        surrogate.sketches.set_state(problem.state["sketches"].cpu())

    while steps < config.upper_steps:
        warmup = 0
        if age == config.restart_every:
            surrogate, work = born(lives)
            unknowns.restart()
            lives, age, warmup = lives + 1, 0, config.warmup_steps
        model, bilevel = surrogate.model, surrogate.bilevel
        strength = problem.procedure.strength(age / config.restart_every)
        for _ in range(warmup):
            rows = sample(len(problem.indices), config.poison_batch, generator=draw)
            x_poison, which = unknowns.images(rows), levels.draw_lower(rows)
            held = levels.held(model, bilevel.weights, x_poison, which, strength=strength)
            lower = levels.minibatch(which, poison=len(rows), strength=strength).loss(model, held)
            bilevel.descend(lower, learned(which, x_poison), steps=1)
        steps, age = steps + 1, age + 1

        rows = sample(len(problem.indices), config.poison_batch, generator=draw)
        x_poison, which = unknowns.images(rows), levels.draw_lower(rows)
        held = levels.held(model, bilevel.weights, x_poison, which, strength=strength)
        lower_value, found = work(which, levels.draw_upper(), x_poison, *held, key=strength)

        event, lower_value = None, float(lower_value)
        if found.upper_loss == 0 and not blind:
            event = f"step {steps}: the surrogate gets no held-out image right, so there is nothing to differentiate"
        blind = bool(found.upper_loss == 0)
        if bool(found.gradient.isfinite().all()) and math.isfinite(lower_value):
            unknowns.update(found.gradient, rows)
            diverged = 0
        else:
            event = f"step {steps}: the surrogate diverged (lower loss {lower_value:.3g}); it starts again"
            diverged, age = diverged + 1, config.restart_every
            if diverged > MOST_RESTARTS:
                raise FloatingPointError(f"{diverged} surrogates in a row diverged. {event}")
        yield AttackRecord(
            steps,
            config.upper_steps,
            unknowns.delta(),
            float(found.upper_loss),
            lower_value,
            float(found.relative_residual),
            found.products,
            event,
            state=state,
        )
