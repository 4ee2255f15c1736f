"""`python -m benchmarks.published_recipe`: a victim by the published baselines' recipe in plain torch.

No code of the engine trains it: torch's layers, first weights and SGD, all 60 000 images with the last partial
minibatch, and the first rate for an epoch more. The engine's counts of votes certify it, as they do its own victims, so
a difference between the two is one of training. About an hour of one core for each seed.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import ours, plain
from benchmarks.measure import Table, machine, tell
from engine import datasets
from engine.certification import certified_radius
from engine.models.lenet import LeNet

DIGIT = 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published_recipe", description=__doc__)
    parser.add_argument("--sigma", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--epochs", type=int, default=90, help="default: 90, as published")
    parser.add_argument("--n", type=int, default=10_000, help="estimation draws of each image (default: 10 000)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # another seed may have the other core
    found = [_trial(seed, options.sigma, options.epochs, options.n) for seed in options.seeds]
    rows = [(f"{t['seed']}", f"{t['acr']:.4f}", f"{t['accuracy']:.3f}", f"{t['seconds']:.0f}") for t in found]
    title = f"Gaussian augmentation, σ = {options.sigma:g}, {options.epochs} epochs, digit {DIGIT}, n = {options.n}"
    tell([Table(title, ("seed", "ACR", "accuracy", "s"), rows, found)], machine(), options.output)


def _trial(seed: int, sigma: float, epochs: int, n: int) -> dict[str, float]:
    began = time.perf_counter()
    images, labels = (torch.tensor(part) for part in datasets.read("mnist", datasets.default_root(), train=True))
    torch.manual_seed(seed)  # plain torch has but the global generator
    model = plain.lenet()
    train(model, images, labels, sigma=sigma, epochs=epochs)
    images, labels = (torch.tensor(part) for part in datasets.read("mnist", datasets.default_root(), train=False))
    radii = correct_radii(model, images[labels == DIGIT], sigma=sigma, n=n, seed=seed)
    return dict(
        seed=seed,
        acr=float(radii.mean()),
        accuracy=float((radii > 0).mean()),
        seconds=time.perf_counter() - began,
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, *, sigma: float, epochs: int) -> None:
    """Jeong and Shin's recipe for Gaussian augmentation on MNIST (github.com/jh-jeong/smoothing-consistency).

    Their script tells the schedule of an epoch after that epoch, so that the first rate lasts for 31.
    """
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * 0.1 ** (max(0, epoch - 1) // 30)
        for rows in torch.randperm(len(images)).split(256):
            x = images[rows] + sigma * torch.randn(len(rows), 1, 28, 28)
            optimiser.zero_grad()
            F.cross_entropy(model(x), labels[rows]).backward()
            optimiser.step()


def correct_radii(model: nn.Module, images: Tensor, *, sigma: float, n: int, seed: int) -> np.ndarray:
    """[N]: certified radii of images [N, 1, 28, 28] of the digit, 0 where another class or none is certified."""
    votes = ours.votes(as_ours(model), images, n=n, seed=seed, sigma=sigma)
    radii = certified_radius(votes.n_top.numpy(), n=n, sigma=sigma, alpha=ours.ALPHA)
    return np.where(votes.selected_class.numpy() == DIGIT, radii, 0.0)


def as_ours(model: nn.Module) -> LeNet:
    """The plain LeNet's weights in the engine's, whose flattened pixels have their channels last."""
    network, weights = LeNet((1, 28, 28), 10), [w.detach().clone() for w in model.parameters()]
    weights[4] = weights[4].unflatten(1, (50, 4, 4)).permute(0, 2, 3, 1).flatten(1)
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    return network.eval()


if __name__ == "__main__":
    main()
