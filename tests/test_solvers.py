"""Linear solvers on systems that are solved densely."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.solvers import (
    POWER_STEPS,
    Adam,
    LinearSolution,
    adam_on_residual,
    conjugate_gradient,
    minres,
    neumann,
    nystrom,
    one_step,
)
from engine.streams import stream
from tests.bilevel import normal, positive_definite, quickly


def symmetric(size: int, index: int = 0) -> Tensor:
    """Indefinite, and neither singular nor close to it."""
    values, vectors = torch.linalg.eigh(positive_definite(size, index=index))
    signs = torch.tensor([(-1.0) ** k for k in range(size)]).double()
    return vectors @ (values * signs).diag() @ vectors.T


def true_relative_residual(matrix: Tensor, solution: Tensor, target: Tensor, damping: float) -> float:
    return float((matrix @ solution + damping * solution - target).norm() / target.norm())


def dense(matrix: Tensor, target: Tensor, damping: float) -> Tensor:
    return torch.linalg.solve(matrix + damping * torch.eye(len(target), dtype=torch.float64), target)


def sketched(system, start: Tensor, *, steps: int, damping: float) -> LinearSolution:
    return nystrom(system, start, steps=steps, damping=damping, generator=stream(0, "sketch"))


# --- conjugate gradients


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("damping", [1e-3, 0.5])
@pytest.mark.parametrize("warm", [False, True])
def test_conjugate_gradients_solve_a_system_in_as_many_steps_as_it_has_dimensions(size, damping, warm):
    matrix, target = positive_definite(size), normal(size, index=1)
    start = normal(size, index=2) if warm else torch.zeros_like(target)
    found = conjugate_gradient(lambda: (matrix.mv, target), start, steps=size, damping=damping)
    solution = torch.linalg.solve(matrix + damping * torch.eye(size, dtype=torch.float64), target)
    assert torch.allclose(found.solution, solution, rtol=1e-9, atol=1e-10)
    assert found.relative_residual < 1e-9


@pytest.mark.parametrize("solver", [conjugate_gradient, minres, neumann, sketched])
@quickly
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_the_reported_residual_is_the_true_one_and_every_product_is_counted(
    solver, size, steps, seed, warm, indefinite
):
    generator = stream(seed, "test")
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T if indefinite else matrix @ matrix.T + 0.1 * torch.eye(size, dtype=torch.float64)
    target, start = torch.randn(2, size, generator=generator, dtype=torch.float64)
    start = start if warm else torch.zeros_like(start)
    calls = []

    def counted(vector: Tensor) -> Tensor:
        calls.append(vector)
        return matrix @ vector

    found = solver(lambda: (counted, target), start, steps=steps, damping=0.01)
    assert found.products == len(calls)
    true = true_relative_residual(matrix, found.solution, target, 0.01)
    assert found.relative_residual == pytest.approx(true, rel=1e-6, abs=1e-6)


def test_the_error_falls_with_every_step():
    matrix, target = positive_definite(6), normal(6, index=1)
    solution = torch.linalg.solve(matrix, target)
    errors = []
    for steps in range(7):
        found = conjugate_gradient(lambda: (matrix.mv, target), torch.zeros(6).double(), steps=steps, damping=0.0)
        errors.append(float((found.solution - solution) @ matrix @ (found.solution - solution)))
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 7


def test_one_step_from_zero_goes_along_the_target_as_far_as_is_best():
    matrix, target = positive_definite(5), normal(5, index=1)
    found = conjugate_gradient(lambda: (matrix.mv, target), torch.zeros(5).double(), steps=1, damping=0.2)
    length = target @ target / (target @ (matrix @ target) + 0.2 * target @ target)
    assert torch.allclose(found.solution, length * target, rtol=1e-12)


def test_no_step_from_zero_is_zero_with_the_whole_target_as_its_residual():
    matrix, target = positive_definite(3), normal(3, index=1)
    found = conjugate_gradient(lambda: (matrix.mv, target), torch.zeros(3).double(), steps=0, damping=0.2)
    assert (found.solution == 0).all()
    assert found.relative_residual == 1.0


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_a_start_that_is_the_solution_stays_exactly(solver):
    target = torch.tensor([2.0, 3.0], dtype=torch.float64)
    calls = []

    def twice(vector: Tensor) -> Tensor:
        calls.append(vector)
        return 2 * vector

    found = solver(lambda: (twice, target), target / 4, steps=9, damping=2.0)
    assert torch.equal(found.solution, target / 4)
    assert found.relative_residual == 0
    assert len(calls) == 1


@pytest.mark.parametrize("solver", [conjugate_gradient, minres, neumann, sketched])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_target_of_zero_has_the_solution_zero_and_no_relative_residual(solver, start):
    zero = torch.zeros(3, dtype=torch.float64)
    found = solver(lambda: (positive_definite(3).mv, zero), zero + start, steps=3, damping=0.1)
    assert (found.solution == 0).all()
    assert math.isnan(found.relative_residual)


@pytest.mark.parametrize(
    ("target", "length"),
    [([0.0, 1.0], 1), ([1.0, 1.0], 1), ([2.0, 0.5], 4.25 / 3.5)],
)
def test_conjugate_gradients_stop_at_negative_curvature_with_what_they_have_or_with_b_itself(target, length):
    """H = diag(1, −2): v.Hv is −2 along (0, 1), −1 along (1, 1), 3.5 along (2, 1/2), and negative along the next."""
    diagonal, target = torch.tensor([1.0, -2.0]).double(), torch.tensor(target).double()
    found = conjugate_gradient(lambda: (lambda v: diagonal * v, target), torch.zeros(2).double(), steps=9, damping=0.0)
    expected = length * target
    assert torch.allclose(found.solution, expected, rtol=1e-12)
    assert found.relative_residual == pytest.approx(true_relative_residual(diagonal.diag(), expected, target, 0.0))


@pytest.mark.parametrize(("size", "kept"), [(1.5, True), (10.0, False)])
def test_a_warm_start_far_worse_than_zero_is_dropped_for_zero(size, kept):
    """H = 1: a start of (1 + size)·b has residual size·|b|; no step is taken, so the start comes back."""
    target = torch.tensor([3.0, 4.0]).double()
    found = conjugate_gradient(lambda: (lambda v: v, target), (1 + size) * target, steps=0, damping=0.0)
    assert torch.allclose(found.solution, (1 + size) * target if kept else torch.zeros(2).double())
    assert found.relative_residual == pytest.approx(size if kept else 1.0)


def test_damping_makes_negative_curvature_solvable():
    diagonal, target = torch.tensor([1.0, -2.0]).double(), torch.tensor([1.0, 1.0]).double()
    found = conjugate_gradient(lambda: (lambda v: diagonal * v, target), torch.zeros(2).double(), steps=2, damping=3.0)
    assert torch.allclose(found.solution, torch.tensor([1 / 4, 1.0]).double(), rtol=1e-12)


def test_a_system_is_drawn_once_by_conjugate_gradients_and_afresh_for_each_step_of_adam():
    drawn = []

    def system():
        drawn.append(1)
        return positive_definite(3).mv, normal(3)

    start = torch.zeros(3, dtype=torch.float64)
    conjugate_gradient(system, start, steps=3, damping=0.1)
    assert len(drawn) == 1
    adam_on_residual(system, start, steps=5, damping=0.1, adam=Adam(start, learning_rate=0.01))
    assert len(drawn) == 6


# --- Adam on the residual


class Recorder(Adam):
    """An Adam that writes down the gradients that it is given."""

    def __init__(self, like: Tensor, **settings) -> None:
        super().__init__(like, **settings)
        self.seen: list[Tensor] = []

    def step(self, gradient: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        self.seen.append(gradient)
        return super().step(gradient, rows)


@pytest.mark.parametrize("definite", [True, False])
def test_adam_is_given_the_gradient_of_the_squared_residual(definite):
    matrix = positive_definite(4) if definite else normal(4, 4) + normal(4, 4).T
    target, start, damping = normal(4, index=1), normal(4, index=2), 0.3
    adam = Recorder(start, learning_rate=0.1)
    adam_on_residual(lambda: (matrix.mv, target), start, steps=1, damping=damping, adam=adam)
    p = start.clone().requires_grad_()
    (matrix @ p + damping * p - target).square().sum().backward()
    assert torch.allclose(adam.seen[0], p.grad, rtol=1e-12)


def test_adam_lowers_the_residual_of_a_positive_definite_system_and_reports_the_true_one():
    matrix, target, start = positive_definite(4), normal(4, index=1), torch.zeros(4, dtype=torch.float64)
    residuals = []
    for steps in (1, 10, 100, 1000):
        adam = Adam(start, learning_rate=0.01)
        found = adam_on_residual(lambda: (matrix.mv, target), start, steps=steps, damping=0.01, adam=adam)
        residuals.append(found.relative_residual)
        assert residuals[-1] == pytest.approx(true_relative_residual(matrix, found.solution, target, 0.01))
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[0] < 1
    assert residuals[-1] < 1e-3


# --- MINRES


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("warm", [False, True])
def test_minres_solves_an_indefinite_system_in_as_many_steps_as_it_has_dimensions(size, damping, warm):
    matrix, target = symmetric(size), normal(size, index=1)
    start = 0.1 * normal(size, index=2) if warm else torch.zeros_like(target)
    found = minres(lambda: (matrix.mv, target), start, steps=size + 3, damping=damping)
    assert torch.allclose(found.solution, dense(matrix, target, damping), rtol=1e-9, atol=1e-10)
    assert found.products == size + 1  # it stops where nothing is left


@quickly
@given(st.integers(2, 8), st.integers(1, 7), st.integers(0, 10**6))
def test_no_vector_of_the_krylov_space_has_a_smaller_residual(size, steps, seed):
    generator = stream(seed, "test")
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix, target = matrix + matrix.T, torch.randn(size, generator=generator, dtype=torch.float64)
    found = minres(lambda: (matrix.mv, target), torch.zeros_like(target), steps=steps, damping=0.0)
    space = [target]
    for _ in range(min(steps, size) - 1):
        space.append(matrix @ space[-1] / space[-1].norm())
    basis = torch.linalg.qr(torch.stack(space, dim=1)).Q
    best = basis @ torch.linalg.lstsq(matrix @ basis, target[:, None], driver="gelsd").solution[:, 0]
    assert found.relative_residual <= true_relative_residual(matrix, best, target, 0.0) + 1e-6


def test_in_float32_minres_keeps_its_accuracy_on_a_wide_spectrum():
    values = torch.logspace(-2, 2, 40) * torch.tensor([1.0, -1.0]).repeat(20)
    target = torch.ones(40)
    found = minres(lambda: (lambda v: values * v, target), torch.zeros(40), steps=40, damping=0.0)
    assert found.relative_residual < 1e-3
    assert float((values * found.solution - target).norm() / target.norm()) < 2e-3


# --- the Neumann series


def test_the_neumann_series_is_its_terms():
    matrix, target = positive_definite(5), normal(5, index=1)
    vector = target
    for _ in range(POWER_STEPS):
        vector = matrix @ vector / vector.norm() + 0.2 * vector / vector.norm()
    scale = 1 / vector.norm()
    term, total = scale * target, torch.zeros(5).double()
    for _ in range(4):
        total = total + term
        term = term - scale * (matrix @ term + 0.2 * term)
    found = neumann(lambda: (matrix.mv, target), torch.zeros(5).double(), steps=4, damping=0.2)
    assert torch.allclose(found.solution, total, rtol=1e-10)


@quickly
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_the_neumann_series_converges_whatever_the_scale_of_a_definite_matrix(size, seed, scale):
    generator = stream(seed, "test")
    target, *rows = torch.randn(size + 1, size, generator=generator, dtype=torch.float64)
    root = torch.stack(rows)
    matrix = scale * (root @ root.T / size + torch.eye(size, dtype=torch.float64))
    found = neumann(lambda: (matrix.mv, target), torch.zeros_like(target), steps=600, damping=0.0)
    assert found.relative_residual < 1e-6


def test_an_eigenvalue_that_the_power_iterations_miss_is_noticed_before_the_series_explodes():
    diagonal, target = torch.tensor([1.0, 100.0]).double(), torch.tensor([1.0, 1e-9]).double()
    found = neumann(lambda: (lambda v: diagonal * v, target), torch.zeros(2).double(), steps=2000, damping=0.0)
    assert found.relative_residual < 1e-6


# --- Nyström


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("steps", [3, 6])
@pytest.mark.parametrize("definite", [True, False])
def test_nystrom_is_exact_where_its_rank_suffices(rank, steps, definite):
    vectors, target = normal(12, rank), normal(12, index=1)
    signs = torch.ones(rank).double() if definite else torch.tensor([-5.0, 1.0, 2.0]).double()[:rank]
    matrix = vectors @ signs.diag() @ vectors.T
    found = sketched(lambda: (matrix.mv, target), torch.zeros(12).double(), steps=steps, damping=0.3)
    assert torch.allclose(found.solution, dense(matrix, target, 0.3), rtol=1e-7, atol=1e-8)
    assert found.relative_residual < 1e-7


def test_with_a_rank_that_falls_short_nystrom_divides_the_rest_by_the_damping():
    """H = diag(100, 0, 0, …): a target outside its range is just divided."""
    diagonal, target = torch.zeros(9).double(), torch.ones(9).double()
    diagonal[0], target[0] = 100.0, 0.0
    found = sketched(lambda: (lambda v: diagonal * v, target), torch.zeros(9).double(), steps=1, damping=0.5)
    assert torch.allclose(found.solution, 2 * target, atol=1e-12)


def test_a_sketch_follows_from_its_generator_and_moves_it():
    matrix, target, generator = positive_definite(9), normal(9, index=1), stream(1, "sketch")

    def solved(generator: torch.Generator) -> Tensor:
        return nystrom(lambda: (matrix.mv, target), target, steps=2, damping=0.5, generator=generator).solution

    first, second = solved(generator), solved(generator)
    assert torch.equal(first, solved(stream(1, "sketch")))
    assert not torch.equal(first, second)


# --- one step, and what all have in common


def test_one_step_is_the_target_for_which_nobody_multiplies():
    target = normal(3)
    found = one_step(lambda: (None, target), normal(3, index=1), steps=5, damping=0.1)
    assert torch.equal(found.solution, target)
    assert math.isnan(found.relative_residual)
    assert found.products == 0


@pytest.mark.parametrize("solver", [conjugate_gradient, minres, neumann, sketched])
def test_a_large_damping_turns_every_solution_to_the_target(solver):
    matrix, target = symmetric(6), normal(6, index=1)
    found = solver(lambda: (matrix.mv, target), torch.zeros(6).double(), steps=3, damping=1e6)
    assert torch.allclose(1e6 * found.solution, target, rtol=1e-4)


@pytest.mark.parametrize("solver", [minres, neumann])
@pytest.mark.parametrize("size", [1.5, 10.0])
def test_a_warm_start_far_worse_than_zero_is_dropped_by_others_too(solver, size):
    target = torch.tensor([3.0, 4.0]).double()
    found = solver(lambda: (lambda v: v, target), (1 + size) * target, steps=0, damping=0.0)
    assert found.relative_residual == pytest.approx(size if size < 3 else 1.0)


@pytest.mark.parametrize("solver", [minres, partial(nystrom, generator=stream(0, "sketch"))])
def test_what_has_diverged_comes_back_as_nan_and_not_as_an_error(solver):
    start, target = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    found = solver(lambda: (lambda vector: vector * torch.nan, target), start, steps=2, damping=0.1)
    assert not found.solution.isfinite().any()
    assert math.isnan(found.relative_residual)
