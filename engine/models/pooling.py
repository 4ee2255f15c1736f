"""Pooling of 2×2 pixels and ReLU in one step, alone or behind a convolution, and its derivatives."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.convolution import convolved, is_differentiated

# Bits of bfloat16 as integers: infinity, minus infinity, a NaN. See `kernels.choose`.
BITS = 0x7F80, 0xFF80 - 2**16, 0x7FC0
TILED = 16  # images from which on transforms of tiles, which go over images, are worth it


def pooled(h: Tensor) -> Tensor:
    """ReLU of maxima of 2×2 pixels: [N, C, H, W] → [N, C, H/2, W/2], odd rows and columns at the end dropped.

    The same as maxima of ReLUs, since both are monotone, at a quarter of the ReLU's cost. In channels_last.
    """
    if h.device.type == "cpu":
        return _Pooled.apply(h)
    if torch.is_grad_enabled():
        return F.relu(_Halved.apply(h))
    height, width = h.shape[2] // 2 * 2, h.shape[3] // 2 * 2
    a, b, c, d = (h[:, :, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1))
    return F.relu(torch.maximum(torch.maximum(a, b), torch.maximum(c, d)))  # in channels_last, in half the time


def pooled_sum(h: Tensor, shift: Tensor) -> Tensor:
    """pooled(h + shift) for one shift [1, C, H, W]; on a CPU the sum is never written down."""
    if h.device.type != "cpu" or h.dtype not in (torch.bfloat16, torch.float32) or torch.is_grad_enabled():
        return pooled(h + shift)
    from engine.models import kernels

    maxima = _empty(_halved(h.shape), h)
    (one,) = _array(shift)
    kernels.pool_sums(_array(h), one, _array(maxima))
    return maxima


def convolved_and_pooled(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """pooled(convolved(layer, h)); on a CPU a LeNet's two convolutions have derivatives of our own."""
    if h.device.type == "cpu" and is_differentiated(h) and layer.kernel_size == (5, 5):
        from engine.models.gradients import ROWS

        if layer.in_channels == 1 or 5 * layer.in_channels in ROWS:
            return _ConvolvedAndPooled.apply(h.to(memory_format=torch.channels_last), layer.weight, layer.bias)
    return pooled(convolved(layer, h))


