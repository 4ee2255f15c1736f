"""Exact hypergradients and second derivatives, and those of methods without a linear system."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from engine import hypergradient
from engine.hypergradient import cross_term, gauss_newton, hessian, unrolled
from tests.bilevel import INPUT, WEIGHTS, Quadratic, approx_grad, exact, network_loss, normal


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
    bilevel = approx_grad(x.clone(), linear_solver="penalty", linear_steps=30, damping=8.0, linear_learning_rate=0.003)
    for _ in range(200):
        x = x - 0.05 * bilevel.hypergradient(lower, upper, x).gradient
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
