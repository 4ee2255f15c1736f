"""MACER: cross-entropy of the smoothed classifier, and a hinge that rewards its soft radius.

Source: Zhai et al. 2020, arXiv:2001.02378; the second form is the one that Mehra et al. 2021 ran (their code).
"""

from typing import ClassVar

from torch import Tensor

from engine.smoothing import Classifier, noisy_logits, soft_margin
from engine.training.base import Batch, Procedure

HINGE = 8.0  # γ: margins beyond it are not rewarded any more


class Macer(Procedure):
    """The robustness term is deferred: it has no weight until the warm-up is over."""

    squeeze: ClassVar[float] = 0.0

    def strength(self, progress: float) -> float:
        """0 until the warm-up is over, then 1."""
        return float(super().strength(progress) == 1)

    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """(Σ −log(mean softmax[label] + 1e-10) + weight · sigma/2 · Σ (γ − margin)) / N.

        The second sum is over images that are classified right, with a margin of at most γ; an infinite one, where
        P_top rounds to 1, is dropped with its gradient.
        """
        logits = noisy_logits(base_classifier, batch.images, batch.noise)
        probability = logits.softmax(dim=2).mean(dim=1).gather(1, batch.labels[:, None])
        total = -(probability + 1e-10).log().sum()
        if batch.strength == 1:
            margin, top_class = soft_margin(logits, squeeze=self.squeeze, most=HINGE)
            counted = (top_class == batch.labels) & (margin <= HINGE)
            hinge = (HINGE - margin).masked_fill(~counted, 0.0).sum()
            total = total + self.settings.weight * 0.5 * self.sigma * hinge
        return total / len(batch.images)


class MacerPacd(Macer):
    """MACER as the authors of PACD ran it: squeezed, so that no margin reaches γ, and with its full weight at once."""

    squeeze = 1e-3


PROCEDURES = {"macer": Macer, "macer-pacd": MacerPacd}
