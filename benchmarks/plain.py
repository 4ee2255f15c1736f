"""The plainest correct implementations: what one would write first, and what the engine's speed is measured against."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils.data import DataLoader, TensorDataset


def lenet(widths: tuple[int, int, int] = (20, 50, 500)) -> nn.Sequential:
    """The 20-50-500 LeNet for 28×28 images in torch's own layout, ReLU before pooling."""
    first, second, hidden = widths
    return nn.Sequential(
        nn.Conv2d(1, first, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * second, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def votes(model: nn.Module, image: Tensor, *, n: int, sigma: float, batch_size: int = 400) -> np.ndarray:
    """Cohen et al.'s sampling loop: one image at a time, noisy copies in batches of 400, counts in NumPy."""
    counts = np.zeros(10, dtype=int)
    with torch.no_grad():
        for start in range(0, n, batch_size):
            batch = image.repeat((min(batch_size, n - start), 1, 1, 1))
            predictions = model(batch + torch.randn_like(batch) * sigma).argmax(1)
            for label in predictions.cpu().numpy():
                counts[label] += 1
    return counts


def train(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, sigma: float) -> None:
    """One epoch of Gaussian augmentation through a DataLoader."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True, drop_last=True):
        optimiser.zero_grad()
        F.cross_entropy(model(x + torch.randn_like(x) * sigma), y).backward()
        optimiser.step()


def upper_step(
    model: nn.Module,
    clean: tuple[Tensor, Tensor],
    poison: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    sigma: float,
    draws: int,
    lower_steps: int,
    linear_steps: int,
    damping: float = 1e-3,
) -> Tensor:
    """One upper step of ApproxGrad as the authors' code has it, with fresh noise at every evaluation of a loss.

    Returns the hypergradient of the poison images.
    """
    weights = list(model.parameters())
    x_poison = poison[0].clone().requires_grad_()

    def lower() -> Tensor:
        x, y = torch.cat([clean[0], x_poison]), torch.cat([clean[1], poison[1]])
        return F.cross_entropy(model(x + torch.randn_like(x) * sigma), y)

    def upper() -> Tensor:
        x = held_out[0].repeat_interleave(draws, dim=0)
        p = F.softmax(16 * model(x + torch.randn_like(x) * sigma), dim=1).view(len(held_out[0]), draws, 10).mean(1)
        top, which = p.topk(2, dim=1)
        q = math.sqrt(2) * torch.erfinv(2 * ((1 - 2e-3) * top + 1e-3) - 1)
        return sigma / 2 * ((q[:, 0] - q[:, 1]) * (which[:, 0] == held_out[1])).mean()

    def product(vector: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first = grad(lower(), weights, create_graph=True)
        return grad(first, weights, vector)

    optimiser = torch.optim.Adam(weights, lr=1e-3)
    for _ in range(lower_steps):
        optimiser.zero_grad()
        lower().backward()
        optimiser.step()
    p = [torch.zeros_like(w) for w in weights]
    solver = torch.optim.Adam(p, lr=1e-2)
    for _ in range(linear_steps):
        target = grad(upper(), weights)
        residual = [h + damping * v - b for h, v, b in zip(product(p), p, target, strict=True)]
        for v, h, r in zip(p, product(residual), residual, strict=True):
            v.grad = 2 * (h + damping * r)
        solver.step()
    first = grad(lower(), weights, create_graph=True)
    return -grad(first, x_poison, p)[0]
