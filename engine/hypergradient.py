"""Gradients through the solution of a lower-level problem: d f(w*(x)) / dx where w*(x) = argmin_w g(w, x).

Implicit differentiation gives  df/dx = f_x − g_xw · p  with  (g_ww + damping·I) p = f_w.  Losses are any callables of
(weights, x); both arguments are single tensors, weights a vector [W]. This module knows neither images nor networks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad

Loss = Callable[[Tensor, Tensor], Tensor]  # (weights [W], x) → scalar
Operator = Callable[[Tensor], Tensor]  # a symmetric linear map [W] → [W]
WORST_START = 3.0  # times the target's norm; measured: residuals of good warm starts stay near 1
System = Callable[[], tuple[Operator, Tensor]]  # draws (g_ww, f_w); with noisy losses each call may differ


Each = Callable[[Callable, Iterable], Iterable]  # as `map`; an executor's computes side by side


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
    each: Each = map

    def __call__(self, weights: Tensor, x: Tensor) -> Tensor:
        return _total([part.loss(weights, x) for part in self.parts()])


class LinearSolution(NamedTuple):
    solution: Tensor  # p [W]
    relative_residual: float  # |(H + damping·I) p − b| / |b|, of the last system drawn


class Adam:
    """Adam in TensorFlow's form, whose epsilon is not bias-corrected; it updates a whole tensor or chosen rows of it.

    With per_row, moments and step counts belong to the rows: one that is not in a batch keeps its own.
    Source: Kingma and Ba 2015, arXiv:1412.6980, end of Section 2 ("epsilon hat").
    """

    def __init__(self, like: Tensor, *, learning_rate: float, per_row: bool = False) -> None:
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like)
        self.steps = torch.zeros(like.shape[0] if per_row else 1, dtype=like.dtype, device=like.device)
        self.learning_rate = learning_rate

    def step(self, gradient: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The change to add to x[rows] for this gradient of x[rows]."""
        steps = self.steps[rows] + 1
        first = torch.lerp(self.first[rows], gradient, 0.1)
        second = torch.lerp(self.second[rows], gradient.square(), 0.001)
        self.steps[rows], self.first[rows], self.second[rows] = steps, first, second
        rate = self.learning_rate * (1 - 0.999**steps).sqrt() / (1 - 0.9**steps)
        return -rate.view(-1, *[1] * (gradient.ndim - 1)) * first / (second.sqrt() + 1e-8)


def gradient(loss: Loss, weights: Tensor, x: Tensor) -> tuple[float, Tensor]:
    """(loss, d loss / d weights [W])."""

    def of(part: Part) -> tuple[Tensor, Tensor]:
        at = weights.detach().requires_grad_()
        value = part.loss(at, x.detach())
        return value.detach(), grad(value, at)[0]

    parts, each = _in_parts(loss)
    values, gradients = zip(*each(of, parts), strict=True)
    return float(_total(values)), _total(gradients)


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


def cross_term(loss: Loss, weights: Tensor, x: Tensor, vector: Tensor) -> Tensor:
    """g_xw · vector, of x's shape."""

    def of(part: Part) -> Tensor:
        at, at_x = weights.detach().requires_grad_(), x.detach().requires_grad_()
        (first,) = grad(part.loss(at, at_x), at, create_graph=True)
        return grad(first, at_x, vector)[0]

    parts, each = _in_parts(loss)
    return _total(list(each(of, [part for part in parts if part.has_x])))


def _in_parts(loss: Loss) -> tuple[Sequence[Part], Each]:
    return (loss.parts(), loss.each) if isinstance(loss, Sum) else ([Part(loss, True)], map)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def adam_on_residual(system: System, start: Tensor, *, steps: int, damping: float, adam: Adam) -> LinearSolution:
    """Adam on ‖H p + damping·p − b‖², with a system drawn afresh for every step, as PACD's code solves it.

    Two Hessian-vector products a step (the gradient is 2 (H + damping·I) r, r the residual), one for the last residual.
    """
    solution = start
    for _ in range(steps):
        operator, target = system()
        residual = operator(solution) + damping * solution - target
        solution = solution + adam.step(2 * (operator(residual) + damping * residual))
    residual = operator(solution) + damping * solution - target
    return LinearSolution(solution, float(residual.norm() / target.norm()))


