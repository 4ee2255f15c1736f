"""Gradient matching: poison on which a training step is a step that lowers the class's soft radius.

Source: Geiping et al., ICLR 2021, arXiv:2009.02276, eq. 3, with the soft radius in place of their adversarial loss.
Departs: the gradient is that of a whole minibatch, clean images included; surrogates start again and learn from the
    poison, and the poison takes Adam steps, as in PACD; theirs is one clean network, and signed Adam.
"""

from collections.abc import Iterator

from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import cosine_similarity

from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.pacd import PerImage, optimise
from engine.config import AttackConfig
from engine.hypergradient import ApproxGrad, Hypergradient, Loss, gradient


def mismatch_slope(surrogate: ApproxGrad, lower: Loss, upper: Loss, x_poison: Tensor) -> Hypergradient:
    """d (1 − cosine of g_w and f_w, both losses' gradients in the weights) / d x_poison.

    PACD with p = f_w in place of the linear system's solution, except that the length of g_w does not matter.
    """
    value, wanted = gradient(upper, surrogate.weights, x_poison)
    weights, x_poison = surrogate.weights.detach().requires_grad_(), x_poison.detach().requires_grad_()
    (found,) = grad(lower(weights, x_poison), weights, create_graph=True)
    mismatch = 1 - cosine_similarity(found, wanted, dim=0)
    return Hypergradient(grad(mismatch, x_poison)[0], value)


def gradient_matching(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """Turns the surrogates' training gradient towards the upper loss's, yielding after every step.

    Raises: as `optimise`.
    """
    return optimise(problem, config, seed, PerImage(problem, config), direction=mismatch_slope)
