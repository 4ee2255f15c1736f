"""Control: independent random signs of full size, the strongest random perturbation that the budget allows."""

import torch
from torch import Tensor

from engine.threat import project_linf


def random_noise(x_clean: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
    """delta of x_clean's shape [P, C, H, W]: ±epsilon with equal probability, cut where a pixel would leave [0, 1]."""
    signs = random_signs(x_clean, generator=generator)
    return project_linf(x_clean + epsilon * signs, x_clean, epsilon=epsilon) - x_clean


def random_signs(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Independent ±1 of the given tensor's shape."""
    return torch.randint(0, 2, like.shape, generator=generator, device=generator.device).mul_(2).sub_(1).to(like.dtype)
