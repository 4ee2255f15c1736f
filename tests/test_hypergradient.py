"""Hypergradients and their solvers: closed forms, finite differences, and Adam computed a second time in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import softplus

from engine import hypergradient
from engine.hypergradient import Adam, ApproxGrad, adam_on_residual, conjugate_gradient, cross_term, exact, hessian
from engine.streams import stream

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def normal(*shape: int, index: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(0, "test hypergradient", index), dtype=torch.float64)


def positive_definite(size: int, index: int = 0) -> Tensor:
    root = normal(size, size, index=index)
    return root @ root.T / size + torch.eye(size, dtype=torch.float64)


def true_relative_residual(matrix: Tensor, solution: Tensor, target: Tensor, damping: float) -> float:
    return float((matrix @ solution + damping * solution - target).norm() / target.norm())


class Quadratic:
    """lower(w, x) = w.Aw/2 − w.Bx, solved by w* = A⁻¹Bx; upper(w, x) = |w − c|²/2 + direct d.x."""

    def __init__(self, size: int = 4, inputs: int = 3, direct: float = 0.0) -> None:
        self.a, self.b = positive_definite(size), normal(size, inputs, index=1)
        self.c, self.d = normal(size, index=2), direct * normal(inputs, index=3)
        self.x = normal(inputs, index=4)
        self.direct = direct

    def lower(self, weights: Tensor, x: Tensor) -> Tensor:
        return 0.5 * weights @ self.a @ weights - weights @ self.b @ x

    def upper(self, weights: Tensor, x: Tensor) -> Tensor:
        loss = 0.5 * (weights - self.c).square().sum()
        return loss + self.d @ x if self.direct else loss

    def solution(self) -> Tensor:
        return torch.linalg.solve(self.a, self.b @ self.x)

    def closed_form(self, damping: float = 0.0) -> Tensor:
        damped = self.a + damping * torch.eye(len(self.a), dtype=torch.float64)
        return self.d + self.b.T @ torch.linalg.solve(damped, self.solution() - self.c)


@pytest.mark.parametrize("direct", [0.0, 1.0])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_on_a_quadratic_the_exact_hypergradient_is_the_closed_form(direct, damping):
    problem = Quadratic(direct=direct)
    found = exact(problem.lower, problem.upper, problem.solution(), problem.x, damping=damping)
    assert torch.allclose(found, problem.closed_form(damping), rtol=1e-12, atol=1e-12)


def test_the_exact_hypergradient_is_the_slope_of_the_upper_loss_at_the_solution():
    """No implicit differentiation on this side: f(w*(x)) with w*(x) solved anew for every x."""
    problem = Quadratic(direct=1.0)

    def at_solution(x: Tensor) -> float:
        return float(problem.upper(torch.linalg.solve(problem.a, problem.b @ x), x))

    found = exact(problem.lower, problem.upper, problem.solution(), problem.x)
    step = 1e-5
    for i, unit in enumerate(torch.eye(3, dtype=torch.float64)):
        slope = (at_solution(problem.x + step * unit) - at_solution(problem.x - step * unit)) / (2 * step)
        assert float(found[i]) == pytest.approx(slope, rel=1e-7, abs=1e-9)


# --- second derivatives, on a small smooth network

INPUT, LABEL = normal(3, 2), normal(3, index=1)


def network_loss(weights: Tensor, x: Tensor) -> Tensor:
    """Squared error of a 2-3-1 softplus network [13 weights] at inputs [3, 2]."""
    first, bias, second, last = weights[:6].view(2, 3), weights[6:9], weights[9:12], weights[12]
    return (softplus(x @ first + bias) @ second + last - LABEL).square().mean()


WEIGHTS = normal(13, index=2)


def slope_of_gradient(x_step: Tensor | None = None, weights_step: Tensor | None = None, step: float = 1e-5) -> Tensor:
    def at(sign: int) -> Tensor:
        weights = WEIGHTS if weights_step is None else WEIGHTS + sign * step * weights_step
        x = INPUT if x_step is None else INPUT + sign * step * x_step
        return hypergradient.gradient(network_loss, weights, x)[1]

    return (at(1) - at(-1)) / (2 * step)


def test_the_gradient_is_that_of_finite_differences():
    value, found = hypergradient.gradient(network_loss, WEIGHTS, INPUT)
    assert value == float(network_loss(WEIGHTS, INPUT))
    step = 1e-6
    for i, unit in enumerate(torch.eye(13, dtype=torch.float64)):
        slope = network_loss(WEIGHTS + step * unit, INPUT) - network_loss(WEIGHTS - step * unit, INPUT)
        assert float(found[i]) == pytest.approx(float(slope) / (2 * step), rel=1e-6, abs=1e-8)


def test_hessian_vector_products_are_those_of_finite_differences_and_symmetric():
    operator = hessian(network_loss, WEIGHTS, INPUT)
    columns = torch.stack([operator(unit) for unit in torch.eye(13, dtype=torch.float64)])
    for index in range(3):
        vector = normal(13, index=10 + index)
        assert torch.allclose(operator(vector), slope_of_gradient(weights_step=vector), rtol=1e-6, atol=1e-8)
        assert torch.allclose(columns.T @ vector, operator(vector), rtol=1e-10, atol=1e-12)
    assert torch.allclose(columns, columns.T, rtol=1e-10, atol=1e-12)


def test_the_cross_term_is_that_of_finite_differences():
    vector = normal(13, index=20)
    found = cross_term(network_loss, WEIGHTS, INPUT, vector)
    assert found.shape == INPUT.shape
    for row in range(3):
        for column in range(2):
            unit = torch.zeros_like(INPUT)
            unit[row, column] = 1
            slope = float(slope_of_gradient(x_step=unit) @ vector)
            assert float(found[row, column]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_products_are_derivatives_that_gradcheck_confirms():
    vector = normal(13, index=21)

    class Gradient(torch.autograd.Function):
        """v . g_w as a function of weights and x, with the module's own operators as its derivative."""

        @staticmethod
        def forward(ctx, weights: Tensor, x: Tensor) -> Tensor:
            ctx.save_for_backward(weights, x)
            with torch.enable_grad():
                return hypergradient.gradient(network_loss, weights, x)[1] @ vector

        @staticmethod
        def backward(ctx, out: Tensor) -> tuple[Tensor, Tensor]:
            weights, x = ctx.saved_tensors
            with torch.enable_grad():
                return (
                    out * hessian(network_loss, weights, x)(vector),
                    out * cross_term(network_loss, weights, x, vector),
                )

    assert gradcheck(Gradient.apply, (WEIGHTS.clone().requires_grad_(), INPUT.clone().requires_grad_()))


