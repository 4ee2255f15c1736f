"""Error-maximising noise: adversarial examples as training images, which teach features of other classes.

Source: Fowl, Goldblum, Chiang, Geiping, Czaja, Goldstein, NeurIPS 2021, arXiv:2106.10807, untargeted.
Departs: several surrogates that go on learning from clean images, and Adam steps, as in PACD, so that attacks differ
    in what they descend alone; theirs is one trained network. A procedure's adversary answers the images whose loss
    is taken, clean ones where surrogates learn.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.error_minimising import lower_slope
from engine.attacks.pacd import PerImage, optimise
from engine.config import AttackConfig
from engine.hypergradient import ApproxGrad, Hypergradient, Loss


def ascent(surrogate: ApproxGrad, lower: Loss, upper: Loss, x_poison: Tensor) -> Hypergradient:
    """−d lower / d x_poison at the surrogate as it is."""
    found = lower_slope(surrogate, lower, upper, x_poison)
    return replace(found, gradient=-found.gradient)


def error_maximising(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Raises clean surrogates' loss of the poison, yielding after every step. Raises: as `optimise`."""
    return optimise(problem, config, seed, PerImage(problem, config), direction=ascent, clean_surrogates=True)
