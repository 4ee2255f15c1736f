"""Gaussian augmentation (GA): cross-entropy on noisy copies. Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.smoothing import Classifier, noisy_copies
from engine.training.base import Procedure


class Gaussian(Procedure):
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
        """Mean cross-entropy of f at image + noise."""
        logits = base_classifier(noisy_copies(images, noise))
        return cross_entropy(logits, labels.repeat_interleave(noise.shape[1]))


PROCEDURES = {"gaussian": Gaussian}