def test_derivatives_leave_no_gradient_behind_in_their_arguments():
    weights, x = WEIGHTS.clone(), INPUT.clone()
    hypergradient.gradient(network_loss, weights, x)
    hessian(network_loss, weights, x)(weights)
    cross_term(network_loss, weights, x, weights)
    assert not weights.requires_grad
    assert not x.requires_grad


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


@quickly
@given(st.integers(1, 6), st.integers(0, 7), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_the_reported_residual_is_the_true_one(size, steps, seed, warm, indefinite):
    generator = stream(seed, "test")
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T if indefinite else matrix @ matrix.T + 0.1 * torch.eye(size, dtype=torch.float64)
    target, start = torch.randn(2, size, generator=generator, dtype=torch.float64)
    start = start if warm else torch.zeros_like(start)
    found = conjugate_gradient(lambda: (matrix.mv, target), start, steps=steps, damping=0.01)
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


def test_a_start_that_is_the_solution_stays_exactly():
    target = torch.tensor([2.0, 3.0], dtype=torch.float64)
    calls = []

    def twice(vector: Tensor) -> Tensor:
        calls.append(vector)
        return 2 * vector

    found = conjugate_gradient(lambda: (twice, target), target / 4, steps=9, damping=2.0)
    assert torch.equal(found.solution, target / 4)
    assert found.relative_residual == 0
    assert len(calls) == 1


def test_a_target_of_zero_moves_nothing_from_zero():
    zero = torch.zeros(3, dtype=torch.float64)
    found = conjugate_gradient(lambda: (positive_definite(3).mv, zero), zero, steps=5, damping=0.1)
    assert (found.solution == 0).all()


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


# --- ApproxGrad


def approx_grad(weights: Tensor, **changes) -> ApproxGrad:
    settings = dict(
        linear_solver="cg", linear_steps=4, damping=0.1, weights_learning_rate=0.01, linear_learning_rate=0.01
    )
    return ApproxGrad(weights, **settings | changes)


@pytest.mark.parametrize(("solver", "steps", "tolerance"), [("cg", 4, 1e-9), ("adam", 1500, 1e-3)])
def test_with_many_linear_steps_the_hypergradient_becomes_exact(solver, steps, tolerance):
    problem = Quadratic()
    weights = normal(4, index=9)
    bilevel = approx_grad(weights, linear_solver=solver, linear_steps=steps)
    found = bilevel.hypergradient(problem.lower, problem.upper, problem.x)
    expected = exact(problem.lower, problem.upper, weights, problem.x, damping=0.1)
    assert torch.allclose(found.gradient, expected, rtol=tolerance, atol=tolerance)
    assert found.upper_loss == float(problem.upper(weights, problem.x))
    assert found.relative_residual < tolerance


def test_on_a_network_too_the_hypergradient_becomes_exact():
    def upper(weights: Tensor, _x: Tensor) -> Tensor:
        return (weights.sin() * normal(13, index=30)).sum()

    bilevel = approx_grad(WEIGHTS, linear_steps=40, damping=8.0)  # enough damping to make the system definite
    found = bilevel.hypergradient(network_loss, upper, INPUT)
    expected = exact(network_loss, upper, WEIGHTS, INPUT, damping=8.0)
    assert torch.allclose(found.gradient, expected, rtol=1e-7, atol=1e-9)


def test_p_is_carried_from_one_upper_step_to_the_next():
    problem = Quadratic(size=6)
    once, often = approx_grad(normal(6), linear_steps=1), approx_grad(normal(6), linear_steps=1)
    first = once.hypergradient(problem.lower, problem.upper, problem.x).relative_residual
    for _ in range(30):
        last = often.hypergradient(problem.lower, problem.upper, problem.x).relative_residual
    assert last < first / 100
    assert not torch.equal(once.p, often.p)


def test_a_hypergradient_leaves_the_weights_and_a_descent_leaves_p():
    problem = Quadratic()
    bilevel = approx_grad(normal(4))
    bilevel.hypergradient(problem.lower, problem.upper, problem.x)
    assert torch.equal(bilevel.weights, normal(4))
    p = bilevel.p.clone()
    bilevel.descend(problem.lower, problem.x, steps=3)
    assert torch.equal(bilevel.p, p)
    assert not torch.equal(bilevel.weights, normal(4))


def test_a_descent_is_adam_on_the_lower_loss_and_returns_its_value_before_the_last_step():
    problem, weights = Quadratic(), normal(4)
    reference = NumpyAdam(4, 0.01)
    w, values = weights.numpy().copy(), []
    a, bx = problem.a.numpy(), (problem.b @ problem.x).numpy()
    for _ in range(7):
        values.append(0.5 * w @ a @ w - w @ bx)
        w = w + reference.step(a @ w - bx)
    bilevel = approx_grad(weights)
    first = bilevel.descend(problem.lower, problem.x, steps=4)  # its Adam goes on where it was
    last = bilevel.descend(problem.lower, problem.x, steps=3)
    assert (first, last) == pytest.approx((values[3], values[6]), rel=1e-12)
    assert np.allclose(bilevel.weights.numpy(), w, rtol=1e-12)


# --- Adam


class NumpyAdam:
    """TensorFlow's Adam, from its documentation: lr_t = lr sqrt(1 − b2^t)/(1 − b1^t), x −= lr_t m/(sqrt(v) + eps)."""

    def __init__(self, size: int | tuple[int, ...], learning_rate: float) -> None:
        self.m, self.v, self.t, self.learning_rate = np.zeros(size), np.zeros(size), 0, learning_rate

    def step(self, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        rate = self.learning_rate * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        return -rate * self.m / (np.sqrt(self.v) + 1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8, 1e-12])
def test_adam_is_tensorflows(scale):
    adam, reference = Adam(torch.zeros(5, 3).double(), learning_rate=0.1), NumpyAdam((5, 3), 0.1)
    for index in range(30):
        gradient = scale * normal(5, 3, index=index)
        assert np.allclose(adam.step(gradient).numpy(), reference.step(gradient.numpy()), rtol=1e-10, atol=0)


def test_the_first_step_is_the_learning_rate_unless_the_gradient_is_tiny():
    """At 1e-7 epsilon outweighs √v = √0.001 · 1e-7: 0.2402531 of the learning rate; torch's Adam would take 0.909."""
    found = Adam(torch.zeros(4).double(), learning_rate=0.1).step(torch.tensor([1.0, -1e-2, 1e-7, 0.0]).double())
    assert found.tolist() == pytest.approx([-0.1, 0.1, -0.02402531, 0.0], rel=1e-4)
    theirs = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    theirs.grad = torch.tensor([1e-7]).double()
    torch.optim.Adam([theirs], lr=0.1).step()
    assert float(theirs.detach()) == pytest.approx(-0.1 / 1.1, rel=1e-6)


def test_adam_in_float32_is_close_to_float64():
    single, double = (Adam(torch.zeros(4, dtype=dtype), learning_rate=0.1) for dtype in (torch.float32, torch.float64))
    for index in range(200):
        gradient = normal(4, index=index)
        assert torch.allclose(single.step(gradient.float()).double(), double.step(gradient), rtol=1e-3, atol=1e-6)


@quickly
@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=12))
def test_with_state_per_row_each_row_is_an_adam_of_its_own(batches):
    adam = Adam(torch.zeros(5, 1, 2, 2).double(), learning_rate=0.1, per_row=True)
    references = [NumpyAdam((1, 2, 2), 0.1) for _ in range(5)]
    for index, batch in enumerate(batches):
        rows = torch.tensor(sorted(batch, key=lambda row: (row * 7 + index) % 5))  # in any order
        gradients = normal(len(rows), 1, 2, 2, index=index)
        before = [part.clone() for part in (adam.first, adam.second, adam.steps)]
        changes = adam.step(gradients, rows)
        for row, gradient, change in zip(rows.tolist(), gradients, changes, strict=True):
            assert np.allclose(change.numpy(), references[row].step(gradient.numpy()), rtol=1e-10, atol=0)
        others = torch.tensor([row not in batch for row in range(5)])
        for part, earlier in zip((adam.first, adam.second, adam.steps), before, strict=True):
            assert torch.equal(part[others], earlier[others])
    assert adam.steps.tolist() == [sum(row in batch for batch in batches) for row in range(5)]


@quickly
@given(st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_adam_forgets_the_scale_of_gradients_that_are_not_tiny(scale, seed):
    gradients = torch.randn(5, 3, generator=stream(seed, "test"), dtype=torch.float64)
    assume(float(gradients.abs().min()) > 0.05)
    plain, scaled = (Adam(gradients[0], learning_rate=0.1) for _ in range(2))
    for gradient in gradients:
        assert torch.allclose(scaled.step(scale * gradient), plain.step(gradient), rtol=0.02)
