"""One fixed pattern of full size for the whole class: a shortcut that costs nothing.

Sources: class-wise noise of Huang et al., ICLR 2021, arXiv:2101.04898; for the low frequencies, the coarse random
patches of Yu et al., KDD 2022, arXiv:2111.00898, who show that such shortcuts are what availability attacks make.
Departs: of one class only; Yu et al. have square patches where this has the signs of smooth waves.
"""

import math

import torch
from torch import Tensor

from engine.attacks.at_once import at_once
from engine.attacks.base import AttackProblem
from engine.attacks.random_noise import random_signs

FREQUENCIES = 4  # lowest ones of the discrete cosine transform, along each side


def bright(problem: AttackProblem, generator: torch.Generator) -> Tensor:
    """[1, C, H, W]: +epsilon everywhere."""
    return torch.full_like(problem.x_clean[:1], problem.epsilon)


def white(problem: AttackProblem, generator: torch.Generator) -> Tensor:
    """[1, C, H, W]: ±epsilon, independent from pixel to pixel."""
    return problem.epsilon * random_signs(problem.x_clean[:1], generator=generator)


def low_frequency(problem: AttackProblem, generator: torch.Generator) -> Tensor:
    """[1, C, H, W]: ±epsilon by the sign of a normal mixture of the lowest frequencies but the constant."""
    _, channels, height, width = problem.x_clean.shape
    size = (1, channels, FREQUENCIES, FREQUENCIES)
    coefficients = torch.randn(size, generator=generator, device=generator.device)
    coefficients[:, :, 0, 0] = 0
    waves = torch.einsum("nckl,kh,lw->nchw", coefficients, _cosines(height, generator), _cosines(width, generator))
    return problem.epsilon * torch.where(waves > 0, 1.0, -1.0)


def _cosines(length: int, generator: torch.Generator) -> Tensor:
    """The lowest basis functions of the discrete cosine transform (type II): [FREQUENCIES, length]."""
    places = (torch.arange(length, device=generator.device) + 0.5) / length
    return torch.cos(math.pi * torch.arange(FREQUENCIES, device=generator.device)[:, None] * places)


brightness = at_once(bright)
white_pattern = at_once(white)
low_frequency_pattern = at_once(low_frequency)
