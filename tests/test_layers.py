"""Layers with derivatives of their own: values and derivatives are torch's."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.experiment.pool import pool_of_threads
from engine.models import build
from engine.models.convolution import as_product, convolved
from engine.models.convolved_pooling import MANY, convolved_and_pooled
from engine.models.pooling import pooled, pooled_sum
from engine.models.winograd import PART
from engine.streams import stream


def drawn(layer: nn.Conv2d) -> nn.Conv2d:
    """In float64, with weights and biases that matter."""
    layer = layer.double()
    with torch.no_grad():
        for number, tensor in enumerate(layer.parameters()):
            tensor.normal_(generator=stream(0, "layer", number))
    return layer


class Convolved(nn.Module):
    """A layer as the engine computes it."""

    def __init__(self, layer: nn.Conv2d, compute: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.compute = layer, compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.layer, x)


def function_of(layer: nn.Conv2d, compute: Callable[[nn.Conv2d, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The layer as a function of (images, weight, bias)."""
    module = Convolved(layer, compute)
    return lambda x, weight, bias: torch.func.functional_call(module, {"layer.weight": weight, "layer.bias": bias}, x)


@pytest.mark.parametrize(("channels", "kernel", "size"), [((1, 4), (5, 5), 9), ((3, 2), (2, 2), 4)])
def test_a_convolution_as_a_product_is_the_convolution_and_so_are_its_derivatives(channels, kernel, size):
    layer = drawn(nn.Conv2d(*channels, kernel))
    x = torch.rand(2, channels[0], size, size, generator=stream(0, "x"), dtype=torch.float64).requires_grad_()
    given = (x, layer.weight, layer.bias)
    product = function_of(layer, as_product)
    assert torch.allclose(product(*given), layer(x), rtol=1e-13)
    assert torch.autograd.gradcheck(product, given)
    assert torch.autograd.gradgradcheck(product, given)
    slopes = [torch.autograd.grad(f(*given).square().sum(), given) for f in (product, lambda x, *_: layer(x))]
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(*slopes, strict=True))


def test_a_convolution_of_constant_images_has_the_derivatives_of_torchs():
    layer = drawn(nn.Conv2d(3, 2, 5))
    images = torch.rand(2, 3, 7, 7, generator=stream(0, "images"), dtype=torch.float64)
    vector = [torch.ones_like(p) for p in layer.parameters()]

    def derivatives(convolution) -> list[Tensor]:
        value = convolution(layer, images).pow(3).sum()
        first = torch.autograd.grad(value, list(layer.parameters()), create_graph=True)
        return [value, *first, *torch.autograd.grad(first, list(layer.parameters()), vector)]

    pairs = zip(derivatives(convolved), derivatives(lambda layer, images: layer(images)), strict=True)
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in pairs)


def test_a_convolution_of_one_channel_has_the_derivatives_of_torchs_of_both_orders():
    layer = drawn(nn.Conv2d(1, 3, 3))
    x = torch.rand(2, 1, 5, 6, generator=stream(0, "x"), dtype=torch.float64).requires_grad_()
    given, ours = (x, layer.weight, layer.bias), function_of(layer, convolved)
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)
    assert "_Convolution" in str(ours(*given).grad_fn)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("images", [1, 16, 37])  # parts of 16, whole and not
def test_gradients_of_images_are_torchs_to_float32s_last_digits(images, memory_format):
    layer = drawn(nn.Conv2d(1, 20, 5)).float()
    x = torch.rand(images, 1, 28, 28, generator=stream(0, "x")).requires_grad_()
    gradient = torch.randn(images, 20, 24, 24, generator=stream(0, "gradient")).contiguous(memory_format=memory_format)
    (found,) = torch.autograd.grad(convolved(layer, x), x, gradient)
    (exact,) = torch.autograd.grad(copy.deepcopy(layer).double()(x.double()), x, gradient.double())
    assert close(found, exact)
    assert torch.equal(found, torch.autograd.grad(convolved(layer, x), x, gradient)[0])
    (none,) = torch.autograd.grad(convolved(layer, x), x, torch.zeros_like(gradient))
    assert not none.any()


def close(found: Tensor, exact: Tensor) -> bool:
    return bool((found - exact).norm() <= 1e-6 * exact.norm())


def test_autocast_keeps_to_torch():
    layer, x = nn.Conv2d(1, 20, 5), torch.rand(2, 1, 28, 28).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = convolved(layer, x)
    assert logits.dtype == torch.bfloat16
    assert torch.autograd.grad(logits.float().sum(), x)[0].dtype == torch.float32


