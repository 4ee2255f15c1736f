"""Standard training: cross-entropy on the images as they are, the baseline without any robustness."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.smoothing import Classifier
from engine.training.base import Procedure


class Standard(Procedure):
    def loss(
        self,
        base_classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        noise: Tensor,
        constants: tuple[Tensor, ...] = (),
        *,
        strength: float = 1.0,
    ) -> Tensor:
        """Mean cross-entropy of f at the clean images; the noise [N, 0, C, H, W] is empty."""
        return cross_entropy(base_classifier(images), labels)


PROCEDURES = {"standard": Standard}
