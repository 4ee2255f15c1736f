"""SmoothMix: answers should fade to no opinion on the way from an image to a far adversarial example of it.

Source: Jeong et al. 2021, arXiv:2111.09277, without its one-step adversary for the clean side.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from engine.smoothing import Classifier, log_mean_softmax, noisy_logits
from engine.training.adversary import ascend, normalised
from engine.training.base import Batch, Procedure


class SmoothMix(Procedure):
    """The adversary takes steps of adversary_size with no limit but the pixel range; weight grows with the warm-up.

    Departs: the weight's warm-up begins at 0, where theirs begins one epoch further on.
    """

    def prepare(self, base_classifier: Classifier, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """(The adversary's changes [N, C, H, W], how far to go along them [N], uniform in (0, ½])."""
        change = ascend(
            base_classifier,
            batch,
            step=lambda gradient: self.settings.adversary_size * normalised(gradient),
            steps=self.settings.adversary_steps,
            radius=math.inf,
        )
        drawn = torch.rand(len(change), generator=generator, device=generator.device, dtype=change.dtype)
        return change, 0.5 * (1 - drawn)

    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """Mean of cross-entropy + weight · [right] · mean over draws of KL(target ‖ f(image + far · change + noise)).

        The target is (1 − far)·p̄ + far/K with p̄ the mean answer at the image, through which gradients flow as well.
        """
        images, labels, noise, (change, far), strength = batch
        logits = noisy_logits(base_classifier, images, noise)
        log_mean = log_mean_softmax(logits)
        target = (1 - far[:, None]) * log_mean.exp() + far[:, None] / logits.shape[2]
        mixed = noisy_logits(base_classifier, images + far.view(-1, 1, 1, 1) * change, noise)
        divergence = (target * (target.log() - mixed.log_softmax(dim=2).mean(dim=1))).sum(dim=1)
        right = log_mean.argmax(dim=1) == labels
        mix = divergence.masked_fill(~right, 0.0).mean()
        return nll_loss(logits.log_softmax(dim=2).mean(dim=1), labels) + self.settings.weight * strength * mix


PROCEDURES = {"smoothmix": SmoothMix}
