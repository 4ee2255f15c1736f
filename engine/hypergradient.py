"""Gradients through the solution of a lower-level problem: d f(w*(x)) / dx where w*(x) = argmin_w g(w, x).

Implicit differentiation gives  df/dx = f_x − g_xw · p  with  (g_ww + damping·I) p = f_w.  Losses are any callables of
(weights, x); both arguments are single tensors, weights a vector [W]. This module knows neither images nor networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad

from engine.replay import ParallelMap
from engine.solvers import (
    Adam,
    LinearSolution,
    Operator,
    Scalar,
    adam_on_residual,
    conjugate_gradient,
    minres,
    neumann,
    nystrom,
    one_step,
)

Loss = Callable[..., Tensor]  # (weights [W], x) → scalar; for Gauss–Newton (weights, x, tap), which sees the outputs


class Part(NamedTuple):
    """A term of a `Sum`, and whether it depends on x."""

    loss: Loss
    has_x: bool


@dataclass(frozen=True)
class Sum:
    """A loss in parts, which `each` computes side by side; results do not depend on how many at a time.

    What is random is drawn by `parts` alone, anew for each evaluation of the loss.
    """

    parts: Callable[[], Sequence[Part]]
    each: ParallelMap = map

    def __call__(self, weights: Tensor, x: Tensor) -> Tensor:
        return _total([part.loss(weights, x) for part in self.parts()])


def gradient(loss: Loss, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d weights [W]), both without a graph."""

    def of(part: Part) -> tuple[Tensor, Tensor]:
        at = weights.detach().requires_grad_()
        value = part.loss(at, x.detach())
        return value.detach(), grad(value, at)[0]

    parts, each = _in_parts(loss)
    values, gradients = zip(*each(of, parts), strict=True)
    return _total(values), _total(gradients)


def hessian(loss: Loss, weights: Tensor, x: Tensor) -> Operator:
    """v → g_ww v at these weights, by one backward pass each through one kept graph (Pearlmutter 1994)."""

    def kept(part: Part) -> tuple[Tensor, Tensor]:
        at = weights.detach().requires_grad_()
        return grad(part.loss(at, x.detach()), at, create_graph=True)[0], at

    parts, each = _in_parts(loss)
    graphs = list(each(kept, parts))

    def product(vector: Tensor) -> Tensor:
        def of(graph: tuple[Tensor, Tensor]) -> Tensor:
            first, at = graph
            return grad(first, at, vector, retain_graph=True)[0]

        return _total(list(each(of, graphs)))

    return product


def gauss_newton(loss: Loss, weights: Tensor, x: Tensor) -> Operator:
    """v → Jᵀ (∂²g/∂z²) J v, the Hessian without the curvature of the outputs z(w) themselves; J = ∂z/∂w.

    Positive semidefinite where g is convex in z. The loss must pass what it computes from the weights through its
    third argument, once or several times. Source: Schraudolph 2002, Neural Computation 14(7).
    """

    def kept(part: Part) -> Operator:
        return _gauss_newton(part.loss, weights.detach().requires_grad_(), x.detach())

    parts, each = _in_parts(loss)
    products = list(each(kept, parts))
    return lambda vector: _total(list(each(lambda product: product(vector), products)))


def _gauss_newton(loss: Loss, weights: Tensor, x: Tensor) -> Operator:
    outputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def tap(output: Tensor) -> Tensor:
        outputs.append(output)
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    value = loss(weights, x, tap)
    slopes = grad(value, leaves, create_graph=True)
    pulled_from = [torch.zeros_like(leaf, requires_grad=True) for leaf in leaves]
    (pulled,) = grad(outputs, weights, pulled_from, create_graph=True)  # Jᵀ u, whose derivative along v is J v

    def product(vector: Tensor) -> Tensor:
        pushed = grad(pulled, pulled_from, vector, retain_graph=True)
        curved = grad(slopes, leaves, pushed, retain_graph=True)
        return grad(outputs, weights, curved, retain_graph=True)[0]

    return product


def cross_term(loss: Loss, weights: Tensor, x: Tensor, vector: Tensor) -> Tensor:
    """g_xw · vector, of x's shape."""

    def of(part: Part) -> Tensor:
        at, at_x = weights.detach().requires_grad_(), x.detach().requires_grad_()
        (first,) = grad(part.loss(at, at_x), at, create_graph=True)
        return grad(first, at_x, vector)[0]

    parts, each = _in_parts(loss)
    return _total(list(each(of, [part for part in parts if part.has_x])))


def _in_parts(loss: Loss) -> tuple[Sequence[Part], ParallelMap]:
    return (loss.parts(), loss.each) if isinstance(loss, Sum) else ([Part(loss, True)], map)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


@dataclass(frozen=True)
class Hypergradient:
    """d upper / d x at the current approximate lower-level solution, with what is known about its quality."""

    gradient: Tensor  # of x's shape
    upper_loss: Scalar
    relative_residual: Scalar = nan  # of the linear system, where there is one
    products: int = 0  # of a lower-level Hessian with a vector that it took


