"""Convolutions of 5×5 with 2×2 pooling behind them, on a CPU, by transforms of tiles: a sixth of the products.

Errors are about a millionth of the largest output. Those of one channel are first_layer.py's. Images, or noise draws,
are last in memory in both, [H, W, C, M], since their loops go over them. Importing it takes half a second, for Numba.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.models import tiles
from engine.models.first_layer import Direct, spread_maxima
from engine.models.kernels import SIDE

PART = 200  # images whose tiles a CPU's cache holds


class Tiled:
    """A convolution by weights [K, C, 5, 5] and biases [K], of images [H, W, C, M]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        kernels = torch.from_numpy(tiles.OF_KERNEL) @ weight.double().permute(2, 3, 0, 1).reshape(SIDE * SIDE, -1)
        self._kernels = kernels.to(weight.dtype).unflatten(1, weight.shape[:2])  # [64, K, C]
        self._biases = (weight.new_zeros(len(weight)) if bias is None else bias).numpy()

    def maxima(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """ReLU of the maxima of 2×2 outputs [H', W', K, M], and which they were, as kernels.choose has it."""
        products, size, across = self._products(images)
        maxima = images.new_empty(*size, len(self._biases), images.shape[3])
        chosen = torch.empty(maxima.shape, dtype=torch.uint8)
        tiles.maxima_of_tiles(products, self._biases, maxima.numpy(), chosen.numpy(), across)
        return maxima, chosen

    def picked(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Those outputs that were chosen [H', W', K, M], or 0."""
        products, _, across = self._products(images)
        picked = images.new_empty(chosen.shape)
        tiles.picked_of_tiles(products, self._biases, picked.numpy(), chosen.numpy(), across)
        return picked

    def _products(self, images: Tensor) -> tuple[np.ndarray, tuple[int, int], int]:
        """(products [8, 8, K, tiles, M], size of what pooling leaves, tiles in a row)."""
        height, width, channels, number = images.shape
        size = (height - SIDE + 1) // 2, (width - SIDE + 1) // 2
        down, across = (size[0] + 1) // 2, (size[1] + 1) // 2
        of_images = images.new_empty(8, 8, channels, down * across, number)
        tiles.into_tiles(images.numpy(), of_images.numpy(), across)
        products = torch.bmm(self._kernels, of_images.view(64, channels, -1))
        return products.view(8, 8, -1, down * across, number).numpy(), size, across


def convolved_and_pooled(h: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(ReLU of the maxima of outputs at h [M, C, H, W], images last in memory; which they were [H', W', K, M])."""
    convolution = _convolution(weight, bias)
    parts = [convolution.maxima(images_last(some)) for some in h.split(PART)]
    maxima, chosen = (_joined(each) for each in zip(*parts, strict=True))
    return maxima.permute(3, 2, 0, 1), chosen


def convolved_and_picked(h: Tensor, weight: Tensor, bias: Tensor | None, chosen: Tensor) -> Tensor:
    """The outputs at h that were chosen [H', W', K, M] before, or 0, images last in memory."""
    convolution = _convolution(weight, bias)
    picked = [convolution.picked(images_last(some), which) for some, which in _parts(h, chosen)]
    return _joined(picked).permute(3, 2, 0, 1)


def gradient_of_pixels(gradient: Tensor, weight: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
    """From the gradient [M, K, H', W'] of the maxima, as chosen, to that of images [M, 1, H, W]: of one channel."""
    kernels, pixels = pad(weight.squeeze(1), (0, 0, 1, 1)), gradient.new_empty(shape)
    for (some, which), found in zip(_parts(gradient, chosen), pixels.split(PART), strict=True):
        images = gradient.new_empty(*shape[2:], len(some))
        spread_maxima(images_last(some).numpy(), which.numpy(), kernels.numpy(), images.numpy())
        found.copy_(images.permute(2, 0, 1)[:, None])
    return pixels


def _parts(h: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of [M, …] and [H', W', K, M]."""
    for some, which in zip(h.split(PART), chosen.split(PART, dim=3), strict=True):
        yield some, which.contiguous()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """[…, M] each → […, all M]."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def _convolution(weight: Tensor, bias: Tensor | None) -> Tiled | Direct:
    return (Direct if weight.shape[1] == 1 else Tiled)(weight, bias)


def images_last(h: Tensor) -> Tensor:
    """[M, C, H, W] → [H, W, C, M]."""
    last = h.permute(2, 3, 1, 0)
    return last.contiguous() if last.stride(3) == 1 else turned(h.permute(0, 2, 3, 1))


def images_first(h: Tensor) -> Tensor:
    """[H, W, C, M] → [M, H, W, C]."""
    return h.flatten(0, 2).t().contiguous().unflatten(1, h.shape[:3])


def turned(h: Tensor) -> Tensor:
    """[M, H, W, C] → [H, W, C, M]; torch turns a matrix block by block."""
    return h.flatten(1).t().contiguous().unflatten(0, h.shape[1:])
