"""How weights of two and more dimensions begin, all drawn from the generator given; biases begin at 0."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Initialiser = Callable[[Tensor, torch.Generator], None]
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut at ±2


def glorot_uniform(weight: Tensor, generator: torch.Generator) -> None:
    """U(±√(6/(fan_in + fan_out))), Keras's default, as in PACD's code for MNIST."""
    receptive_field = math.prod(weight.shape[2:])
    limit = math.sqrt(6 / (receptive_field * (weight.shape[0] + weight.shape[1])))
    weight.uniform_(-limit, limit, generator=generator)


def he_normal(weight: Tensor, generator: torch.Generator) -> None:
    """N(0, 2/fan_in). Source: He, Zhang, Ren, Sun 2015, arXiv:1502.01852, eq. 10."""
    weight.normal_(0, math.sqrt(2 / weight[0].numel()), generator=generator)


def he_normal_truncated(weight: Tensor, generator: torch.Generator) -> None:
    """Of variance 2/fan_in, from a normal cut at twice its standard deviation: Keras's he_normal, as in PACD's code."""
    std = math.sqrt(2 / weight[0].numel()) / TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
