"""What tests of bilevel optimisation share: a quadratic with a closed form, a small smooth network, ApproxGrad."""

import torch
from hypothesis import settings
from torch import Tensor
from torch.nn.functional import softplus

from engine.hypergradient import ApproxGrad, Loss, cross_term, gradient
from engine.streams import stream

quickly = settings(deadline=None, derandomize=True, database=None, max_examples=60)


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


INPUT, LABEL = normal(3, 2), normal(3, index=1)


def network_loss(weights: Tensor, x: Tensor) -> Tensor:
    """Squared error of a 2-3-1 softplus network [13 weights] at inputs [3, 2]."""
    first, bias, second, last = weights[:6].view(2, 3), weights[6:9], weights[9:12], weights[12]
    return (softplus(x @ first + bias) @ second + last - LABEL).square().mean()


WEIGHTS = normal(13, index=2)


def approx_grad(weights: Tensor, **changes) -> ApproxGrad:
    given = dict(
        linear_solver="cg",
        linear_steps=4,
        damping=0.1,
        weights_learning_rate=0.01,
        linear_learning_rate=0.01,
        generator=stream(0, "sketch"),
    )
    return ApproxGrad(weights, **given | changes)


def exact(lower_loss: Loss, upper_loss: Loss, weights: Tensor, x: Tensor, *, damping: float = 0.0) -> Tensor:
    """The hypergradient of x's shape with the damped Hessian built and solved densely."""
    dense = torch.autograd.functional.hessian(lambda w: lower_loss(w, x), weights)
    assert isinstance(dense, Tensor)
    identity = torch.eye(weights.numel(), dtype=weights.dtype, device=weights.device)
    p = torch.linalg.solve(dense + damping * identity, gradient(upper_loss, weights, x)[1])
    x = x.detach().requires_grad_()
    value = upper_loss(weights.detach(), x)
    direct = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    indirect = cross_term(lower_loss, weights, x, p)
    return -indirect if direct is None else direct - indirect
