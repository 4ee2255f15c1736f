"""Control: independent random signs of full size, as an arm beside an attack or, where there is none, as the attack.

No random change whose signs are fair coins is larger before the cut. On black or white ground the cut takes half of it,
so that a poison that only brightens black ground stays larger in L2: attack brightness is the control for that.
"""

import torch
from torch import Tensor

from engine.attacks.at_once import at_once
from engine.attacks.base import AttackProblem
from engine.threat import within_budget


def random_noise(x_clean: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
    """delta of x_clean's shape [P, C, H, W]: ±epsilon with equal probability, cut where a pixel would leave [0, 1]."""
    return within_budget(x_clean, epsilon * random_signs(x_clean, generator=generator), epsilon=epsilon)


def random_signs(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Independent ±1 of the given tensor's shape."""
    return torch.randint(0, 2, like.shape, generator=generator, device=generator.device).mul_(2).sub_(1).to(like.dtype)


def _signs(problem: AttackProblem, generator: torch.Generator) -> Tensor:
    """[P, C, H, W]: ±epsilon, independent from pixel to pixel and from image to image."""
    return problem.epsilon * random_signs(problem.x_clean, generator=generator)


as_attack = at_once(_signs, stream_name="random_noise")  # that of the control, whose victims may so be taken over
