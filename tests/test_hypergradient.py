"""Hypergradients and second derivatives: closed forms and finite differences."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import softplus

from engine import hypergradient
from engine.config import LinearSolver
from engine.hypergradient import ApproxGrad, Part, Sum, cross_term, exact, gauss_newton, hessian, unrolled
from engine.solvers import Adam, Operator
from engine.streams import stream


def normal(*shape: int, index: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(0, "test hypergradient", index), dtype=torch.float64)


def positive_definite(size: int, index: int = 0) -> Tensor:
    root = normal(size, size, index=index)
    return root @ root.T / size + torch.eye(size, dtype=torch.float64)


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


def test_gauss_newton_products_are_those_of_the_jacobian_and_the_curvature_of_the_loss():
    """g = log Σ exp z − z₀ + z'ᵀz', whose outputs z and z' are two functions of the weights."""
    mixing = normal(2, 3, 13, index=5)

    def outputs(weights: Tensor) -> Tensor:
        return (mixing @ weights).sin()

    def loss(weights: Tensor, _x: Tensor, tap) -> Tensor:
        first, second = tap(outputs(weights)[0]), tap(outputs(weights)[1])
        return first.logsumexp(dim=0) - first[0] + second.square().sum()

    jacobian = torch.autograd.functional.jacobian(outputs, WEIGHTS)
    p = outputs(WEIGHTS)[0].softmax(dim=0)
    dense = jacobian[0].T @ (p.diag() - p.outer(p)) @ jacobian[0] + 2 * jacobian[1].T @ jacobian[1]
    operator = gauss_newton(loss, WEIGHTS, INPUT)
    for index in range(3):
        vector = normal(13, index=10 + index)
        assert torch.allclose(operator(vector), dense @ vector, rtol=1e-10, atol=1e-12)


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


# --- ApproxGrad


def approx_grad(weights: Tensor, **changes) -> ApproxGrad:
    settings = dict(
        linear_solver="cg",
        linear_steps=4,
        damping=0.1,
        weights_learning_rate=0.01,
        linear_learning_rate=0.01,
        generator=stream(0, "sketch"),
    )
    return ApproxGrad(weights, **settings | changes)


@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"),
    [
        ("cg", 4, 1e-9),
        ("adam", 1500, 1e-3),
        ("adam-shared", 1500, 1e-3),
        ("minres", 4, 1e-9),
        ("neumann", 300, 1e-9),
        ("nystrom", 4, 1e-9),
    ],
)
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


