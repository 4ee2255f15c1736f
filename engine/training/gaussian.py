"""Gaussian augmentation (GA): cross-entropy on noisy copies. Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.smoothing import Classifier, noisy_copies
from engine.training.base import Batch, Procedure


class Gaussian(Procedure):
    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """Mean cross-entropy of f at image + noise."""
        logits = base_classifier(noisy_copies(batch.images, batch.noise))
        return cross_entropy(logits, batch.labels.repeat_interleave(batch.noise.shape[1]))


PROCEDURES = {"gaussian": Gaussian}
