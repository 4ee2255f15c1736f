"""Control: a poison's own sizes with random signs, which loses its direction.

It keeps its strength pixel by pixel but for the cut at [0, 1], which on black ground takes about half of it.
"""

import torch
from torch import Tensor

from engine.attacks.random_noise import random_signs
from engine.threat import within_budget


def shuffled_signs(x_clean: Tensor, delta: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
    """|delta| times independent random signs, of delta's shape [P, C, H, W], cut where a pixel would leave [0, 1]."""
    return within_budget(x_clean, delta.abs() * random_signs(delta, generator=generator), epsilon=epsilon)
