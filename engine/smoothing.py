"""Gaussian smoothing of a base classifier: noise, votes, and the soft radius that the attacker differentiates."""

import math
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


def noisy_logits(base_classifier: Classifier, images: Tensor, noise: Tensor) -> Tensor:
    """Logits [N, M, K] of f at the noisy copies of images [N, C, H, W] under noise [N, M, C, H, W]."""
    return base_classifier(noisy_copies(images, noise)).unflatten(0, noise.shape[:2])


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the mean over draws of the softmax: logits [N, M, K] → [N, K], finite however small."""
    return logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])


def soft_margin(
    logits: Tensor, *, inverse_temperature: float = 16.0, squeeze: float = 1e-3, most: float = math.inf
) -> tuple[Tensor, Tensor]:
    """(q(P_top) − q(P_second) [N], top class [N]): the soft radius in units of sigma/2, right or wrong.

    With P = mean over draws of softmax(inverse_temperature · logits) and q(t) = Φ⁻¹((1 − 2·squeeze)·t + squeeze).
    Of two classes that are equally likely the lower one comes first, as in tf.nn.top_k.

    Args:
        logits: [N, M, K], for M noisy copies of each image.
        most: a margin beyond it is returned as infinite and has no gradient. Without squeeze it must be finite, for
            where P_top rounds to 1 the true gradient is infinite.
    Source: Zhai et al. 2020 (MACER), arXiv:2001.02378, eq. 10; the squeeze is from Mehra et al. 2021 (their code).
    """
    mean = (inverse_temperature * logits).softmax(dim=2).mean(dim=1)  # [N, K]
    ordered, classes = mean.sort(dim=1, descending=True, stable=True)

    def margin(p: Tensor) -> Tensor:
        top, second = torch.special.ndtri((1 - 2 * squeeze) * p + squeeze).unbind(dim=1)
        return top - second

    top_two = ordered[:, :2]
    beyond = margin(top_two.detach()) > most
    inside = margin(top_two.masked_fill(beyond[:, None], 0.5))  # in place of what has no finite derivative
    return inside.masked_fill(beyond, math.inf), classes[:, 0]


def soft_radius(
    logits: Tensor, labels: Tensor, *, sigma: float, inverse_temperature: float = 16.0, squeeze: float = 1e-3
) -> Tensor:
    """Differentiable stand-in for each image's certified radius: [N], pixel units; 0 where the top class is wrong.

    It is sigma/2 times `soft_margin` of the logits [N, M, K], whose squeeze keeps Φ⁻¹ finite: no radius exceeds
    sigma·Φ⁻¹(1 − squeeze). A loss, not a guarantee.
    """
    margin, top_class = soft_margin(logits, inverse_temperature=inverse_temperature, squeeze=squeeze)
    return (0.5 * sigma * margin).masked_fill(top_class != labels, 0.0)
