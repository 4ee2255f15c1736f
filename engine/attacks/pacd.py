"""PACD: clean-label poison that lowers the certified radius of a class, by bilevel optimisation with ApproxGrad.

Source: Mehra, Kailkhura, Chen, Hamm, CVPR 2021, arXiv:2012.01274, Algorithm 1, with the released code's settings.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

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
    """Every image's pixels are unknowns of their own; Adam's state belongs to images, or to minibatch positions."""

    def __init__(self, problem: AttackProblem, config: AttackConfig) -> None:
        self._x_clean, self._epsilon, self._rate = problem.x_clean, problem.epsilon, config.poison_learning_rate
        self._positions = config.poison_batch if config.poison_moments == "position" else None
        start = torch.zeros_like(self._x_clean) if problem.given is None else problem.given
        self._x_poison = updated_poison(self._x_clean, self._x_clean, start, epsilon=self._epsilon)
        self.restart()

    def images(self, rows: Tensor) -> Tensor:
        return self._x_poison[rows]

    def restart(self) -> None:
        of_images = self._positions is None
        self._adam = Adam(self._x_clean[: self._positions], learning_rate=self._rate, per_row=of_images)

    def update(self, gradient: Tensor, rows: Tensor) -> None:
        change = self._adam.step(gradient, rows if self._positions is None else slice(None))
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

    It starts at the clean images, or at changes that the problem gives.

    Raises: as `optimise`.
    Departs: all surrogates live equally long, where the authors' first lives one epoch less; a diverged surrogate is
        replaced at once and reported, where theirs is replaced unreported; SmoothAdv's warm-up grows with every step,
        where theirs grows with every epoch, and its adversarial images are not cut at the pixel range between the
        poison's step and the budget.
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
    attack = _Attack(problem, config, seed, unknowns, direction, clean_surrogates)
    while attack.steps < config.upper_steps:
        if attack.age == config.restart_every:
            attack.begin_life()
        work = Replayed(attack.both_levels, generators=[attack.draw], able=attack.without_looking)
        while attack.steps < config.upper_steps and attack.age < config.restart_every:
            yield attack.step(work)
        del work  # on a GPU its graphs hold memory, which the next surrogate may want


class _Minibatch(NamedTuple):
    """What one step of both levels is taken on."""

    rows: Tensor  # [B] of the images that may change
    which: Tensor  # positions of training images, as `draw_lower` finds them
    x_learned: Tensor  # [B, C, H, W]: those images as the surrogate learns from them
    x_poison: Tensor  # [B, C, H, W]: as the poison is now; the same, unless surrogates learn from clean images
    draws: tuple[Tensor, ...]  # that losses at x_learned share, then as many for losses at x_poison


class _Attack:
    """A bilevel attack under way: the poison, and the surrogate of the moment, with which both levels are taken."""

    def __init__(
        self,
        problem: AttackProblem,
        config: AttackConfig,
        seed: int,
        unknowns: Unknowns,
        direction: Direction,
        clean_surrogates: bool,
    ) -> None:
        self._problem, self._config, self._seed, self._unknowns = problem, config, seed, unknowns
        self._direction, self._clean_surrogates = direction, clean_surrogates
        self.draw = stream(seed, "attack", device=problem.training.images.device)
        self._levels = Levels(problem, config, seed=seed, generator=self.draw)
        self.steps, self._lives, self._diverged, self._blind = 0, 0, 0, False
        self.age = config.restart_every  # of the surrogate, in upper steps: the first one is to be born
        if problem.state is not None:
            self._restore(problem.state)

    def begin_life(self) -> None:
        """A new surrogate, warmed up."""
        self._surrogate = Surrogate(self._problem, self._config, seed=self._seed, life=self._lives)
        self._unknowns.restart()
        self._lives, self.age = self._lives + 1, 0
        for _ in range(self._config.warmup_steps):
            minibatch = self._minibatch()
            self._learn(minibatch.which, minibatch.x_learned, minibatch.draws, steps=1)

    @property
    def without_looking(self) -> bool:
        """Whether `both_levels` reads no number on its way, so that a GPU can replay it."""
        return self._config.linear_solver in WITHOUT_LOOKING and not is_normalised(self._surrogate.model)

    def step(self, work: Replayed) -> AttackRecord:
        """One upper step; `work` is `both_levels` with this surrogate."""
        rows, which, x_learned, x_poison, draws = self._minibatch()
        lower_value, found = work(which, self._levels.draw_upper(), x_learned, x_poison, *draws, key=self._strength)
        self.steps, self.age = self.steps + 1, self.age + 1
        lower_loss, upper_loss = float(lower_value), float(found.upper_loss)
        event = None
        if upper_loss == 0 and not self._blind:
            event = (
                f"step {self.steps}: the surrogate gets no held-out image right, so there is nothing to differentiate"
            )
        self._blind = upper_loss == 0
        if bool(found.gradient.isfinite().all()) and math.isfinite(lower_loss):
            self._unknowns.update(found.gradient, rows)
            self._diverged = 0
        else:
            event = f"step {self.steps}: the surrogate diverged (lower loss {lower_loss:.3g}); it starts again"
            self._diverged, self.age = self._diverged + 1, self._config.restart_every
            if self._diverged > MOST_RESTARTS:
                raise FloatingPointError(f"{self._diverged} surrogates in a row diverged. {event}")
        return AttackRecord(
            self.steps,
            self._config.upper_steps,
            self._unknowns.delta(),
            upper_loss,
            lower_loss,
            float(found.relative_residual),
            found.products,
            event,
            state=self._state,
        )

    def both_levels(
        self, which: Tensor, held_out: Tensor, x_learned: Tensor, x_poison: Tensor, *draws: Tensor
    ) -> tuple[Scalar, Hypergradient]:
        """(The lower loss, what the poison descends) of these images, once the surrogate has learned from them."""
        lower_value = self._learn(which, x_learned, draws, steps=self._config.lower_steps)
        lower = self._lower(which, x_poison, draws[len(draws) // 2 :])
        upper = self._levels.upper(self._surrogate.model, held_out)
        return lower_value, self._direction(self._surrogate.bilevel, lower, upper, x_poison)

    def _learn(self, which: Tensor, x_learned: Tensor, draws: tuple[Tensor, ...], *, steps: int) -> Scalar:
        lower = self._lower(which, x_learned, draws[: len(draws) // 2])
        return self._surrogate.bilevel.descend(lower, x_learned, steps=steps)

    def _lower(self, which: Tensor, x: Tensor, draws: tuple[Tensor, ...]) -> Loss:
        minibatch = self._levels.minibatch(which, poison=len(x), strength=self._strength)
        return minibatch.loss(self._surrogate.model, draws)

    @property
    def _strength(self) -> float:
        return self._problem.procedure.strength(self.age / self._config.restart_every)

    def _minibatch(self) -> _Minibatch:
        rows = sample(len(self._problem.indices), self._config.poison_batch, generator=self.draw)
        x_poison, which = self._unknowns.images(rows), self._levels.draw_lower(rows)
        x_learned = self._problem.training.images[self._problem.indices[rows]] if self._clean_surrogates else x_poison
        learned = shared = self._shared_draws(which, x_learned)
        if self._clean_surrogates and learned:
            shared = self._shared_draws(which, x_poison)
        return _Minibatch(rows, which, x_learned, x_poison, (*learned, *shared))

    def _shared_draws(self, which: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        model, weights = self._surrogate.model, self._surrogate.bilevel.weights
        return self._levels.shared_draws(model, weights, x, which, strength=self._strength)

    def _tensors(self) -> dict[str, Tensor]:
        owners: dict[str, Levels | Unknowns | Surrogate] = {
            "levels": self._levels,
            "unknowns": self._unknowns,
            "surrogate": self._surrogate,
        }
        return {f"{whose} {name}": each for whose, owner in owners.items() for name, each in owner.tensors().items()}

    def _state(self) -> State:
        counts = torch.tensor([self.steps, self._lives, self.age, self._diverged, self._blind])
        generators = {"draw": self.draw.get_state(), "sketches": self._surrogate.sketches.get_state()}
        return {"counts": counts, **generators, **self._tensors()}

    def _restore(self, state: State) -> None:
        self.steps, self._lives, self.age, self._diverged, self._blind = state["counts"].tolist()
        self._surrogate = Surrogate(self._problem, self._config, seed=self._seed, life=self._lives - 1)
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.draw.set_state(state["draw"].cpu())
        self._surrogate.sketches.set_state(state["sketches"].cpu())
