"""The plainest correct implementations: what one would write first, and what the engine's speed is measured against."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import beta, norm
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils.data import DataLoader, TensorDataset

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (model, images, labels, noise [N, M, C, H, W]) → scalar


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


def certify(
    model: nn.Module, image: Tensor, *, n0: int, n: int, sigma: float, alpha: float, batch_size: int = 400
) -> tuple[int, float]:
    """Cohen et al.'s CERTIFY of one image [C, H, W]: (class, radius) or (-1, 0.0)."""
    selected = votes(model, image, n=n0, sigma=sigma, batch_size=batch_size).argmax().item()
    n_top = votes(model, image, n=n, sigma=sigma, batch_size=batch_size)[selected].item()
    p_lower = beta.ppf(alpha, n_top, n - n_top + 1) if n_top else 0.0
    return (selected, sigma * norm.ppf(p_lower)) if p_lower > 0.5 else (-1, 0.0)


def gaussian_loss(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Gaussian augmentation: cross-entropy of one noisy copy of each image."""
    return F.cross_entropy(model(x + noise[:, 0]), y)


def smoothadv_loss(
    model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, radius: float = 1.0, steps: int = 2
) -> Tensor:
    """SmoothAdv with one draw: Salman et al.'s PGD in L2, then cross-entropy where it led, under the same noise."""
    change = torch.zeros_like(x)
    for _ in range(steps):
        change.requires_grad_()
        (ascent,) = grad(F.cross_entropy(model(x + change + noise[:, 0]), y), change)
        ascent = ascent / ascent.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        change = (x + change.detach() + 2 * radius / steps * ascent).clamp(0, 1) - x
        change = change.renorm(p=2, dim=0, maxnorm=radius)
    return F.cross_entropy(model(x + change + noise[:, 0]), y)


def macer_loss(
    model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, sigma: float = 0.5, weight: float = 16.0
) -> Tensor:
    """MACER as Zhai et al.'s code has it: all noisy copies in one batch, γ = 8, inverse temperature 16."""
    n, k = noise.shape[:2]
    copies = x.repeat((1, k, 1, 1)).view(n * k, *x.shape[1:])
    logits = model(copies + noise.flatten(0, 1)).view(n, k, -1)
    classification = F.nll_loss((logits.softmax(2).mean(1) + 1e-10).log(), y, reduction="sum")
    top, which = (16 * logits).softmax(2).mean(1).topk(2)
    top = top[which[:, 0] == y]
    standard = torch.distributions.Normal(0.0, 1.0)
    margin = standard.icdf(top[:, 0]) - standard.icdf(top[:, 1])
    top = top[margin.isfinite() & (margin <= 8)]
    robustness = (8 - standard.icdf(top[:, 0]) + standard.icdf(top[:, 1])).sum() * sigma / 2
    return (classification + weight * robustness) / n


LOSSES: dict[str, tuple[Loss, int]] = {  # and noise draws per image
    "gaussian": (gaussian_loss, 1),
    "smoothadv": (smoothadv_loss, 1),
    "macer": (macer_loss, 16),
}


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, procedure: str, epochs: int, batch_size: int, sigma: float
) -> None:
    """Epochs of a robust training procedure through a DataLoader."""
    loss, draws = LOSSES[procedure]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True, drop_last=True):
            noise = torch.randn(len(x), draws, *x.shape[1:]) * sigma
            optimiser.zero_grad()
            loss(model, x, y, noise).backward()
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
    """One upper step of ApproxGrad as the authors' code has it, with fresh noise in every lower and every linear step.

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

    optimiser = torch.optim.Adam(weights, lr=1e-3)
    for _ in range(lower_steps):
        optimiser.zero_grad()
        lower().backward()
        optimiser.step()
    p = [torch.zeros_like(w) for w in weights]
    solver = torch.optim.Adam(p, lr=1e-2)
    for _ in range(linear_steps):
        target, first = grad(upper(), weights), grad(lower(), weights, create_graph=True)
        products = grad(first, weights, p, retain_graph=True)
        residual = [h + damping * v - b for h, v, b in zip(products, p, target, strict=True)]
        for v, h, r in zip(p, grad(first, weights, residual), residual, strict=True):
            v.grad = 2 * (h + damping * r)
        solver.step()
    first = grad(lower(), weights, create_graph=True)
    return -grad(first, x_poison, p)[0]
