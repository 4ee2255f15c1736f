"""ApproxGrad: its hypergradients become exact, its descents are Adam, its products are counted."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from engine import hypergradient
from engine.choices import LinearSolver
from engine.hypergradient import Part, Sum, cross_term, hessian
from engine.solvers import Adam, Operator
from tests.bilevel import INPUT, LABEL, WEIGHTS, Quadratic, approx_grad, exact, network_loss, normal


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
    assert float(found.upper_loss) == float(problem.upper(weights, problem.x))
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
        assert float(first.relative_residual) == pytest.approx(float(second.relative_residual), rel=1e-9)
        losses = (found.descend(lower, x, steps=3), expected.descend(whole, x, steps=3))
        assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-12)
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
