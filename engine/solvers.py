"""Solvers of (H + damping·I) p = b, for a symmetric H [W, W] that is known by its products with vectors alone.

All but Adam on the residual draw the system once, and all have one signature: (system, start, *, steps, damping). A
solver that does not suit H (an indefinite one, say) still returns what it reached; the residual shows how bad that is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]  # a symmetric linear map [W] → [W]
Scalar = float | Tensor  # a tensor of no dimension where a GPU need not be waited for
System = Callable[[], tuple[Operator, Tensor]]  # draws (H, b); with noisy losses each call may differ
WORST_START = 3.0  # times the target's norm; measured: residuals of good warm starts stay near 1
POWER_STEPS = 3  # that estimate the largest eigenvalue for the Neumann series


class LinearSolution(NamedTuple):
    solution: Tensor  # p [W]
    relative_residual: Scalar  # |(H + damping·I) p − b| / |b|, of the last system drawn; nan if b = 0 or nobody looked
    products: int  # of H with a vector that this took


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

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, in place."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def step(self, gradient: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The change to add to x[rows] for this gradient of x[rows]."""
        steps = self.steps[rows] + 1
        first = torch.lerp(self.first[rows], gradient, 0.1)
        second = torch.lerp(self.second[rows], gradient.square(), 0.001)
        self.steps[rows], self.first[rows], self.second[rows] = steps, first, second
        rate = self.learning_rate * (1 - 0.999**steps).sqrt() / (1 - 0.9**steps)
        return -rate.view(-1, *[1] * (gradient.ndim - 1)) * first / (second.sqrt() + 1e-8)


def adam_on_residual(system: System, start: Tensor, *, steps: int, damping: float, adam: Adam) -> LinearSolution:
    """Adam on ‖H p + damping·p − b‖², with a system drawn afresh for every step, as PACD's code solves it.

    Two products a step (the gradient is 2 (H + damping·I) r, r the residual), one for the last residual.
    """
    solution = start
    for _ in range(steps):
        operator, target = system()
        residual = operator(solution) + damping * solution - target
        solution = solution + adam.step(2 * (operator(residual) + damping * residual))
    residual = operator(solution) + damping * solution - target
    return LinearSolution(solution, residual.norm() / target.norm(), 2 * steps + 1)


def conjugate_gradient(system: System, start: Tensor, *, steps: int, damping: float) -> LinearSolution:
    """At most `steps` conjugate-gradient steps: one product each, and one for the start.

    The damped matrix must be positive definite along the search; where it is not, the search stops there (Steihaug
    1983), after the first direction with b itself (one-step approximation).
    """
    operator, target = system()
    solution, residual = _begun(operator, target, start, damping)
    direction, size, products = residual, residual.dot(residual), 1
    for _ in range(steps):
        if size == 0:
            break
        image, products = operator(direction) + damping * direction, products + 1
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
    return LinearSolution(solution, float(residual.norm() / target.norm()), products)


def minres(system: System, start: Tensor, *, steps: int, damping: float) -> LinearSolution:
    """The least residual that start + span(r, H r, …) has, also where H is indefinite: one product a step, and one.

    The basis is kept and every new direction is made orthogonal to all of it, so that float32 does not lose
    orthogonality; the iterates are MINRES's, whose short recurrence saves memory that a few steps do not need.
    Source: Paige and Saunders 1975, SIAM J. Numer. Anal. 12(4).
    """
    operator, target = system()
    solution, residual = _begun(operator, target, start, damping)
    size = residual.norm()
    if size == 0:
        return LinearSolution(solution, float(size / target.norm()), 1)
    basis, reduced = (residual / size)[None], target.new_zeros(steps + 1, steps)
    for k in range(steps):
        image = operator(basis[k]) + damping * basis[k]
        for _ in range(2):  # once is not enough where little is left
            along = basis @ image
            reduced[: k + 1, k] += along
            image = image - along @ basis
        reduced[k + 1, k] = rest = image.norm()
        if rest <= 10 * torch.finfo(target.dtype).eps * reduced[:, k].norm():  # no direction is left
            reduced = reduced[: k + 1, : k + 1]
            break
        basis = torch.cat([basis, (image / rest)[None]])
    columns, wanted = reduced.shape[1], target.new_zeros(len(reduced))
    wanted[:1] = size
    lengths = _pseudo_inverse(reduced) @ wanted
    solution = solution + lengths @ basis[:columns]
    left = (wanted - reduced @ lengths).norm()
    return LinearSolution(solution, float(left / target.norm()), 1 + columns)


