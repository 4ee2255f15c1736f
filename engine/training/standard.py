"""Standard training: cross-entropy on the images as they are, the baseline without any robustness."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.smoothing import Classifier
from engine.training.base import Batch, Procedure


class Standard(Procedure):
    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """Mean cross-entropy of f at the clean images; the noise [N, 0, C, H, W] is empty."""
        return cross_entropy(base_classifier(batch.images), batch.labels)


PROCEDURES = {"standard": Standard}
