"""Error-minimising noise: images that the surrogates find easy, so that nothing is learnt from what they show.

Source: Huang, Ma, Erfani, Bailey, Wang, ICLR 2021, arXiv:2101.04898, Section 3, sample-wise min–min.
Departs: surrogates start again and the poison takes one Adam step a minibatch, as in PACD, so that attacks differ in
    what they descend alone; theirs is one network, and 20 signed steps on all images after every 10 of its steps.
"""

from collections.abc import Iterator
from math import nan

from torch import Tensor
from torch.autograd import grad

from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.pacd import PerImage, optimise
from engine.config import AttackConfig
from engine.hypergradient import ApproxGrad, Hypergradient, Loss


def lower_slope(surrogate: ApproxGrad, lower: Loss, _upper: Loss, x_poison: Tensor) -> Hypergradient:
    """d lower / d x_poison at the surrogate as it is."""
    x_poison = x_poison.detach().requires_grad_()
    return Hypergradient(grad(lower(surrogate.weights, x_poison), x_poison)[0], nan)


def error_minimising(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Lowers the surrogates' loss of the poison, yielding after every step. Raises: as `optimise`."""
    return optimise(problem, config, seed, PerImage(problem, config), direction=lower_slope)
