"""Layers with derivatives of their own: values and derivatives are torch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.network import as_product, convolved
from engine.models.pooling import pooled, pooled_bytes, pooled_sum, pooled_sum_in_bytes
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


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 5, 7), (2, 1, 4, 5), (3, 1, 2, 2), (1, 4, 3, 2)])
def test_pooling_has_the_derivatives_of_torchs(shape):
    size = math.prod(shape)
    h = torch.randperm(size, generator=stream(0, "h")).double().view(shape) - (size // 3 + 0.5)
    h.requires_grad_()
    assert torch.equal(pooled(h), pooled_by_torch(h))
    assert torch.autograd.gradcheck(pooled, h)
    assert torch.autograd.gradgradcheck(pooled, h)
    slopes = [torch.autograd.grad(pool(h).square().sum(), h)[0] for pool in (pooled, pooled_by_torch)]
    assert torch.equal(*slopes)


def every_bfloat16(size: tuple[int, int], memory_format: torch.memory_format, *, nans: bool) -> Tensor:
    """[16, 4, *size] with each of them in each channel, in four orders; infinities and denormals included."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    if not nans:
        every = every.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
    h = torch.zeros(16, 4, *size, dtype=torch.bfloat16)
    for number in range(4):
        order = torch.randperm(2**16, generator=stream(0, "order", number))
        h[:, number, :64, :64] = every[order].view(16, 64, 64)
    return h.to(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(64, 64), (65, 67)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pooling_is_torchs_for_every_number_of_bfloat16_and_so_is_its_derivative(dtype, size, memory_format):
    h = every_bfloat16(size, memory_format, nans=True).to(dtype)
    assert h.isnan().any()
    assert torch.equal(pooled(h).isnan(), pooled_by_torch(h).isnan())
    assert torch.equal(pooled(h).nan_to_num(1.0), pooled_by_torch(h).nan_to_num(1.0))
    h = every_bfloat16(size, memory_format, nans=False).to(dtype)
    h[:, 0] = h[:, 0].clamp(-3, 3).round()  # many windows with several maxima, of which the first is meant
    h.requires_grad_()
    outcomes = []
    for pool in (pooled, pooled_by_torch):
        maxima = pool(h)
        gradient = torch.randn(maxima.shape, generator=stream(0, "gradient")).to(dtype)
        outcomes.append((maxima, *torch.autograd.grad(maxima, h, gradient)))
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(64, 64), (65, 67)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pooling_of_a_sum_is_pooling_of_torchs_sum(dtype, size, memory_format):
    h = every_bfloat16(size, memory_format, nans=False).to(dtype)
    for shift in (h[3:4].roll(5, dims=2), torch.zeros_like(h[:1]), torch.full_like(h[:1], 0.01)):
        with torch.no_grad():
            ours, theirs = pooled_sum(h, shift), pooled_by_torch(h + shift)
        assert torch.equal(ours.isnan(), theirs.isnan())  # of infinity less infinity
        assert torch.equal(ours.nan_to_num(1.0), theirs.nan_to_num(1.0))
    assert ours.shape == (16, 4, 32, size[1] // 2)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(64, 64), (65, 67)])
def test_pooling_in_bytes_rounds_to_units_and_a_byte_is_full_where_a_value_is_too_large_or_none(size, memory_format):
    h = every_bfloat16(size, memory_format, nans=True).float()
    unit, shift = 0.25, torch.full_like(h[:1], 0.03)
    found = pooled_sum_in_bytes(h, shift, unit=unit)
    exact = pooled_by_torch(h + shift)
    expected = torch.where(exact / unit < 254.5, (exact / unit + 0.5).floor(), 255.0)  # of a NaN no comparison holds
    assert torch.equal(found.float(), expected)
    assert (exact.isnan() & (found == 255)).any()
    raw = torch.randint(256, (5, 3, *size), dtype=torch.uint8, generator=stream(0, "bytes"))
    assert torch.equal(pooled_bytes(raw).float(), pooled_by_torch(raw.float()))