def conjugate_gradient(system: System, start: Tensor, *, steps: int, damping: float) -> LinearSolution:
    """At most `steps` conjugate-gradient steps on a system drawn once; one Hessian-vector product each, and one.

    A start whose residual is more than WORST_START times that of zero belongs to another system: zero takes its place,
    since warm starts from one stochastic system to the next otherwise grow without bound. The damped Hessian must be
    positive definite along the search; where it is not, the search stops there (Steihaug 1983), after the first
    direction with b itself (one-step approximation). What was reached comes back with its residual.
    """
    operator, target = system()
    solution = start
    residual = target - operator(solution) - damping * solution
    if residual.norm() > WORST_START * target.norm():
        solution, residual = torch.zeros_like(target), target
    direction, size = residual, residual.dot(residual)
    for _ in range(steps):
        if size == 0:
            break
        image = operator(direction) + damping * direction
        curvature = direction.dot(image)
        if curvature <= 0:
            if not solution.any():
                solution, residual = target, target - image
            break
        length = size / curvature
        solution = solution + length * direction
        residual = residual - length * image
        previous, size = size, residual.dot(residual)
        direction = residual + size / previous * direction
    return LinearSolution(solution, float(residual.norm() / target.norm()))


@dataclass(frozen=True)
class Hypergradient:
    """d upper / d x at the current approximate lower-level solution, with what is known about its quality."""

    gradient: Tensor  # of x's shape
    upper_loss: float
    relative_residual: float


class ApproxGrad:
    """The alternating bilevel method of PACD: weights and p are carried from one upper step to the next.

    An upper step is `descend` (lower_steps of Adam on the lower loss) and then `hypergradient` (linear_steps on the
    linear system, warm-started, and one cross term); what to do with the gradient is the caller's.
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
    ) -> None:
        self.weights = weights
        self.p = torch.zeros_like(weights)
        self._adam_weights = Adam(weights, learning_rate=weights_learning_rate)
        self._adam_linear = Adam(weights, learning_rate=linear_learning_rate)
        self._solver, self._steps, self._damping = linear_solver, linear_steps, damping

    def descend(self, lower_loss: Loss, x: Tensor, *, steps: int) -> float:
        """Adam steps of the weights on the lower loss; returns its value before the last of them."""
        value = float("nan")
        for _ in range(steps):
            value, first = gradient(lower_loss, self.weights, x)
            self.weights = self.weights + self._adam_weights.step(first)
        return value

    def hypergradient(self, lower_loss: Loss, upper_loss: Loss, x: Tensor) -> Hypergradient:
        """Improves p on the linear system at the current weights and returns −g_xw · p (PACD's f_x is zero)."""
        value = float("nan")

        def system() -> tuple[Operator, Tensor]:
            nonlocal value
            value, target = gradient(upper_loss, self.weights, x)
            return hessian(lower_loss, self.weights, x), target

        if self._solver == "adam":
            solved = adam_on_residual(system, self.p, steps=self._steps, damping=self._damping, adam=self._adam_linear)
        else:
            solved = conjugate_gradient(system, self.p, steps=self._steps, damping=self._damping)
        self.p = solved.solution
        indirect = cross_term(lower_loss, self.weights, x, self.p)
        return Hypergradient(-indirect, value, solved.relative_residual)


def exact(lower_loss: Loss, upper_loss: Loss, weights: Tensor, x: Tensor, *, damping: float = 0.0) -> Tensor:
    """The hypergradient of x's shape with the damped Hessian built and solved densely: for small problems and tests."""
    dense = torch.autograd.functional.hessian(lambda w: lower_loss(w, x), weights)
    assert isinstance(dense, Tensor)
    identity = torch.eye(weights.numel(), dtype=weights.dtype, device=weights.device)
    p = torch.linalg.solve(dense + damping * identity, gradient(upper_loss, weights, x)[1])
    x = x.detach().requires_grad_()
    value = upper_loss(weights.detach(), x)
    direct = grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    indirect = cross_term(lower_loss, weights, x, p)
    return -indirect if direct is None else direct - indirect
