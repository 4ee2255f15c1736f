"""One upper step of PACD from given weights, images and noise, to compare with what another implementation computed.

It is the attack's own ApproxGrad around losses of given noise, for procedures without an adversary and images without
augmentation. docs/traces.md says how to bring numbers of the authors' code, and how closely they can agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.attacks.levels import updated_poison, upper_loss
from engine.hypergradient import ApproxGrad, Loss, gradient, hessian
from engine.models import with_weights
from engine.solvers import Adam
from engine.training import Procedure
from engine.training.base import Batch

DAMPING = 1e-3  # the released code's


@dataclass(frozen=True)
class Given:
    """What an upper step computes with. All of one floating-point type; noise is scaled by sigma already."""

    model: nn.Module  # in evaluation mode; its own weights do not matter
    weights: Tensor  # [W], in the order of `flat_weights`, after the lower steps
    p: Tensor  # [W], where the linear system starts; zeros after a re-initialisation
    procedure: Procedure  # the lower level's, of `make(settings, sigma=…)`
    clean: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    x_poison: Tensor  # [B, C, H, W], all of the target class
    x_clean: Tensor  # [B, C, H, W], the same images before any change
    held_out: Tensor  # [V, C, H, W], of the target class
    target_class: int
    lower_noise: Tensor  # [S + 1, N + B, M, C, H, W]: for each linear step, and for the cross term
    upper_noise: Tensor  # [S, V, M', C, H, W]: for each linear step


class UpperStep(NamedTuple):
    """What came out; losses, gradients and the product are at the first draw of the noise."""

    upper_loss: Tensor  # f
    lower_loss: Tensor  # g
    upper_gradient: Tensor  # f_v [W]
    lower_gradient: Tensor  # g_v [W]
    product: Tensor  # g_vv f_v [W]
    p: Tensor  # [W], after the linear steps
    relative_residual: Tensor  # ‖(H + damping) p − f_v‖ / ‖f_v‖ at the last draw; PACD's h / ‖f_v‖² is its square
    hypergradient: Tensor  # −g_uv p [B, C, H, W]
    x_poison: Tensor  # [B, C, H, W], updated


def upper_step(given: Given, *, epsilon: float, adam_of_p: Adam, adam_of_poison: Adam) -> UpperStep:
    """As many linear steps of Adam as there are draws of upper noise, the cross term, and a step of the poison.

    Args:
        epsilon: L∞ budget, pixel units of [0, 1].
        adam_of_p, adam_of_poison: as earlier upper steps left them, new after a re-initialisation; this one moves them.
    Raises: ValueError for a procedure with an adversary (or anything else that it prepares), or where there is not
        one draw of lower noise more than of upper noise.
    Source: Mehra et al. 2021, arXiv:2012.01274, Section 3, with the released code's constants.
    """
    if given.procedure.prepares:
        raise ValueError(f"{given.procedure.settings.name} has an adversary: compose its steps by hand")
    steps, draws = len(given.upper_noise), len(given.lower_noise)
    if draws != steps + 1:
        raise ValueError(f"lower_noise must have {steps + 1} draws, one more than upper_noise, got {draws}")
    weights, x_poison = given.weights, given.x_poison
    bilevel = ApproxGrad(
        weights,
        linear_solver="adam",
        linear_steps=steps,
        damping=DAMPING,
        weights_learning_rate=0.0,  # the weights stay where they are
        linear_learning_rate=adam_of_p.learning_rate,
        generator=torch.Generator(),  # never asked
    )
    bilevel.p.copy_(given.p)
    bilevel.adam_of_p = adam_of_p
    found = bilevel.hypergradient(*_levels(given, iter(given.lower_noise), iter(given.upper_noise)), x_poison)
    lower, upper = _levels(given, repeat(given.lower_noise[0]), repeat(given.upper_noise[0]))
    f, f_v = gradient(upper, weights, x_poison)
    g, g_v = gradient(lower, weights, x_poison)
    return UpperStep(
        f,
        g,
        f_v,
        g_v,
        hessian(lower, weights, x_poison)(f_v),
        bilevel.p,
        torch.as_tensor(found.relative_residual),
        found.gradient,
        updated_poison(x_poison, given.x_clean, adam_of_poison.step(found.gradient), epsilon=epsilon),
    )


def _levels(given: Given, lower_noise: Iterator[Tensor], upper_noise: Iterator[Tensor]) -> tuple[Loss, Loss]:
    """(g, f), each with the next draw of its noise at every call."""
    target = given.labels.new_tensor([given.target_class])
    labels = torch.cat([given.labels, target.expand(len(given.x_poison))])
    of_held_out = target.expand(len(given.held_out))

    def lower(weights: Tensor, x_poison: Tensor) -> Tensor:
        batch = Batch(torch.cat([given.clean, x_poison]), labels, next(lower_noise))
        return given.procedure.loss(with_weights(given.model, weights), batch)

    def upper(weights: Tensor, _x_poison: Tensor) -> Tensor:
        f, noise, sigma = with_weights(given.model, weights), next(upper_noise), given.procedure.sigma
        return upper_loss(f, given.held_out, of_held_out, noise, sigma=sigma)

    return lower, upper