def neumann(system: System, start: Tensor, *, steps: int, damping: float) -> LinearSolution:
    """`steps` more terms of p = α Σ (I − α (H + damping·I))ʲ b, from start: one product each, and POWER_STEPS and one.

    1/α is the most by which a product has stretched a vector so far: in POWER_STEPS power iterations from b, which may
    miss the largest eigenvalue, and of each term before it is added, so that terms that grow are held back. The series
    converges for a positive definite matrix; along negative eigenvalues it grows slowly.
    Source: Lorraine, Vicol, Duvenaud 2020, arXiv:1911.02590, Algorithm 3. Departs: it goes on from start, and finds α;
        theirs begins at 0, and is given it.
    """
    operator, target = system()
    solution, residual = _begun(operator, target, start, damping)
    smallest = torch.finfo(target.dtype).tiny
    largest, vector = target.new_tensor(smallest), target
    for _ in range(POWER_STEPS):
        unit = vector / vector.norm().clamp(min=smallest)
        vector = operator(unit) + damping * unit
        largest = torch.maximum(largest, vector.norm())
    for _ in range(steps):
        image = operator(residual) + damping * residual
        largest = torch.maximum(largest, image.norm() / residual.norm().clamp(min=smallest))
        solution, residual = solution + residual / largest, residual - image / largest
    return LinearSolution(solution, float(residual.norm() / target.norm()), 1 + POWER_STEPS + steps)


def nystrom(system: System, start: Tensor, *, steps: int, damping: float, generator: torch.Generator) -> LinearSolution:
    """The solution for H's approximation of rank `steps`, by Woodbury's identity: that many products, and one.

    H ≈ C (Ωᵀ C)⁺ Cᵀ with C = H Ω for a Gaussian sketch Ω [W, steps]; exact where H's rank is no more than that. What is
    outside its range is divided by the damping, which should not be small then. The start is not used.
    Source: Hataya and Yamada 2023, arXiv:2302.09726, eq. 6. Departs: theirs takes H's columns, most of which are almost
        zero here; a sketch mixes them all.
    """
    operator, target = system()
    sketch = torch.randn(steps, len(target), generator=generator, device=generator.device).to(target)
    columns = torch.stack([operator(direction) for direction in sketch])  # Cᵀ [steps, W]
    core = columns @ sketch.T  # Ωᵀ H Ω
    inner = damping * (core + core.T) / 2 + columns @ columns.T
    low_rank = columns.T @ (_pseudo_inverse(inner, hermitian=True) @ (columns @ target))
    solution = (target - low_rank) / damping
    residual = operator(solution) + damping * solution - target
    return LinearSolution(solution, float(residual.norm() / target.norm()), steps + 1)


def one_step(system: System, start: Tensor, *, steps: int, damping: float) -> LinearSolution:
    """b itself, in the direction of the solution for a large damping: no product, and no residual."""
    return LinearSolution(system()[1], math.nan, 0)


def _pseudo_inverse(matrix: Tensor, *, hermitian: bool = False) -> Tensor:
    """As torch.linalg.pinv, but nan for a matrix that is not finite, as products with other diverged values are."""
    if not matrix.isfinite().all():
        return torch.full_like(matrix.T, torch.nan)
    return torch.linalg.pinv(matrix, hermitian=hermitian)


def _begun(operator: Operator, target: Tensor, start: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(start or zero, its residual): one product.

    A start whose residual is more than WORST_START times that of zero belongs to another system: zero takes its place,
    since warm starts from one stochastic system to the next otherwise grow without bound.
    """
    residual = target - operator(start) - damping * start
    if residual.norm() > WORST_START * target.norm():
        return torch.zeros_like(target), target
    return start, residual
