"""Consistency regularisation: Gaussian augmentation whose answers to one image's noisy copies should agree.

Source: Jeong and Shin 2020, arXiv:2006.04062.
"""

from torch import Tensor
from torch.nn.functional import nll_loss

from engine.smoothing import Classifier, log_mean_softmax, noisy_logits
from engine.training.base import Batch, Procedure

ENTROPY_WEIGHT = 0.5  # η


class Consistency(Procedure):
    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """Mean of cross-entropy + weight · mean over draws j of KL(p̄ ‖ p_j) + η · H(p̄), p̄ the mean of the p_j."""
        logits = noisy_logits(base_classifier, batch.images, batch.noise)
        log_each = logits.log_softmax(dim=2).mean(dim=1)  # [N, K]
        log_mean = log_mean_softmax(logits)
        mean = log_mean.exp()
        disagreement = (mean * (log_mean - log_each)).sum(dim=1).mean()
        entropy = -(mean * log_mean).sum(dim=1).mean()
        return nll_loss(log_each, batch.labels) + self.settings.weight * disagreement + ENTROPY_WEIGHT * entropy


PROCEDURES = {"consistency": Consistency}
