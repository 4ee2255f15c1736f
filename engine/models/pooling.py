"""Pooling of 2×2 pixels and ReLU in one step, and its derivatives."""

from typing import Any

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
    """pooled(h + shift) for one shift [1, C, H, W], which takes a third of the time on a CPU in bfloat16."""
    if h.device.type != "cpu" or h.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return pooled(h + shift)
    from engine.models import kernels

    values = _rows(h)
    n, height, width, channels = values.shape
    maxima = values.new_empty(n, height // 2, width // 2, channels)
    (one,) = _rows(shift)
    kernels.pool_sums(values.numpy(), one.numpy(), maxima.numpy())
    return _images(maxima, h.dtype)


class _Pooled(torch.autograd.Function):
    """On a CPU: images → maxima. Of the derivative's two kinds each is the other's own."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        from engine.models import kernels

        values = _rows(h)
        n, height, width, channels = values.shape
        maxima = values.new_empty(n, height // 2, width // 2, channels)
        chosen = torch.empty(maxima.shape, dtype=torch.uint8)
        limits = BITS if h.dtype == torch.bfloat16 else (torch.inf, 0.0, torch.nan)
        arrays = values.numpy(), maxima.numpy(), chosen.numpy()
        kernels.choose(*arrays, *(arrays[0].dtype.type(limit) for limit in limits))
        ctx.save_for_backward(chosen)
        ctx.shape = values.shape
        return _images(maxima, h.dtype)

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
        values = _rows(pooled)
        even = shape[1] % 2 == 0 and shape[2] % 2 == 0
        images = values.new_empty(shape) if even else values.new_zeros(shape)
        kernels.scatter(values.numpy(), chosen.numpy(), images.numpy())
        return _images(images, pooled.dtype)

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
        values = _rows(images)
        found = values.new_empty(chosen.shape)
        kernels.gather(values.numpy(), chosen.numpy(), found.numpy())
        return _images(found, images.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None


def _rows(h: Tensor) -> Tensor:
    """[N, C, H, W] → [N, H, W, C], contiguous; bfloat16, which NumPy does not know, as int16."""
    rows = h.detach().permute(0, 2, 3, 1).contiguous()
    return rows.view(torch.int16) if h.dtype == torch.bfloat16 else rows


def _images(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, H, W, C] → [N, C, H, W] in channels_last."""
    return rows.view(dtype).permute(0, 3, 1, 2)


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
