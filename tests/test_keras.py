"""Weights as Keras keeps them: the same networks computed from its arrays, in NHWC and NumPy."""

import math

import numpy as np
import pytest
import torch

from engine.models import build, flat_weights
from engine.models.keras import from_keras, from_nhwc, to_keras
from engine.streams import stream

RNG = np.random.default_rng(0)


def conv(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, *, stride: int = 1, same: bool = False) -> np.ndarray:
    """x [N, H, W, C], kernel [h, w, C, K]; TensorFlow's SAME puts the odd zero at the end."""
    if same:
        sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
        zeros = [max(0, (math.ceil(n / stride) - 1) * stride + k - n) for n, k in sides]
        x = np.pad(x, [(0, 0), *((z // 2, z - z // 2) for z in zeros), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nijchw,hwck->nijk", windows, kernel) + bias


def pool(x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def lenet(arrays: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    k1, b1, k2, b2, d1, c1, d2, c2 = arrays
    h = pool(relu(conv(pool(relu(conv(x, k1, b1))), k2, b2)))
    return relu(h.reshape(len(h), -1) @ d1 + c1) @ d2 + c2


def resnet(arrays: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    left = iter(arrays)

    def conv_and_norm(x: np.ndarray, stride: int = 1) -> np.ndarray:
        h = conv(x, next(left), next(left), stride=stride, same=True)
        return next(left) * h / math.sqrt(1 + 1e-3) + next(left)

    x = relu(conv_and_norm(x))
    for block in range(9):
        stride = 2 if block in (3, 6) else 1
        inner = conv_and_norm(relu(conv_and_norm(x, stride)))
        x = relu(inner + (x if stride == 1 else conv(x, next(left), next(left), stride=2, same=True)))
    found = x.mean(axis=(1, 2)) @ next(left) + next(left)
    assert next(left, None) is None
    return found


@pytest.mark.parametrize(
    ("architecture", "shape", "second"), [("lenet", (1, 28, 28), lenet), ("resnet20-pacd", (3, 16, 16), resnet)]
)
def test_a_network_of_keras_weights_is_keras_network(architecture, shape, second):
    model = build(architecture, shape=shape, generator=stream(0, "test keras")).double().eval()
    shapes = [array.shape for array in to_keras(model, flat_weights(model))]
    arrays = [RNG.normal(size=each) / math.sqrt(max(1, math.prod(each[:-1]))) for each in shapes]
    weights = from_keras(model, arrays)
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    images = RNG.uniform(size=(4, *shape[1:], shape[0]))
    found = model(from_nhwc(images)).detach().numpy()
    assert np.allclose(found, second(arrays, images), rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(to_keras(model, weights), arrays, strict=True):
        assert np.array_equal(mine, theirs)


def test_the_lenets_arrays_are_kerass():
    model = build("lenet", generator=stream(0, "test keras"))
    shapes = [list(array.shape) for array in to_keras(model, flat_weights(model))]
    assert shapes == [[5, 5, 1, 20], [20], [5, 5, 20, 50], [50], [800, 500], [500], [500, 10], [10]]


def test_arrays_that_do_not_fit_are_refused():
    model = build("lenet", generator=stream(0, "test keras"))
    arrays = to_keras(model, flat_weights(model))
    with pytest.raises(ValueError, match="has 8 arrays of weights, got 7"):
        from_keras(model, arrays[:-1])
    with pytest.raises(ValueError, match=r"fc1.weight is \[800, 500\] in Keras's order, got \[500, 800\]"):
        from_keras(model, [*arrays[:4], arrays[4].T, *arrays[5:]])


def test_images_and_noise_are_turned_the_same_way():
    noise = RNG.normal(size=(2, 3, 4, 5, 1))
    found = from_nhwc(noise)
    assert found.shape == (2, 3, 1, 4, 5)
    assert float(found[1, 2, 0, 3, 4]) == noise[1, 2, 3, 4, 0]
