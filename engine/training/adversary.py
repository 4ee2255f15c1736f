"""Gradient ascent from images to where the smoothed classifier is worse, for procedures that train there."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from engine.smoothing import Classifier, log_mean_softmax, noisy_logits
from engine.training.base import Batch

Step = Callable[[Tensor], Tensor]  # gradient [N, C, H, W] → what is added to the change


def ascend(base_classifier: Classifier, batch: Batch, *, step: Step, steps: int, radius: float) -> Tensor:
    """Changes [N, C, H, W] that raise −log mean over draws of softmax(f(image + change + noise))[label].

    After each step the change is cut so that pixels stay within [0, 1], and then scaled into the L2 ball of this
    radius (pixel units; may be infinite). The noise is the same in all steps. Only images are differentiated: the
    base classifier may be a module, whose gradients stay untouched, or a function of weights.
    """
    images = batch.images.detach()
    change = torch.zeros_like(images)
    for _ in range(steps):
        at = (images + change).requires_grad_()
        logits = noisy_logits(base_classifier, at, batch.noise)
        loss = nll_loss(log_mean_softmax(logits), batch.labels, reduction="sum")
        change = change + step(torch.autograd.grad(loss, at)[0])
        change = (images + change).clamp(0, 1) - images
        change = change * (radius / l2(change)).clamp(max=1)
    return change


def normalised(gradient: Tensor) -> Tensor:
    """Each image's gradient at L2 norm 1; one of zero stays zero (where some draw a random direction)."""
    return gradient / l2(gradient)


def l2(change: Tensor) -> Tensor:
    """L2 norm of each image's change, as [N, 1, 1, 1] and never quite 0."""
    return change.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
