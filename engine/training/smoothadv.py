"""SmoothAdv: Gaussian augmentation of adversarial examples against the smoothed classifier.

Source: Salman et al. 2019, arXiv:1906.04584; the second form is the one that Mehra et al. 2021 ran (their code).
"""

import torch
from torch import Tensor

from engine.smoothing import Classifier
from engine.solvers import Adam
from engine.training.adversary import Step, ascend, normalised
from engine.training.base import Batch
from engine.training.gaussian import Gaussian


class SmoothAdv(Gaussian):
    """The adversary takes adversary_steps normalised steps of 2·radius/steps; its radius grows with the warm-up.

    Departs: an image whose gradient is exactly zero stays, where Salman's goes in a random direction; the warm-up
        begins at radius 0, where theirs begins one epoch further on.
    """

    def prepare(self, base_classifier: Classifier, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """(The adversary's changes [N, C, H, W],) against these very noise draws, at most `radius` long in L2."""
        radius = batch.strength * self.settings.adversary_size
        steps = self.settings.adversary_steps if radius > 0 else 0
        step = self.step(batch.images, 2 * radius / max(1, steps))
        return (ascend(base_classifier, batch, step=step, steps=steps, radius=radius),)

    def step(self, images: Tensor, length: float) -> Step:
        """What one step of the adversary adds, given the gradient."""
        return lambda gradient: length * normalised(gradient)

    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """Mean cross-entropy of f at image + change + noise; the change counts as constant."""
        (change,) = batch.constants
        return super().loss(base_classifier, batch._replace(images=batch.images + change))


class SmoothAdvPacd(SmoothAdv):
    """SmoothAdv as the authors of PACD ran it: one noise draw per image for ever, and Adam drives the adversary.

    Adam's steps are about ±length in every pixel, so that after the cut and the scaling little but signs is left.
    Departs: Adam's state begins afresh with each batch; the authors' lives on, in slots that different images share.
    """

    fixed_noise = True

    def step(self, images: Tensor, length: float) -> Step:
        adam = Adam(images, learning_rate=length)
        return lambda gradient: adam.step(-gradient)


PROCEDURES = {"smoothadv": SmoothAdv, "smoothadv-pacd": SmoothAdvPacd}
