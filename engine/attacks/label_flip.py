"""Label flips: the visible contrast, which changes no pixel. Not clean-label."""

from collections.abc import Iterator

import torch

from engine.attacks.base import AttackProblem, AttackRecord
from engine.config import AttackConfig
from engine.streams import stream


def label_flip(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Gives each image another class than its own, drawn with equal probability from those that there are; one step.

    Raises: ValueError if the attacker has images of no other class.
    """
    count, generator = len(problem.indices), stream(seed, "attack", device=problem.indices.device)
    if count == 0:
        return
    present = problem.training.labels.unique()
    behind = (present - problem.target_class) % problem.num_classes  # 0 for the class itself
    others = present[behind.argsort()][1:]
    if len(others) == 0:
        raise ValueError("training must have images of another class than the target class, got none")
    drawn = torch.randint(len(others), (count,), generator=generator, device=generator.device)
    yield AttackRecord(1, 1, torch.zeros_like(problem.x_clean), labels=others[drawn])
