"""All victims as one program (`torch.func`): their weights are one tensor with a dimension for the victims."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks import plain

Weights = dict[str, Tensor]  # each [V, …]


def train(
    victims: int, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, sigma: float, rate: float = 1e-3
) -> Weights:
    """Epochs of Gaussian augmentation of so many LeNets, each with an order and noise of its own."""
    weights, _ = stack_module_state([plain.lenet() for _ in range(victims)])
    optimiser = torch.optim.Adam(weights.values(), lr=rate, fused=True)

    def loss(of_one: Weights, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(_answers(of_one, x + torch.randn_like(x) * sigma), y)

    slopes = vmap(grad(loss), randomness="different")
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(len(images)) for _ in range(victims)])
        for chosen in orders.split(batch_size, dim=1):
            for name, slope in slopes(weights, images[chosen], labels[chosen]).items():
                weights[name].grad = slope
            optimiser.step()
    return weights


@torch.no_grad()
def votes(weights: Weights, images: Tensor, *, n: int, sigma: float) -> Tensor:
    """Votes [V, N, 10] of all victims for images [N, 1, 28, 28], n draws of each."""

    def of_one(weights: Weights, image: Tensor) -> Tensor:
        noisy = image + torch.randn(n, *image.shape) * sigma
        return F.one_hot(_answers(weights, noisy).argmax(dim=1), 10).sum(dim=0)

    of_all = vmap(of_one, in_dims=(0, None), randomness="different")
    return torch.stack([of_all(weights, image) for image in images], dim=1)


_NETWORK: Any = plain.lenet().to("meta")


def _answers(weights: Weights, x: Tensor) -> Tensor:
    return functional_call(_NETWORK, weights, (x,))
