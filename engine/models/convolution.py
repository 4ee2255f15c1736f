"""Convolutions, square, without padding or strides. Derivatives are quicker than torch's: the same sums reordered."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART = 16  # images whose patches are in a CPU's cache at once
HOW = [1, 1], [0, 0], [1, 1], False, [0, 0], 1  # of torch's: strides, padding, dilation, not transposed, no groups


def convolved(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """layer(h), in channels_last; on a GPU as a product of patches and weights where it is differentiated, or float64.

    cuDNN is slow for as few channels as a LeNet's, a multiple slower for second derivatives, and has no fast kernels
    for float64. On a CPU images of one channel have a gradient of our own (`_Pixels`), but not under autocast.
    """
    if h.device.type == "cuda" and (torch.is_grad_enabled() or h.dtype == torch.float64):
        return as_product(layer, h)
    h = h.to(memory_format=torch.channels_last)
    if is_differentiated(h) and (h.shape[1] == 1 or not h.requires_grad):
        return _Convolution.apply(h, layer.weight, layer.bias)
    return layer(h)


def is_differentiated(h: Tensor) -> bool:
    """Whether a graph is made of it, and of no bfloat16."""
    narrow = torch.is_autocast_enabled(h.device.type) or h.dtype not in (torch.float32, torch.float64)
    return torch.is_grad_enabled() and not narrow


class _Convolution(torch.autograd.Function):
    """A convolution of images of one channel, or that need no gradient; its derivatives compute what is asked for.

    It is linear in images and in weights, and so are `_Pixels` and `_Slopes`: each one's derivatives are the others.
    Torch's double backward computes gradients of images even where nobody needs them.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images, *of_layer = ctx.needs_input_grad
        pixels = _Pixels.apply(gradient, weight) if of_images else None
        return pixels, *(_Slopes.apply(gradient, images, weight) if any(of_layer) else (None, None))


class _Slopes(torch.autograd.Function):
    """(gradient of the outputs, images, weights, of which only the shape matters) → gradients of weights and biases."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(gradient, images)
        sizes, wanted = [len(weight)], (False, True, True)
        return torch.ops.aten.convolution_backward(gradient, images, weight, sizes, *HOW, wanted)[1:]

    @staticmethod
    def backward(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None, None]:
        gradient, images = ctx.saved_tensors
        pixels = _Pixels.apply(gradient, weight) if ctx.needs_input_grad[1] else None
        return F.conv2d(images, weight, bias), pixels, None


class _Pixels(torch.autograd.Function):
    """(gradient of the outputs, weights) → gradient of images of one channel [N, 1, H, W], on a CPU.

    oneDNN takes this for a convolution with one output channel, and nearly all of its vector instructions are idle.
    Here a matrix product over the output channels gives what each output owes to each pixel of its patch, and a loop
    adds that up, one place of all patches after the other, in a fraction of the time.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor) -> Tensor:
        from engine.models import gradients

        ctx.save_for_backward(gradient, weight)
        (number, _, height, width), side = gradient.shape, weight.shape[2]
        pixels = gradient.new_empty(number, 1, height + side - 1, width + side - 1)
        for some, found in zip(gradient.split(PART), pixels.split(PART), strict=True):
            patches = weight.flatten(1).T @ some.transpose(0, 1).flatten(1)  # [side · side, N · H' · W']
            shape = side, side, len(some), height, width
            gradients.add_patches(patches.numpy().reshape(shape), found.numpy()[:, 0])
        return pixels

    @staticmethod
    def backward(ctx: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        gradient, weight = ctx.saved_tensors
        return F.conv2d(images, weight), _Slopes.apply(gradient, images, weight)[0]


def as_product(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """layer(h) as one matrix product: [N, C, H, W] → [N, K, H', W'] in channels_last."""
    assert layer.bias is not None
    patches = _Patches.apply(h, layer.kernel_size[0])
    weights = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [side · side · C, K]
    product = torch.addmm(layer.bias, patches.flatten(0, 2).flatten(1), weights)
    return product.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)


class _Patches(torch.autograd.Function):
    """Images [N, C, H, W] → their square patches [N, H', W', side, side, C]; `_Sums` is its derivative's transpose."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, side: int) -> Tensor:
        ctx.side = side
        return images.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 4, 5, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sums.apply(gradient, ctx.side), None


class _Sums(torch.autograd.Function):
    """Patches [N, H', W', side, side, C] → images [N, C, H, W] of the sums over all patches that have a pixel.

    Columns first, then rows: 2 · side additions, always in the same order.
    """

    @staticmethod
    def forward(ctx: Any, patches: Tensor, side: int) -> Tensor:
        ctx.side = side
        n, height, width, _, _, channels = patches.shape
        columns = patches.new_zeros(n, height, width + side - 1, side, channels)
        for j in range(side):
            columns[:, :, j : j + width] += patches[:, :, :, :, j]
        images = patches.new_zeros(n, height + side - 1, width + side - 1, channels)
        for i in range(side):
            images[:, i : i + height] += columns[:, :, :, i]
        return images.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Patches.apply(gradient, ctx.side), None
