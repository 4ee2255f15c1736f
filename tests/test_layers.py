"""Layers with derivatives of their own: values and derivatives are torch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.network import as_product, convolved, pooled
from engine.streams import stream


def drawn(layer: nn.Conv2d) -> nn.Conv2d:
    """In float64, with weights and biases that matter."""
    layer = layer.double()
    with torch.no_grad():
        for number, tensor in enumerate(layer.parameters()):
            tensor.normal_(generator=stream(0, "layer", number))
    return layer


@pytest.mark.parametrize(("channels", "kernel", "size"), [((1, 4), (5, 5), 9), ((3, 2), (2, 2), 4)])
def test_a_convolution_as_a_product_is_the_convolution_and_so_are_its_derivatives(channels, kernel, size):
    layer = drawn(nn.Conv2d(*channels, kernel))
    x = torch.rand(2, channels[0], size, size, generator=stream(0, "x"), dtype=torch.float64).requires_grad_()
    given = (x, layer.weight, layer.bias)

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(Convolution(layer), {"layer.weight": weight, "layer.bias": bias}, (x,))

    assert torch.allclose(product(*given), layer(x), rtol=1e-13)
    assert torch.autograd.gradcheck(product, given)
    assert torch.autograd.gradgradcheck(product, given)
    slopes = [torch.autograd.grad(f(*given).square().sum(), given) for f in (product, lambda x, *_: layer(x))]
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(*slopes, strict=True))


class Convolution(nn.Module):
    """A layer's convolution as a product."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return as_product(self.layer, x)


def test_a_convolution_of_constant_images_has_the_derivatives_of_torchs():
    layer = drawn(nn.Conv2d(1, 3, 5))
    images = torch.rand(2, 1, 7, 7, generator=stream(0, "images"), dtype=torch.float64)
    vector = [torch.ones_like(p) for p in layer.parameters()]

    def derivatives(convolution) -> list[Tensor]:
        value = convolution(layer, images).pow(3).sum()
        first = torch.autograd.grad(value, list(layer.parameters()), create_graph=True)
        return [value, *first, *torch.autograd.grad(first, list(layer.parameters()), vector)]

    pairs = zip(derivatives(convolved), derivatives(lambda layer, images: layer(images)), strict=True)
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in pairs)


def pooled_by_torch(h: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(h, 2))


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_pooling_has_the_derivatives_of_torchs(size):
    h = torch.randperm(2 * 3 * math.prod(size), generator=stream(0, "h")).double().view(2, 3, *size) - 60.5
    h.requires_grad_()
    assert torch.equal(pooled(h), pooled_by_torch(h))
    assert torch.autograd.gradcheck(pooled, h)
    assert torch.autograd.gradgradcheck(pooled, h)
    slopes = [torch.autograd.grad(pool(h).square().sum(), h)[0] for pool in (pooled, pooled_by_torch)]
    assert torch.equal(*slopes)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(64, 16), (65, 17)])
def test_pooling_by_bits_is_torchs_for_every_number_of_bfloat16(size, memory_format):
    """Infinities and denormals included; where a network has a NaN its answers are none, and training says so."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    finite_or_not = every.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
    h = torch.zeros(16, 4, *size, dtype=torch.bfloat16)
    for number in range(4):
        order = torch.randperm(2**16, generator=stream(0, "order", number))
        h[:, number, :64, :16] = finite_or_not[order[: 2**14]].view(16, 64, 16)
    h = h.to(memory_format=memory_format)
    with torch.no_grad():
        assert torch.equal(pooled(h), pooled_by_torch(h))
        assert pooled(h).shape == (16, 4, 32, 8)