@pytest.mark.parametrize("solver", ["cg", "adam", "gauss-newton-cg"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_loss_in_parts_gives_what_the_whole_gives_however_many_work_on_it(solver, workers):
    x = INPUT

    def part(row: int) -> Part:
        def loss(weights: Tensor, x: Tensor, tap=lambda outputs: outputs) -> Tensor:
            first, bias, second, last = weights[:6].view(2, 3), weights[6:9], weights[9:12], weights[12]
            return (tap(softplus(x[row] @ first + bias) @ second + last) - LABEL[row]).square() / len(x)

        return Part(loss, True)

    parts = [part(row) for row in range(len(x))]

    def whole(weights: Tensor, x: Tensor, tap=lambda outputs: outputs) -> Tensor:
        return torch.stack([one.loss(weights, x, tap) for one in parts]).sum()

    def upper(weights: Tensor, _x: Tensor) -> Tensor:
        return (weights.sin() * normal(13, index=30)).sum()

    idle = Part(lambda weights, x: weights.square().sum(), False)  # x does not matter to it
    with ThreadPoolExecutor(workers) as pool:
        found = approx_grad(WEIGHTS, linear_solver=solver, damping=8.0)
        expected = approx_grad(WEIGHTS, linear_solver=solver, damping=8.0)
        lower = Sum(lambda: parts, pool.map)
        assert float(lower(WEIGHTS, x)) == pytest.approx(float(whole(WEIGHTS, x)), rel=1e-12)
        first, second = (
            found.hypergradient(lower, Sum(lambda: [Part(upper, False)], pool.map), x),
            expected.hypergradient(whole, upper, x),
        )
        assert torch.allclose(first.gradient, second.gradient, rtol=1e-9, atol=1e-12)
        assert first.relative_residual == pytest.approx(second.relative_residual, rel=1e-9)
        assert found.descend(lower, x, steps=3) == pytest.approx(expected.descend(whole, x, steps=3), rel=1e-12)
        assert torch.allclose(found.weights, expected.weights, rtol=1e-12)
        vector = normal(13, index=31)
        in_parts = cross_term(Sum(lambda: [*parts, idle], pool.map), WEIGHTS, x, vector)
        assert torch.allclose(in_parts, cross_term(whole, WEIGHTS, x, vector), rtol=1e-12)


@pytest.mark.parametrize("solver", sorted(set(get_args(LinearSolver)) - {"penalty", "gauss-newton-cg"}))
def test_a_hypergradient_leaves_the_weights_and_a_descent_leaves_p(solver):
    problem = Quadratic()
    bilevel = approx_grad(normal(4), linear_solver=solver)
    bilevel.hypergradient(problem.lower, problem.upper, problem.x)
    assert torch.equal(bilevel.weights, normal(4))
    p = bilevel.p.clone()
    bilevel.descend(problem.lower, problem.x, steps=3)
    assert torch.equal(bilevel.p, p)
    assert not torch.equal(bilevel.weights, normal(4))


def test_a_descent_is_adam_on_the_lower_loss_and_returns_its_value_before_the_last_step():
    problem, weights = Quadratic(), normal(4)
    reference = Adam(weights, learning_rate=0.01)
    w, values, bx = weights, [], problem.b @ problem.x
    for _ in range(7):
        values.append(float(0.5 * w @ problem.a @ w - w @ bx))
        w = w + reference.step(problem.a @ w - bx)
    bilevel = approx_grad(weights)
    first = bilevel.descend(problem.lower, problem.x, steps=4)  # its Adam goes on where it was
    last = bilevel.descend(problem.lower, problem.x, steps=3)
    assert (first, last) == pytest.approx((values[3], values[6]), rel=1e-12)
    assert torch.allclose(bilevel.weights, w, rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "steps", "products"),
    [
        ("adam", 3, 7),
        ("adam-shared", 3, 7),
        ("cg", 3, 4),
        ("minres", 3, 4),
        ("neumann", 3, 7),
        ("nystrom", 3, 4),
        ("one-step", 3, 0),
    ],
)
def test_products_are_counted_and_only_who_multiplies_asks_for_the_hessian(monkeypatch, solver, steps, products):
    problem, asked, made = Quadratic(size=6), [], []

    def counted(*arguments) -> Operator:
        made.append(1)
        operator = hessian(*arguments)
        return lambda vector: asked.append(1) or operator(vector)

    monkeypatch.setattr(hypergradient, "hessian", counted)
    bilevel = approx_grad(normal(6), linear_solver=solver, linear_steps=steps)
    found = bilevel.hypergradient(problem.lower, problem.upper, problem.x)
    assert found.products == len(asked) == products
    assert len(made) == {"adam": steps, "one-step": 0}.get(solver, 1)


def test_one_step_takes_the_upper_gradient_for_the_solution():
    problem, weights = Quadratic(), normal(4)
    found = approx_grad(weights, linear_solver="one-step").hypergradient(problem.lower, problem.upper, problem.x)
    assert torch.allclose(found.gradient, problem.b.T @ (weights - problem.c), rtol=1e-12)
    assert math.isnan(found.relative_residual)


# --- without a linear system


def upper_of_network(weights: Tensor, x: Tensor) -> Tensor:
    return (weights.sin() * normal(13, index=30)).sum() + 0.1 * x.square().sum()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_unrolled_gradient_is_the_slope_of_the_upper_loss_after_those_steps(steps):
    def after(x: Tensor) -> float:
        weights = WEIGHTS
        for _ in range(steps):
            weights = weights - 0.05 * hypergradient.gradient(network_loss, weights, x)[1]
        return float(upper_of_network(weights, x))

    found = unrolled(network_loss, upper_of_network, WEIGHTS, INPUT, steps=steps, learning_rate=0.05)
    assert found.upper_loss == pytest.approx(after(INPUT), rel=1e-12)
    step = 1e-5
    for row in range(3):
        for column in range(2):
            unit = torch.zeros_like(INPUT)
            unit[row, column] = step
            slope = (after(INPUT + unit) - after(INPUT - unit)) / (2 * step)
            assert float(found.gradient[row, column]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_an_unrolled_gradient_becomes_exact_with_its_steps():
    problem = Quadratic(direct=1.0)
    errors = []
    for steps in (1, 10, 100, 400):
        found = unrolled(
            problem.lower, problem.upper, problem.solution(), problem.x, steps=steps, learning_rate=0.2
        ).gradient
        errors.append(float((found - problem.closed_form()).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9


def test_the_penalty_method_ends_where_the_bilevel_problem_does():
    """One unknown, w*(x) = x, upper ½ (w − 2)² + ½ (x − 1)²: the solution is x = w = 1.5."""
    target = torch.tensor([2.0]).double()

    def lower(weights: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (weights - x).square().sum()

    def upper(weights: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (weights - target).square().sum() + 0.5 * (x - 1).square().sum()

    x = torch.zeros(1).double()
    bilevel = approx_grad(x.clone(), linear_solver="penalty", linear_steps=30, damping=20.0, linear_learning_rate=0.003)
    for _ in range(2000):
        x = x - 0.01 * bilevel.hypergradient(lower, upper, x).gradient
    assert float(x) == pytest.approx(1.5, abs=0.02)
    assert float(bilevel.weights) == pytest.approx(1.5, abs=0.02)


def test_the_gradient_of_the_penalty_is_the_hypergradient_where_the_weights_have_converged():
    """γ = 1e4 after one call: p is off by a share of 1/γ."""
    problem = Quadratic()
    bilevel = approx_grad(
        problem.solution(), linear_solver="penalty", linear_steps=4000, damping=1e-4, linear_learning_rate=1e-5
    )
    found = bilevel.hypergradient(problem.lower, problem.upper, problem.x)
    assert torch.allclose(found.gradient, problem.closed_form(), rtol=2e-2, atol=2e-2)
    assert found.products == 4001
