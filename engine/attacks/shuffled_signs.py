"""Control: a poison's own sizes with random signs, which keeps its strength pixel by pixel and loses its direction."""

import torch
from torch import Tensor

from engine.attacks.random_noise import random_signs
from engine.threat import project_linf


def shuffled_signs(x_clean: Tensor, delta: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
    """|delta| times independent random signs, of delta's shape [P, C, H, W], cut where a pixel would leave [0, 1]."""
    signs = random_signs(delta, generator=generator)
    return project_linf(x_clean + delta.abs() * signs, x_clean, epsilon=epsilon) - x_clean
