"""Loops for gradients of convolutions, compiled by Numba: for convolution.py and convolved_pooling.py.

The innermost loops become vector instructions, those of `loops` since the length of a row is a constant there.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from engine.models.kernels import NONE, jitted

ROWS = 40, 100  # numbers of a row of a patch of a LeNet's second convolution: 5 pixels of 8 channels (narrow) or 20
PATCH = 32  # numbers that are read of a patch of one channel, which has 25


@jitted
def add_patches(patches, images):
    """Overlapping patches [side, side, N, H', W'] → images [N, H' + side - 1, W' + side - 1] of their sums."""
    side, _, number, height, width = patches.shape
    images[:] = 0
    for n in range(number):
        for u in range(side):
            for v in range(side):
                for i in range(height):
                    for j in range(width):
                        images[n, i + u, j + v] += patches[u, v, n, i, j]


@cache
def loops(row: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """(to_images, to_weights): from the gradient of maxima of a convolution's outputs, to that of …

    Both take maxima and chosen: [N, H' // 2, W' // 2, K], the second as kernels.choose gives it. A patch is `side` rows
    of an image, as far apart as the image is wide, from `depth` · its left pixel on; the weights of a channel are as
    many rows, one behind the other. To what is filled four patches are added at a time: it is read and written once for
    them all.
    """

    def to_images(maxima: Any, chosen: Any, weights: Any, images: Any, depth: int) -> None:
        """… its images [N, H, W · depth], filled; weights: [K, side, row]."""
        number, rows, columns, channels = maxima.shape
        _, height, width = images.shape
        side, room = weights.shape[1], channels + 3
        sums, given = images.reshape(images.size), weights.reshape(weights.size)
        starts, values = np.zeros(4 * room, np.uintp), np.zeros(4 * room, images.dtype)  # a window's, by its pixels
        counts = np.zeros(4, np.intp)
        sums[:] = 0
        for n in range(number):
            for i in range(rows):
                for j in range(columns):
                    counts[:] = 0
                    for k in range(channels):
                        pixel = chosen[n, i, j, k]
                        if pixel != NONE:
                            place = pixel * room + counts[pixel]
                            starts[place], values[place] = k * side * row, maxima[n, i, j, k]
                            counts[pixel] += 1
                    for pixel in range(4):
                        first = pixel * room
                        end = first + counts[pixel]
                        values[end : end + 3] = 0
                        at = (n * height + 2 * i + (pixel >> 1)) * width + (2 * j + (pixel & 1)) * depth
                        for e in range(first, end, 4):
                            _add_four(sums, at, width, given, row, starts, values, e, 1, side, row)

    def to_weights(maxima: Any, chosen: Any, images: Any, weights: Any, biases: Any, depth: int) -> None:
        """… its weights [K, side, row] and biases [K], filled; images: [N, H, W · depth]."""
        number, rows, columns, channels = maxima.shape
        _, height, width = images.shape
        side, room = weights.shape[1], rows * columns + 3
        sums, given = weights.reshape(weights.size), images.reshape(images.size)
        starts, values = np.zeros(room, np.uintp), np.zeros(room, images.dtype)
        sums[:] = 0
        biases[:] = 0
        for n in range(number):
            for k in range(channels):
                end = 0
                for i in range(rows):
                    for j in range(columns):
                        pixel = chosen[n, i, j, k]
                        if pixel != NONE:
                            starts[end] = (n * height + 2 * i + (pixel >> 1)) * width + (2 * j + (pixel & 1)) * depth
                            values[end] = maxima[n, i, j, k]
                            biases[k] += values[end]
                            end += 1
                values[end : end + 3] = 0
                for e in range(0, end, 4):
                    _add_four(sums, k * side * row, row, given, width, starts, values, e, 1, side, row)

    return jitted(to_images), jitted(to_weights)


@jitted
def weights_of_bands(maxima, chosen, images, weights, biases, depth):
    """`to_weights` of loops, where patches are bands: one run of PATCH numbers each, behind which there is memory.

    Most windows have a gradient, and which have none is hard to foretell: four of a row are added at a time, those
    without one times 0. So are windows that a row has not: what is read for them is the start of an earlier one.
    """
    number, rows, columns, channels = maxima.shape
    _, height, width = images.shape
    sums, given, zero = weights.reshape(weights.size), images.reshape(images.size), images.dtype.type(0)
    starts, values = np.zeros(4 * channels, np.uintp), np.zeros(4 * channels, images.dtype)
    sums[:] = 0
    biases[:] = 0
    for n in range(number):
        for i in range(rows):
            for left in range(0, columns, 4):
                values[:] = 0
                for w in range(min(4, columns - left)):
                    j = left + w
                    for k in range(channels):
                        pixel = chosen[n, i, j, k]
                        row, column = 2 * i + ((pixel & 3) >> 1), 2 * j + (pixel & 1)
                        starts[w * channels + k] = (n * height + row) * width + column * depth
                        values[w * channels + k] = maxima[n, i, j, k] if pixel != NONE else zero
                        biases[k] += values[w * channels + k]
                for k in range(channels):
                    _add_four(sums, k * PATCH, PATCH, given, width, starts, values, k, channels, 1, PATCH)


@njit(inline="always")
def _add_four(sums, at, stride, given, step, starts, values, e, apart, side, row):
    """Adds patches `e` to `e + 3`, times their values, to that at `at`: rows are a stride apart there, a step here."""
    f, g, h = e + apart, e + 2 * apart, e + 3 * apart
    a, b, c, d = starts[e], starts[f], starts[g], starts[h]
    p, q, r, s = values[e], values[f], values[g], values[h]
    there, stride, step = np.uintp(at), np.uintp(stride), np.uintp(step)
    for _ in range(side):
        for t in range(row):
            u = np.uintp(t)
            total = sums[there + u] + p * given[a + u]
            total += q * given[b + u]
            total += r * given[c + u]
            sums[there + u] = total + s * given[d + u]
        there += stride
        a, b, c, d = a + step, b + step, c + step, d + step
