"""The watermark baseline: an image of another class shines through each image.

Source: Shafahi et al., NeurIPS 2018, arXiv:1804.00792, Section 4.1: opacity · other + (1 − opacity) · image.
Departs: every image has an other one of its own, drawn from all other classes, where theirs is the one image to be
    misclassified; and the change is cut at epsilon.
"""

import torch
from torch import Tensor

from engine.attacks.at_once import at_once
from engine.attacks.base import AttackProblem

OPACITY = 0.3  # as theirs is for a network trained from scratch


def blend(problem: AttackProblem, generator: torch.Generator) -> Tensor:
    """opacity · (other − image) [P, C, H, W]. Raises: ValueError if there is no image of another class."""
    others = (problem.training.labels != problem.target_class).nonzero().squeeze(1)
    if len(others) == 0:
        raise ValueError("training must have images of another class than the target class, got none")
    drawn = torch.randint(len(others), (len(problem.indices),), generator=generator, device=generator.device)
    return OPACITY * (problem.training.images[others[drawn]] - problem.x_clean)


watermark = at_once(blend)
