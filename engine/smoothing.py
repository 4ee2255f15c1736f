"""Gaussian smoothing of a base classifier: noise, votes, and the soft radius that the attacker differentiates."""

from collections.abc import Callable

import torch
from torch import Tensor

Classifier = Callable[[Tensor], Tensor]  # images [N, C, H, W] → logits [N, K]


def gaussian_noise(shape: tuple[int, ...], *, sigma: float, generator: torch.Generator) -> Tensor:
    """Independent N(0, sigma²) draws of the given shape, on the generator's device, in pixel units of [0, 1]."""
    return torch.randn(shape, generator=generator, device=generator.device).mul_(sigma)


def noisy_copies(images: Tensor, noise: Tensor) -> Tensor:
    """Images [N, C, H, W] plus their noise [N, M, C, H, W], as one batch [N·M, C, H, W], an image's copies adjacent."""
    return (images.unsqueeze(1) + noise).flatten(0, 1)


def noisy_class_counts(
    base_classifier: Classifier,
    image: Tensor,
    draws: int,
    *,
    sigma: float,
    num_classes: int,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Votes of f over `draws` noisy copies of one image [C, H, W]: int64 [K] on the CPU."""
    counts = torch.zeros(num_classes, dtype=torch.int64, device=image.device)
    with torch.inference_mode():
        for start in range(0, draws, batch_size):
            shape = (min(batch_size, draws - start), *image.shape)
            noisy = gaussian_noise(shape, sigma=sigma, generator=generator).add_(image)
            counts += base_classifier(noisy).argmax(dim=1).bincount(minlength=num_classes)
    return counts.cpu()


def soft_radius(
    logits: Tensor, labels: Tensor, *, sigma: float, inverse_temperature: float = 16.0, squeeze: float = 1e-3
) -> Tensor:
    """Differentiable stand-in for each image's certified radius: [N], pixel units; 0 where the top class is wrong.

    With P = mean over draws of softmax(inverse_temperature · logits) and q(t) = Φ⁻¹((1 − 2·squeeze)·t + squeeze),
    it is sigma/2 · (q(P_top) − q(P_second)). The squeeze keeps Φ⁻¹ finite: no radius exceeds sigma·Φ⁻¹(1 − squeeze).
    A loss, not a guarantee.

    Args:
        logits: [N, M, K], for M noisy copies of each image.
        labels: [N].
    Source: Zhai et al. 2020 (MACER), arXiv:2001.02378, eq. 10; the squeeze is from Mehra et al. 2021 (their code).
    """
    mean = (inverse_temperature * logits).softmax(dim=2).mean(dim=1)  # [N, K]
    (top, second), (top_class, _) = (part.unbind(dim=1) for part in mean.topk(2, dim=1))

    def quantile(p: Tensor) -> Tensor:
        return torch.special.ndtri((1 - 2 * squeeze) * p + squeeze)

    radius = 0.5 * sigma * (quantile(top) - quantile(second))
    return torch.where(top_class == labels, radius, torch.zeros_like(radius))
