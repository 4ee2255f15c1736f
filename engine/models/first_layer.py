"""Convolutions of 5×5 of few channels, alone or with 2×2 pooling behind them, and the gradient of images of one.

They are loops compiled by Numba: torch's convolution takes longer where images have one channel, and is not laid out as
winograd.py has it: images, or noise draws, last in memory. Four outputs of a row are summed at a time, from eight
pixels; a row must have as many.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from engine.models.kernels import SIDE, best_of, jitted


class Direct:
    """A convolution by weights [K, C, 5, 5] and biases [K], of images [H, W, C, M]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        biases = weight.new_zeros(len(weight)) if bias is None else bias
        self._given = weight.detach().numpy(), biases.detach().numpy()

    def outputs(self, images: Tensor) -> Tensor:
        """[H - 4, W - 4, K, M]."""
        outputs = images.new_empty(*self._size(images), images.shape[3])
        convolve(images.numpy(), *self._given, outputs.numpy())
        return outputs

    def maxima(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """ReLU of the maxima of 2×2 outputs [H', W', K, M], and which they were, as kernels.choose has it."""
        height, width, channels = self._size(images)
        maxima = images.new_empty(height // 2, width // 2, channels, images.shape[3])
        chosen = torch.empty(maxima.shape, dtype=torch.uint8)
        maxima_of_outputs(images.numpy(), *self._given, maxima.numpy(), chosen.numpy())
        return maxima, chosen

    def picked(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Those outputs that were chosen [H', W', K, M], or 0."""
        picked = images.new_empty(chosen.shape)
        picked_of_outputs(images.numpy(), *self._given, picked.numpy(), chosen.numpy())
        return picked

    def _size(self, images: Tensor) -> tuple[int, int, int]:
        height, width = (size - SIDE + 1 for size in images.shape[:2])
        return height, width, len(self._given[0])


@jitted
def convolve(images, kernels, biases, outputs):
    """Images [H, W, C, M], kernels [K, C, 5, 5], biases [K] → outputs [H - 4, W - 4, K, M]."""
    rows, columns, filters, draws = outputs.shape
    sums = np.empty((4, draws), images.dtype)
    for i in range(rows):
        for start in range(0, columns, 4):
            j = min(start, columns - 4)  # the last ones may be made twice
            for k in range(filters):
                _sum(sums, 0, images, kernels, i, j, k)
                for m in range(draws):
                    outputs[i, j, k, m], outputs[i, j + 1, k, m] = sums[0, m] + biases[k], sums[1, m] + biases[k]
                    outputs[i, j + 2, k, m], outputs[i, j + 3, k, m] = sums[2, m] + biases[k], sums[3, m] + biases[k]


@jitted
def maxima_of_outputs(images, kernels, biases, maxima, chosen):
    """ReLU and 2×2 pooling of such outputs → maxima [H', W', K, M], chosen: the same, as kernels.choose gives it."""
    rows, columns, filters, draws = maxima.shape
    sums, zero = np.empty((8, draws), images.dtype), images.dtype.type(0)
    for i in range(rows):
        for start in range(0, columns, 2):
            j = min(start, columns - 2)
            for k in range(filters):
                _sum_windows(sums, images, kernels, i, j, k)
                for n in range(2):
                    for m in range(draws):
                        a, b = sums[2 * n, m], sums[2 * n + 1, m]
                        c, d = sums[2 * n + 4, m], sums[2 * n + 5, m]
                        maxima[i, j + n, k, m], chosen[i, j + n, k, m] = best_of(a, b, c, d, biases[k], zero)


@jitted
def picked_of_outputs(images, kernels, biases, picked, chosen):
    """Of the same outputs those that were chosen, or 0 → picked [H', W', K, M]."""
    rows, columns, filters, draws = picked.shape
    sums = np.empty((8, draws), images.dtype)
    for i in range(rows):
        for start in range(0, columns, 2):
            j = min(start, columns - 2)
            for k in range(filters):
                _sum_windows(sums, images, kernels, i, j, k)
                for n in range(2):
                    for m in range(draws):
                        which = chosen[i, j + n, k, m]
                        pixel = which & 3
                        value = sums[2 * n + 4 * (pixel >> 1) + (pixel & 1), m] + biases[k]
                        picked[i, j + n, k, m] = value if which == pixel else images.dtype.type(0)


@jitted
def spread_maxima(maxima, chosen, kernels, images):
    """From the gradient of maxima [H', W', K, M] of such outputs to that of images [H, W, M] of one channel, filled.

    Args:
        kernels: [K, 7, 5], with a row of zeros before and behind.
    """
    rows, columns, filters, draws = maxima.shape
    zero = images.dtype.type(0)
    pixels = np.empty((4, draws), images.dtype)  # a window's, of which one has the gradient
    patch = np.empty((6, 6, draws), images.dtype)  # of a window: column by column, see tiles._outputs_of
    images[:] = 0
    for i in range(rows):
        for j in range(columns):
            patch[:] = 0
            for k in range(filters):
                for m in range(draws):
                    value = maxima[i, j, k, m]
                    which = np.int32(chosen[i, j, k, m])  # as wide as values, where Numba would make it twice as wide
                    pixels[0, m] = value if which == np.int32(0) else zero
                    pixels[1, m] = value if which == np.int32(1) else zero
                    pixels[2, m] = value if which == np.int32(2) else zero
                    pixels[3, m] = value if which == np.int32(3) else zero
                for y in range(6):
                    a, b, c, d, e = _row(kernels, k, y + 1)  # that the upper two pixels have there
                    f, g, h, o, t = _row(kernels, k, y)  # that the lower two have
                    for m in range(draws):
                        p, q, r, s = pixels[0, m], pixels[1, m], pixels[2, m], pixels[3, m]
                        patch[0, y, m] += a * p + f * r
                        patch[1, y, m] += b * p + a * q + g * r + f * s
                        patch[2, y, m] += c * p + b * q + h * r + g * s
                        patch[3, y, m] += d * p + c * q + o * r + h * s
                        patch[4, y, m] += e * p + d * q + t * r + o * s
                        patch[5, y, m] += e * q + t * s
            for y in range(6):
                for x in range(6):
                    for m in range(draws):
                        images[2 * i + y, 2 * j + x, m] += patch[x, y, m]


@njit(inline="always")
def _row(kernels, k, y):
    return kernels[k, y, 0], kernels[k, y, 1], kernels[k, y, 2], kernels[k, y, 3], kernels[k, y, 4]


@njit(inline="always")
def _sum_windows(sums, images, kernels, i, j, k):
    """The outputs of windows (i, j) and (i, j + 1), row by row → sums [8, M]."""
    for row in range(2):
        _sum(sums, 4 * row, images, kernels, 2 * i + row, 2 * j, k)


@njit(inline="always")
def _sum(sums, first, images, kernels, i, j, k):
    """Four outputs of a row from (i, j) on, without biases → sums [first … first + 3, M]."""
    sums[first : first + 4] = 0
    for c in range(images.shape[2]):
        for y in range(SIDE):
            p, q, r = kernels[k, c, y, 0], kernels[k, c, y, 1], kernels[k, c, y, 2]
            s, t = kernels[k, c, y, 3], kernels[k, c, y, 4]
            for m in range(images.shape[3]):
                a, b, d = images[i + y, j, c, m], images[i + y, j + 1, c, m], images[i + y, j + 2, c, m]
                e, f, g = images[i + y, j + 3, c, m], images[i + y, j + 4, c, m], images[i + y, j + 5, c, m]
                h, o = images[i + y, j + 6, c, m], images[i + y, j + 7, c, m]
                sums[first, m] += p * a + q * b + r * d + s * e + t * f
                sums[first + 1, m] += p * b + q * d + r * e + s * f + t * g
                sums[first + 2, m] += p * d + q * e + r * f + s * g + t * h
                sums[first + 3, m] += p * e + q * f + r * g + s * h + t * o
