"""The Adversarial Robustness Toolbox where it does the same work; optional, and imported only when it is measured."""

from typing import Any

import numpy as np
import torch
from torch import nn


def certify(
    model: nn.Module, images: np.ndarray, *, n0: int, n: int, sigma: float, alpha: float, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Classes or -1, radii) of images [N, C, H, W]: its randomized smoothing, one image at a time."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smoothed = PyTorchRandomizedSmoothing(**_common(model, sigma), sample_size=n0, alpha=alpha)
    return smoothed.certify(images, n=n, batch_size=batch_size)


def train(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    procedure: str,
    sigma: float,
    batch_size: int,
    epochs: int,
) -> None:
    """Trains the model by its trainer for "gaussian", "smoothadv" (two steps, one draw; in L∞) or "macer" (k = 16)."""
    from art.estimators.certification import randomized_smoothing as art

    common = _common(model, sigma)
    if procedure == "smoothadv":
        trainer = art.PyTorchSmoothAdv(**common, epsilon=1.0, num_noise_vec=1, num_steps=2, warmup=1)
    elif procedure == "macer":
        trainer = art.PyTorchMACER(**common, gaussian_samples=16, lmbda=16.0)
    else:
        # its Gaussian trainer takes logits from the last of a tuple's outputs
        trainer = art.PyTorchRandomizedSmoothing(**common)
    trainer.fit(images, labels, batch_size=batch_size, nb_epochs=epochs, drop_last=True)


def _common(model: nn.Module, sigma: float) -> dict[str, Any]:
    return dict(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        input_shape=(1, 28, 28),
        nb_classes=10,
        device_type="cpu",
        scale=sigma,
    )
