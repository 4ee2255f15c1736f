"""PACD over one change that the whole class shares: the same bilevel problem with P times fewer unknowns."""

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.pacd import optimise
from engine.config import AttackConfig
from engine.solvers import Adam


class Shared:
    """One change [1, C, H, W] within epsilon, added to every image of the class and cut at the pixel range."""

    def __init__(self, problem: AttackProblem, config: AttackConfig) -> None:
        self._x_clean, self._epsilon, self._rate = problem.x_clean, problem.epsilon, config.poison_learning_rate
        self.shared = torch.zeros_like(self._x_clean[:1])
        self.restart()

    def images(self, rows: Tensor | slice) -> Tensor:
        return (self._x_clean[rows] + self.shared).clamp(0, 1)

    def restart(self) -> None:
        self._adam = Adam(self.shared, learning_rate=self._rate)

    def update(self, gradient: Tensor, rows: Tensor) -> None:
        """The hypergradients of all images, summed where a pixel is not cut, or where descent leads it back.

        Without the latter, a change that once took a black background below 0 would never be seen again.
        """
        moved = self._x_clean[rows] + self.shared
        free = ((moved >= 0) | (gradient < 0)) & ((moved <= 1) | (gradient > 0))
        step = self._adam.step((gradient * free).sum(dim=0, keepdim=True))
        self.shared = (self.shared + step).clamp(-self._epsilon, self._epsilon)

    def tensors(self) -> dict[str, Tensor]:
        return {"shared": self.shared, **self._adam.tensors()}

    def delta(self) -> Tensor:
        return self.images(slice(None)) - self._x_clean


def universal(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Optimises one change for all images of the class, yielding after every upper step. Raises: as `optimise`."""
    return optimise(problem, config, seed, Shared(problem, config))