class _ConvolvedAndPooled(torch.autograd.Function):
    """A convolution and the maxima of its outputs: its derivatives know which outputs those were.

    At most one in four has a gradient, and none where ReLU is 0, which is most often; torch is given all the zeros and
    multiplies them. Here each output that has a gradient adds its rows of weights or of images, in an order of its own,
    in a fraction of the time.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if _is_tiled(h):
            from engine.models import winograd

            maxima, chosen = winograd.convolved_and_pooled(h, weight, bias)
        else:
            maxima, chosen = _chosen(F.conv2d(h, weight, bias))
        ctx.save_for_backward(h, weight, chosen)
        return maxima

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, chosen = ctx.saved_tensors
        of_images, *of_layer = ctx.needs_input_grad
        return _Gradients.apply(gradient, h, weight, chosen, of_images, any(of_layer))


class _ConvolvedAndPicked(torch.autograd.Function):
    """The outputs of a convolution that were chosen before, for other images and weights: linear in either."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight, chosen)
        if _is_tiled(h):
            from engine.models import winograd

            return winograd.convolved_and_picked(h, weight, bias, chosen)
        outputs = F.conv2d(h, weight, bias)
        return _Picked.apply(outputs, chosen, outputs.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, chosen = ctx.saved_tensors
        of_images, *of_layer, _ = ctx.needs_input_grad
        return *_Gradients.apply(gradient, h, weight, chosen, of_images, any(of_layer)), None


class _Gradients(torch.autograd.Function):
    """(Gradient of the maxima, images, weights, chosen pixels, what is wanted) → of images, weights and biases.

    Of each of the first three it is linear. So its derivatives are a convolution of the same form and itself.
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, h: Tensor, weight: Tensor, chosen: Tensor, of_images: bool, of_layer: bool
    ) -> tuple[Tensor | None, ...]:
        from engine.models.gradients import loops
        from engine.models.patches import Bands, Rows

        ctx.save_for_backward(gradient, h, weight, chosen)
        ctx.set_materialize_grads(False)
        layout = (Bands if h.shape[1] == 1 else Rows)(h.shape, weight.shape)
        runs = layout.from_weights(weight)
        to_images, to_weights = loops(runs.shape[2])
        given = _array(gradient), chosen.numpy()
        pixels = slopes = biases = None
        if of_images:
            rows = layout.empty(h)
            to_images(*given, runs.numpy(), rows.numpy(), layout.depth)
            pixels = layout.to_images(rows)
        if of_layer:
            sums, biases = torch.empty_like(runs), weight.new_empty(len(weight))
            to_weights(*given, layout.from_images(h).numpy(), sums.numpy(), biases.numpy(), layout.depth)
            slopes = layout.to_weights(sums)
        return pixels, slopes, biases

    @staticmethod
    def backward(ctx: Any, of_images: Tensor | None, of_weights: Tensor | None, of_biases: Tensor | None) -> Any:
        gradient, h, weight, chosen = ctx.saved_tensors
        wanted, wants_images, wants_weights, *_ = ctx.needs_input_grad
        if of_weights is None and of_biases is not None:
            of_weights = torch.zeros_like(weight)
        factors = [(x, w) for x, w in ((of_images, weight), (h, of_weights)) if x is not None and w is not None]
        maxima = pixels = slopes = None
        if wanted and factors:
            images, weights = (torch.cat(each, dim=1) for each in zip(*factors, strict=True))  # one sum, not two
            maxima = _ConvolvedAndPicked.apply(images, weights, of_biases, chosen)
        wants_images, wants_weights = wants_images and of_weights is not None, wants_weights and of_images is not None
        if wants_images or wants_weights:
            images, weights = h if of_images is None else of_images, weight if of_weights is None else of_weights
            pixels, slopes, _ = _Gradients.apply(gradient, images, weights, chosen, wants_images, wants_weights)
        return maxima, pixels, slopes, None, None, None


class _Pooled(torch.autograd.Function):
    """On a CPU: images → maxima. Its derivative is `_Spread`, whose own is `_Picked`, whose own is `_Spread` again."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        maxima, chosen = _chosen(h)
        ctx.save_for_backward(chosen)
        ctx.shape = h.shape
        return maxima

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Spread.apply(gradient, *ctx.saved_tensors, ctx.shape)


class _Spread(torch.autograd.Function):
    """(What belongs to maxima, which pixels they were, the images' shape) → images."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
        from engine.models import kernels

        ctx.save_for_backward(chosen)
        ctx.shape = shape
        images = _empty(shape, pooled)
        kernels.scatter(_array(pooled), chosen.numpy(), _array(images))
        return images

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Picked.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None


class _Picked(torch.autograd.Function):
    """(Images, which pixels were maxima, the images' shape) → what belongs to the maxima."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
        from engine.models import kernels

        ctx.save_for_backward(chosen)
        ctx.shape = shape
        found = _empty(_halved(shape), images)
        kernels.gather(_array(images), chosen.numpy(), _array(found))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None


def _is_tiled(h: Tensor) -> bool:
    """Whether a convolution of these images is quicker by transforms of tiles: of several channels and many images."""
    return h.dtype == torch.float32 and h.shape[1] > 1 and len(h) >= TILED


def _chosen(h: Tensor) -> tuple[Tensor, Tensor]:
    """(pooled(h), which pixels were maxima [N, H // 2, W // 2, C] as `kernels.choose` has them), without a graph."""
    from engine.models import kernels

    values, maxima = _array(h), _empty(_halved(h.shape), h)
    results = _array(maxima)
    chosen = torch.empty(results.shape, dtype=torch.uint8)
    limits = BITS if h.dtype == torch.bfloat16 else (np.inf, 0.0, np.nan)
    kernels.choose(values, results, chosen.numpy(), *(values.dtype.type(limit) for limit in limits))
    return maxima, chosen


def _halved(shape: torch.Size) -> torch.Size:
    return torch.Size((*shape[:2], shape[2] // 2, shape[3] // 2))


def _empty(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _array(h: Tensor) -> np.ndarray:
    """[N, C, H, W] → [N, H, W, C], contiguous; bfloat16, which NumPy does not know, as the integers of its bits.

    Of a tensor in channels_last it is the tensor's own memory, else a copy.
    """
    values = h.view(torch.int16) if h.dtype == torch.bfloat16 else h.detach()
    return np.ascontiguousarray(values.numpy().transpose(0, 2, 3, 1))


class _Halved(torch.autograd.Function):
    """Elsewhere: pooling without the zeros that torch adds for the input in its second derivative."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        maxima, where = torch.ops.aten.max_pool2d_with_indices(h, [2, 2])
        ctx.save_for_backward(h, where)
        return maxima

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Scattered.apply(gradient, *ctx.saved_tensors)


class _Scattered(torch.autograd.Function):
    """Gradients of maxima, brought to where these were: (gradient, what was pooled, positions) → its gradient."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, h: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        how = [2, 2], [2, 2], [0, 0], [1, 1], False  # window, strides, padding, dilation, no partial windows
        return torch.ops.aten.max_pool2d_with_indices_backward(gradient, h, *how, where)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (where,) = ctx.saved_tensors
        return gradient.flatten(2).gather(2, where.flatten(2)).view(where.shape), None, None
