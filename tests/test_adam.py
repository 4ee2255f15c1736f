"""Adam in TensorFlow's form, computed a second time in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.solvers import Adam
from engine.streams import stream
from tests.bilevel import normal, quickly


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
