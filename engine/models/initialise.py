"""How a layer's weights and biases begin, all drawn from the generator given."""

import math
from collections.abc import Callable

import torch
from torch import nn

Layer = nn.Conv2d | nn.Linear
Initialiser = Callable[[Layer, torch.Generator], None]  # of a layer whose biases are 0
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut at ±2


def glorot_uniform(layer: Layer, generator: torch.Generator) -> None:
    """U(±√(6/(fan_in + fan_out))), Keras's default, as in PACD's code for MNIST."""
    weight = layer.weight
    receptive_field = math.prod(weight.shape[2:])
    limit = math.sqrt(6 / (receptive_field * (weight.shape[0] + weight.shape[1])))
    weight.uniform_(-limit, limit, generator=generator)


def he_normal(layer: Layer, generator: torch.Generator) -> None:
    """N(0, 2/fan_in). Source: He, Zhang, Ren, Sun 2015, arXiv:1502.01852, eq. 10."""
    layer.weight.normal_(0, math.sqrt(2 / _fan_in(layer)), generator=generator)


def he_normal_truncated(layer: Layer, generator: torch.Generator) -> None:
    """Of variance 2/fan_in, from a normal cut at twice its standard deviation: Keras's he_normal, as in PACD's code."""
    std = math.sqrt(2 / _fan_in(layer)) / TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def torch_uniform(layer: Layer, generator: torch.Generator) -> None:
    """U(±1/√fan_in), biases as well: as torch's layers begin by themselves, in the code of Cohen et al. and others."""
    limit = 1 / math.sqrt(_fan_in(layer))
    for parameter in layer.parameters():
        parameter.uniform_(-limit, limit, generator=generator)


def _fan_in(layer: Layer) -> int:
    return layer.weight[0].numel()
