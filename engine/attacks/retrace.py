"""One upper step of PACD from given weights, images and noise, to compare with what another implementation computed.

It is the composition that `engine.attacks.levels` describes, for procedures without an adversary and images without
augmentation. docs/traces.md says how to bring numbers of the authors' code, and how closely they can agree.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.attacks.levels import updated_poison, upper_loss
from engine.hypergradient import Loss, cross_term, gradient, hessian
from engine.models import with_weights
from engine.solvers import Adam, Operator, adam_on_residual
from engine.training import Procedure
from engine.training.base import Batch


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


def upper_step(
    given: Given,
    *,
    epsilon: float,
    linear_learning_rate: float,
    damping: float = 1e-3,
    poison_learning_rate: float = 0.1,
    inverse_temperature: float = 16.0,
    squeeze: float = 1e-3,
    adam_of_p: Adam | None = None,
    adam_of_poison: Adam | None = None,
) -> UpperStep:
    """As many linear steps of Adam as there are draws of upper noise, the cross term, and a step of the poison.

    Args:
        epsilon: L∞ budget, pixel units of [0, 1].
        adam_of_p, adam_of_poison: what earlier upper steps left; as after a re-initialisation if None.
    Raises: ValueError for a procedure with an adversary (or anything else that it prepares).
    Source: Mehra et al. 2021, arXiv:2012.01274, Section 3, with the released code's constants.
    """
    if given.procedure.prepares:
        raise ValueError(f"{given.procedure.settings.name} has an adversary: compose its steps by hand")
    target = torch.full((len(given.x_poison),), given.target_class, device=given.labels.device)
    labels = torch.cat([given.labels, target])
    of_held_out = torch.full((len(given.held_out),), given.target_class, device=given.labels.device)

    def lower(noise: Tensor) -> Loss:
        def loss(weights: Tensor, x_poison: Tensor) -> Tensor:
            batch = Batch(torch.cat([given.clean, x_poison]), labels, noise)
            return given.procedure.loss(with_weights(given.model, weights), batch)

        return loss

    def upper(noise: Tensor) -> Loss:
        def loss(weights: Tensor, _x_poison: Tensor) -> Tensor:
            return upper_loss(
                with_weights(given.model, weights),
                given.held_out,
                of_held_out,
                noise,
                sigma=given.procedure.sigma,
                inverse_temperature=inverse_temperature,
                squeeze=squeeze,
            )

        return loss

    weights, x_poison = given.weights, given.x_poison
    draws = iter(zip(given.lower_noise[:-1], given.upper_noise, strict=True))

    def system() -> tuple[Operator, Tensor]:
        below, above = next(draws)
        return hessian(lower(below), weights, x_poison), gradient(upper(above), weights, x_poison)[1]

    f, f_v = gradient(upper(given.upper_noise[0]), weights, x_poison)
    g, g_v = gradient(lower(given.lower_noise[0]), weights, x_poison)
    adam_of_p = adam_of_p or Adam(given.p, learning_rate=linear_learning_rate)
    solved = adam_on_residual(system, given.p, steps=len(given.upper_noise), damping=damping, adam=adam_of_p)
    hypergradient = -cross_term(lower(given.lower_noise[-1]), weights, x_poison, solved.solution)
    adam_of_poison = adam_of_poison or Adam(x_poison, learning_rate=poison_learning_rate)
    return UpperStep(
        f,
        g,
        f_v,
        g_v,
        hessian(lower(given.lower_noise[0]), weights, x_poison)(f_v),
        solved.solution,
        torch.as_tensor(solved.relative_residual),
        hypergradient,
        updated_poison(x_poison, given.x_clean, adam_of_poison.step(hypergradient), epsilon=epsilon),
    )
