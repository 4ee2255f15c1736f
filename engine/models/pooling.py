"""Pooling of 2×2 pixels and ReLU in one step, and its derivatives."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Bits of bfloat16 as integers: infinity, minus infinity, a NaN. See `kernels.choose`.
BITS = 0x7F80, 0xFF80 - 2**16, 0x7FC0


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
    (one,) = array_of(shift)
    kernels.pool_sums(array_of(h), one, array_of(maxima))
    return maxima


class _Pooled(torch.autograd.Function):
    """On a CPU: images → maxima. Its derivative is `_Spread`, whose own is `Picked`, whose own is `_Spread` again."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        maxima, chosen = chosen_maxima(h)
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
        kernels.scatter(array_of(pooled), chosen.numpy(), array_of(images))
        return images

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return Picked.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None


class Picked(torch.autograd.Function):
    """(Images, which pixels were maxima, the images' shape) → what belongs to the maxima."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
        from engine.models import kernels

        ctx.save_for_backward(chosen)
        ctx.shape = shape
        found = _empty(_halved(shape), images)
        kernels.gather(array_of(images), chosen.numpy(), array_of(found))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None


def chosen_maxima(h: Tensor) -> tuple[Tensor, Tensor]:
    """(pooled(h), which pixels were maxima [N, H // 2, W // 2, C] as `kernels.choose` has them), without a graph."""
    from engine.models import kernels

    values, maxima = array_of(h), _empty(_halved(h.shape), h)
    results = array_of(maxima)
    chosen = torch.empty(results.shape, dtype=torch.uint8)
    limits = BITS if h.dtype == torch.bfloat16 else (np.inf, 0.0, np.nan)
    kernels.choose(values, results, chosen.numpy(), *(values.dtype.type(limit) for limit in limits))
    return maxima, chosen


def _halved(shape: torch.Size) -> torch.Size:
    return torch.Size((*shape[:2], shape[2] // 2, shape[3] // 2))


def _empty(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def array_of(h: Tensor) -> np.ndarray:
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
