"""Label flips: the visible contrast, which changes no pixel. Not clean-label."""

from collections.abc import Iterator

import torch

from engine.attacks.base import AttackProblem, AttackRecord
from engine.config import AttackConfig
from engine.streams import stream


def label_flip(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Gives each image another class than its own, drawn with equal probability; it has one step."""
    count, generator = len(problem.indices), stream(seed, "attack", device=problem.indices.device)
    if count == 0:
        return
    shift = torch.randint(1, problem.num_classes, (count,), generator=generator, device=generator.device)
    labels = (problem.target_class + shift) % problem.num_classes
    yield AttackRecord(1, 1, torch.zeros_like(problem.x_clean), labels=labels)
