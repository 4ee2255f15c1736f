"""What a training procedure is, and the one loop that trains every victim."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.data import LabelledImages
from engine.smoothing import Classifier, gaussian_noise

EVALUATED = 1000  # training images on which an epoch's accuracy is read


@dataclass(frozen=True)
class Procedure:
    """How a victim is trained; the attacker's lower level minimises the very same loss.

    loss(base_classifier, images [N, C, H, W], labels [N], noise [N, n_noise, C, H, W]) → mean loss, a scalar.
    """

    loss: Callable[[Classifier, Tensor, Tensor, Tensor], Tensor]
    n_noise: int  # noise draws per image and step

    def draw_noise(self, images: Tensor, *, sigma: float, generator: torch.Generator) -> Tensor:
        """Fresh noise for a batch: [N, n_noise, C, H, W]."""
        shape = (images.shape[0], self.n_noise, *images.shape[1:])
        return gaussian_noise(shape, sigma=sigma, generator=generator)


@dataclass(frozen=True)
class TrainingRecord:
    """One step of `fit`; loss and accuracy are set at the end of an epoch."""

    step: int
    steps: int
    epoch: int
    loss: float | None = None  # mean over the epoch's steps
    accuracy: float | None = None  # of f on one noisy copy of up to 1 000 training images


def fit(
    model: nn.Module,
    data: LabelledImages,
    *,
    procedure: Procedure,
    sigma: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    decay: bool,
    generator: torch.Generator,
) -> Iterator[TrainingRecord]:
    """Trains the model in place with Adam, yielding after every step; the last partial batch is dropped.

    Args:
        decay: lower the learning rate linearly to zero over the training; constant (as in PACD's code) if False.
        generator: orders the images and draws the noise; on the device of data and model.
    Raises: FloatingPointError at the end of an epoch whose loss is not finite.
    """
    batches = max(1, len(data) // batch_size)
    steps = epochs * batches
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=generator, device=generator.device)
        total = torch.zeros((), device=generator.device)
        for batch in range(batches):
            step = epoch * batches + batch
            if decay:
                optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            images = data.images[chosen]
            noise = procedure.draw_noise(images, sigma=sigma, generator=generator)
            loss = procedure.loss(model, images, data.labels[chosen], noise)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
            if batch < batches - 1:
                yield TrainingRecord(step + 1, steps, epoch + 1)
        mean = float(total) / batches
        if not math.isfinite(mean):
            raise FloatingPointError(f"the training loss became {mean} in epoch {epoch + 1} of {epochs}")
        accuracy = _noisy_accuracy(model, data, sigma=sigma, generator=generator)
        yield TrainingRecord((epoch + 1) * batches, steps, epoch + 1, mean, accuracy)


def _noisy_accuracy(model: Classifier, data: LabelledImages, *, sigma: float, generator: torch.Generator) -> float:
    images, labels = data.images[:EVALUATED], data.labels[:EVALUATED]
    with torch.inference_mode():
        noisy = images + gaussian_noise(tuple(images.shape), sigma=sigma, generator=generator)
        predictions = torch.cat([model(part).argmax(dim=1) for part in noisy.split(200)])
        return float((predictions == labels).float().mean())
