"""What all networks have in common."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]  # (C, H, W) of the images that a network is built for


class Network(nn.Module):
    """A base classifier whose first layer is affine: images [N, C, H, W] → stem → rest → logits [N, K].

    Whoever evaluates many images under the same noise may use that stem(x + noise) = stem(x) + stem(noise) − stem(0);
    votes.py checks it, and certifies no other network.
    """

    def stem(self, x: Tensor) -> Tensor:
        """The first layer, before any nonlinearity: images [N, C, H, W] → its outputs [N, …]."""
        raise NotImplementedError

    def rest(self, h: Tensor) -> Tensor:
        """All that follows: outputs of the first layer [N, …] → logits [N, K]."""
        raise NotImplementedError

    def rest_of_sum(self, h: Tensor, shift: Tensor) -> Tensor:
        """rest(h + shift) for h [N, …] and one shift [1, …]; overridden where the sum can be used unstored."""
        return self.rest(h + shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))

    def aligned(self) -> "Network":
        """A copy of the same function, in widths that a GPU's matrix units like where they make a difference."""
        return copy.deepcopy(self)


def convolved(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """layer(h), in channels_last; on a GPU as a product of patches and weights where it is differentiated, or float64.

    cuDNN is slow for as few channels as a LeNet's, a multiple slower for second derivatives, and has no fast kernels
    for float64. For layers without padding or strides.
    """
    if h.device.type == "cuda" and (torch.is_grad_enabled() or h.dtype == torch.float64):
        return as_product(layer, h)
    h = h.to(memory_format=torch.channels_last)
    if torch.is_grad_enabled() and not h.requires_grad and not torch.is_autocast_enabled(h.device.type):
        return _OfConstant.apply(h, layer.weight, layer.bias)
    return layer(h)


class _OfConstant(torch.autograd.Function):
    """A convolution whose input needs no gradient; torch's double backward would compute that gradient anyway."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, *_Slopes.apply(gradient, *ctx.saved_tensors)


class _Slopes(torch.autograd.Function):
    """(gradient of the outputs, images, weights, of which only the shape matters) → gradients of weights and biases."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(images)
        how = [1, 1], [0, 0], [1, 1], False, [0, 0], 1  # strides, padding, dilation, not transposed, no groups
        sizes = [len(weight)]
        found = torch.ops.aten.convolution_backward(gradient, images, weight, sizes, *how, (False, True, True))
        return found[1], found[2]

    @staticmethod
    def backward(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, None, None]:
        (images,) = ctx.saved_tensors
        return F.conv2d(images, weight, bias), None, None


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