def unrolled(
    lower_loss: Loss, upper_loss: Loss, weights: Tensor, x: Tensor, *, steps: int, learning_rate: float
) -> Hypergradient:
    """d upper(w(x), x) / d x where w(x) is `steps` steps of gradient descent on the lower loss away from weights.

    With one step it is one-step's direction at w(x); with many, at a learning rate that converges, it is exact.
    Source: Shaban, Cheng, Hatch, Boots 2019, arXiv:1810.10667 (truncated back-propagation).
    """
    weights, x = weights.detach().requires_grad_(), x.detach().requires_grad_()
    for _ in range(steps):
        (first,) = grad(lower_loss(weights, x), weights, create_graph=True)
        weights = weights - learning_rate * first
    value = upper_loss(weights, x)
    return Hypergradient(grad(value, x)[0], value.detach(), products=steps - 1)


class ApproxGrad:
    """The alternating bilevel method of PACD: weights and p are carried from one upper step to the next.

    An upper step is `descend` (lower_steps of Adam on the lower loss) and then `hypergradient` (linear_steps on the
    linear system, warm-started, and one cross term); what to do with the gradient is the caller's.

    Args:
        linear_solver: one of config.LinearSolver; "unrolled" and "penalty" do without a linear system.
        linear_learning_rate: of "adam" and "penalty"; of the unrolled gradient descent.
        generator: draws the sketches of "nystrom", and nothing else.
    """

    def __init__(
        self,
        weights: Tensor,
        *,
        linear_solver: str,
        linear_steps: int,
        damping: float,
        weights_learning_rate: float,
        linear_learning_rate: float,
        generator: torch.Generator,
    ) -> None:
        self.weights = weights.clone()
        self.p = torch.zeros_like(weights)
        self._adam_weights = Adam(weights, learning_rate=weights_learning_rate)
        self.adam_of_p = Adam(weights, learning_rate=linear_learning_rate)
        self._penalty = torch.zeros((), dtype=torch.float64)
        self._name, self._steps, self._damping = linear_solver, linear_steps, damping
        self._solvers: dict[str, Callable[..., LinearSolution]] = {
            "adam": lambda system, *a, **k: adam_on_residual(system, *a, adam=self.adam_of_p, **k),
            "adam-shared": lambda system, *a, **k: adam_on_residual(cache(system), *a, adam=self.adam_of_p, **k),
            "cg": conjugate_gradient,
            "gauss-newton-cg": conjugate_gradient,
            "minres": minres,
            "neumann": neumann,
            "nystrom": partial(nystrom, generator=generator),
            "one-step": one_step,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, in place, but for the state of the generator."""
        moments = {"weights": self._adam_weights, "linear": self.adam_of_p}
        return {
            "w": self.weights,
            "p": self.p,
            "penalty": self._penalty,
            **{f"{whose} {name}": moment for whose, adam in moments.items() for name, moment in adam.tensors().items()},
        }

    def descend(self, lower_loss: Loss, x: Tensor, *, steps: int) -> Scalar:
        """Adam steps of the weights on the lower loss; returns its value before the last of them."""
        value: Scalar = nan
        for _ in range(steps):
            value, first = gradient(lower_loss, self.weights, x)
            self.weights += self._adam_weights.step(first)
        return value

    def hypergradient(self, lower_loss: Loss, upper_loss: Loss, x: Tensor) -> Hypergradient:
        """Improves p on the linear system at the current weights and returns −g_xw · p (PACD's f_x is zero)."""
        if self._name == "unrolled":
            rate = self.adam_of_p.learning_rate
            return unrolled(lower_loss, upper_loss, self.weights, x, steps=self._steps, learning_rate=rate)
        if self._name == "penalty":
            return self._penalised(lower_loss, upper_loss, x)
        value: Scalar = nan

        def system() -> tuple[Operator, Tensor]:
            nonlocal value
            value, target = gradient(upper_loss, self.weights, x)
            curvature = gauss_newton if self._name == "gauss-newton-cg" else hessian
            operator = cache(lambda: curvature(lower_loss, self.weights, x))  # its graph is for who multiplies
            return lambda vector: operator()(vector), target

        solved = self._solvers[self._name](system, self.p, steps=self._steps, damping=self._damping)
        self.p.copy_(solved.solution)
        indirect = cross_term(lower_loss, self.weights, x, self.p)
        return Hypergradient(-indirect, value, solved.relative_residual, solved.products)

    def _penalised(self, lower_loss: Loss, upper_loss: Loss, x: Tensor) -> Hypergradient:
        """d (upper + γ/2 |g_w|²) / d x after linear_steps of Adam that lower the same in the weights, which they move.

        Where those have converged γ g_w is −p, but for a damping that goes to 0 as γ grows: by 1 / damping with every
        call. One product a step, and one.
        Source: Mehra and Hamm 2019, arXiv:1911.03432, Algorithm 1. Departs: γ grows by the clock, where theirs waits
            for the slopes to be small; `descend` in between takes the place of their term λ g; no Lagrange multipliers.
        """
        self._penalty += 1 / self._damping
        value: Scalar = nan

        def penalised(weights: Tensor, x: Tensor) -> Tensor:
            nonlocal value
            (first,) = grad(lower_loss(weights, x), weights, create_graph=True)
            upper = upper_loss(weights, x)
            value = upper.detach()
            return upper + float(self._penalty) / 2 * first.square().sum()

        for _ in range(self._steps):
            self.weights += self.adam_of_p.step(gradient(penalised, self.weights, x)[1])
        x = x.detach().requires_grad_()
        total = penalised(self.weights.detach().requires_grad_(), x)
        return Hypergradient(grad(total, x)[0], value, products=self._steps + 1)