def test_a_lenets_convolutions_are_float32s_under_autocast_too_and_so_are_their_derivatives():
    layer = nn.Conv2d(20, 50, 5)
    x = torch.rand(50, 20, 12, 12, generator=stream(0, "x")).requires_grad_()
    plain = convolved_and_pooled(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolved_and_pooled(layer, x)
    given = x, layer.weight, layer.bias
    slopes = (torch.autograd.grad(h.square().sum(), given) for h in (plain, found))
    assert torch.equal(found, plain)
    assert all(torch.equal(*pair) for pair in zip(*slopes, strict=True))


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


def convolved_and_pooled_by_torch(layer: nn.Conv2d, h: Tensor) -> Tensor:
    return pooled_by_torch(layer(h))


@pytest.mark.parametrize("channels", [1, 8, 20])  # of a LeNet's first convolution, a narrow one's second, its second
def test_a_convolution_and_pooling_have_the_derivatives_of_torchs_of_both_orders(channels):
    layer = drawn(nn.Conv2d(channels, 3, 5))
    size = 2, channels, 7, 8  # the last row of the outputs is in no window
    x = torch.rand(size, generator=stream(0, "x"), dtype=torch.float64).requires_grad_()
    given, ours = (x, layer.weight, layer.bias), function_of(layer, convolved_and_pooled)
    theirs = function_of(layer, convolved_and_pooled_by_torch)
    assert 0 < (ours(*given) > 0).double().mean() < 1
    assert torch.allclose(ours(*given), theirs(*given), rtol=1e-12)
    assert "_ConvolvedAndPooled" in str(ours(*given).grad_fn)
    assert torch.autograd.gradcheck(ours, given)

    def derivatives(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), given)
        return (*first, *second)

    for pair in zip(derivatives(ours), derivatives(theirs), strict=True):
        assert torch.allclose(*pair, rtol=1e-10)


@pytest.mark.parametrize("images", [MANY + 5, PART + 5])
@pytest.mark.parametrize("channels", [1, 8, 20])
def test_of_many_images_a_convolution_and_pooling_have_the_derivatives_of_torchs_of_both_orders(channels, images):
    layer = drawn(nn.Conv2d(channels, 50, 5))
    x = torch.rand(images, channels, 12, 13, generator=stream(0, "x"), dtype=torch.float64)

    def derivatives(compute: Callable[[nn.Conv2d, Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [each.detach().to(dtype).requires_grad_() for each in (x, *layer.parameters())]
        values = function_of(layer.to(dtype), compute)(*given)
        first = torch.autograd.grad(values.pow(3).mean(), given, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), given)
        return (values, *first, *second)

    theirs = derivatives(convolved_and_pooled_by_torch, torch.float64)
    for ours, exact in zip(derivatives(convolved_and_pooled, torch.float32), theirs, strict=True):
        assert (ours - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True,) * 3])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("images", "channels"), [(1, 20), (9, 20), (9, 1)])
def test_gradients_of_a_convolution_and_pooling_are_torchs_to_float32s_last_digits(
    images, channels, memory_format, wanted
):
    layer = drawn(nn.Conv2d(channels, 50, 5)).float()
    given = [torch.rand(images, channels, 12, 12, generator=stream(0, "x")), *layer.parameters()]
    given[0] = given[0].contiguous(memory_format=memory_format)
    for tensor, is_wanted in zip(given, wanted, strict=True):
        tensor.requires_grad_(is_wanted)
    gradient = torch.randn(images, 50, 4, 4, generator=stream(0, "gradient")).contiguous(memory_format=memory_format)
    asked = [tensor for tensor in given if tensor.requires_grad]

    def gradients(upstream: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function_of(layer, convolved_and_pooled)(*given), asked, upstream)

    found = gradients(gradient)
    # float32's own choices: of two outputs that are close float64's may be the other one
    outputs = layer(given[0]).detach()
    chosen = F.max_pool2d(outputs, 2, return_indices=True)[1]
    spread = F.max_unpool2d(gradient * (pooled_by_torch(outputs) > 0), chosen, 2)
    doubles = [tensor.detach().double().requires_grad_() for tensor in given]
    exact = torch.autograd.grad(F.conv2d(*doubles), doubles, spread.double())
    for ours, theirs in zip(found, [e for e, w in zip(exact, wanted, strict=True) if w], strict=True):
        assert ours.shape == theirs.shape
        assert close(ours, theirs)
    assert all(torch.equal(*pair) for pair in zip(found, gradients(gradient), strict=True))
    assert not any(each.any() for each in gradients(torch.zeros_like(gradient)))


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


@pytest.mark.usefixtures("busy")
def test_gradients_of_a_lenet_are_the_same_bytes_from_four_workers_as_from_one_beside_other_work():
    model = build("lenet", generator=stream(0, "model"))
    images = torch.rand(37, 1, 28, 28, generator=stream(0, "images")).requires_grad_()

    def gradients(_: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(images).square().sum(), [images, *model.parameters()])

    with pool_of_threads(torch.device("cpu"), 1) as one, pool_of_threads(torch.device("cpu"), 4) as four:
        first, *others = [*one.map(gradients, range(2)), *four.map(gradients, range(12))]
    assert all(torch.equal(*pair) for each in others for pair in zip(first, each, strict=True))
