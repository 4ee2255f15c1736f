"""Attacks that optimise nothing: one change, drawn at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.attacks.base import Attack, AttackProblem, AttackRecord
from engine.config import AttackConfig
from engine.streams import stream
from engine.threat import within_budget

Change = Callable[[AttackProblem, torch.Generator], Tensor]  # of the shape [P, C, H, W], or [1, C, H, W] for all


def at_once(change: Change, *, stream_name: str = "attack") -> Attack:
    """The attack that adds a change to its images, cut at epsilon and at the pixel range; it has one step."""

    def attack(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
        if len(problem.indices) == 0:
            return
        x_clean = problem.x_clean
        wanted = change(problem, stream(seed, stream_name, device=x_clean.device))
        yield AttackRecord(1, 1, within_budget(x_clean, wanted, epsilon=problem.epsilon))

    return attack
