"""A convolution's outputs from transforms of tiles, around ReLU and pooling: loops compiled by Numba, for winograd.py.

A tile of 8×8 pixels and a kernel of 5×5 have 4×4 outputs. With either as polynomials in two variables, their values at
0, ±1, ±2, ±1/2 and infinity take 64 products, the outputs themselves 400; all else is additions. What is last in memory
is the noise draw: the innermost loops go over draws and become vector instructions.

Source: Lavin and Gray 2016, arXiv:1509.09308, after Winograd and Toom and Cook.
"""

import numpy as np
from numba import njit

from engine.models.kernels import SIDE, best_of, jitted, largest

_SCALES = {0: 1, 1: -2 / 9, -1: -2 / 9, 2: 1 / 90, -2: 1 / 90, 1 / 2: 32 / 45, -1 / 2: 32 / 45}
_VALUES = [[scale * x**k for k in range(SIDE)] for x, scale in _SCALES.items()]
OF_LINE = np.array([*_VALUES, [0, 0, 0, 0, 1]])  # [8, 5]: a kernel's line → its values at all points
OF_KERNEL = np.kron(OF_LINE, OF_LINE)  # [64, 25]: the same of a whole kernel


@jitted
def pool(shared, shift, pooled):
    """ReLU and 2×2 pooling of shared [H, W, C, M] + shift [H, W, C] → pooled [H // 2, W // 2, C, M]."""
    rows, columns, channels, draws = pooled.shape
    zero = shared.dtype.type(0)
    for i in range(rows):
        for j in range(columns):
            for k in range(channels):
                a, b = shift[2 * i, 2 * j, k], shift[2 * i, 2 * j + 1, k]
                c, d = shift[2 * i + 1, 2 * j, k], shift[2 * i + 1, 2 * j + 1, k]
                for m in range(draws):
                    p, q = shared[2 * i, 2 * j, k, m] + a, shared[2 * i, 2 * j + 1, k, m] + b
                    r, s = shared[2 * i + 1, 2 * j, k, m] + c, shared[2 * i + 1, 2 * j + 1, k, m] + d
                    best = largest(p, q, r, s)
                    pooled[i, j, k, m] = zero if best <= zero else best


@jitted
def into_tiles(images, tiles, across):
    """Transforms of tiles of images [H, W, C, M], which begin four pixels from each other.

    Args:
        tiles: [8, 8, C, tiles, M], filled: `across` in a row. Pixels beyond the images are 0.
    """
    height, width, channels, draws = images.shape
    down = tiles.shape[3] // across
    lines = np.zeros((8, 4 * across + 4, draws), images.dtype)
    pixels = np.zeros((8, draws), images.dtype)
    for k in range(channels):
        for row in range(down):
            for x in range(min(width, 4 * across + 4)):
                for i in range(8):
                    y = 4 * row + i
                    for m in range(draws):
                        pixels[i, m] = images[y, x, k, m] if y < height else images.dtype.type(0)
                for m in range(draws):
                    (
                        lines[0, x, m], lines[1, x, m], lines[2, x, m], lines[3, x, m],
                        lines[4, x, m], lines[5, x, m], lines[6, x, m], lines[7, x, m],
                    ) = _of_pixels(
                        pixels[0, m], pixels[1, m], pixels[2, m], pixels[3, m],
                        pixels[4, m], pixels[5, m], pixels[6, m], pixels[7, m],
                    )  # fmt: skip
            for u in range(8):
                for column in range(across):
                    x, tile = 4 * column, row * across + column
                    for m in range(draws):
                        (
                            tiles[u, 0, k, tile, m], tiles[u, 1, k, tile, m],
                            tiles[u, 2, k, tile, m], tiles[u, 3, k, tile, m],
                            tiles[u, 4, k, tile, m], tiles[u, 5, k, tile, m],
                            tiles[u, 6, k, tile, m], tiles[u, 7, k, tile, m],
                        ) = _of_pixels(
                            lines[u, x, m], lines[u, x + 1, m], lines[u, x + 2, m], lines[u, x + 3, m],
                            lines[u, x + 4, m], lines[u, x + 5, m], lines[u, x + 6, m], lines[u, x + 7, m],
                        )  # fmt: skip


@jitted
def maxima_of_tiles(products, biases, maxima, chosen, across):
    """Outputs, of which `products` are the transforms, plus biases; then ReLU and 2×2 pooling.

    Args:
        products: [8, 8, K, tiles, M]; biases: [K].
        maxima: [H, W, K, M], filled; chosen: the same, which pixels they were, as kernels.choose gives it.
    """
    _, _, channels, count, draws = products.shape
    height, width = maxima.shape[:2]
    zero = products.dtype.type(0)
    lines = np.empty((4, 8, draws), products.dtype)
    outputs = np.empty((4, 4, draws), products.dtype)
    for k in range(channels):
        for tile in range(count):
            _outputs_of(products, k, tile, lines, outputs)
            top, left = 2 * (tile // across), 2 * (tile % across)
            for i in range(min(2, height - top)):
                for j in range(min(2, width - left)):
                    y, x = 2 * i, 2 * j
                    for m in range(draws):
                        a, b = outputs[y, x, m], outputs[y, x + 1, m]
                        c, d = outputs[y + 1, x, m], outputs[y + 1, x + 1, m]
                        best, which = best_of(a, b, c, d, biases[k], zero)
                        maxima[top + i, left + j, k, m], chosen[top + i, left + j, k, m] = best, which


@jitted
def picked_of_tiles(products, biases, picked, chosen, across):
    """Of the same outputs those that were chosen, or 0 → picked [H, W, K, M]."""
    _, _, channels, count, draws = products.shape
    height, width = picked.shape[:2]
    zero = products.dtype.type(0)
    lines = np.empty((4, 8, draws), products.dtype)
    outputs = np.empty((4, 4, draws), products.dtype)
    for k in range(channels):
        for tile in range(count):
            _outputs_of(products, k, tile, lines, outputs)
            top, left = 2 * (tile // across), 2 * (tile % across)
            for i in range(min(2, height - top)):
                for j in range(min(2, width - left)):
                    for m in range(draws):
                        which = chosen[top + i, left + j, k, m]
                        pixel = which & 3
                        value = outputs[2 * i + (pixel >> 1), 2 * j + (pixel & 1), m] + biases[k]
                        picked[top + i, left + j, k, m] = value if which == pixel else zero


@njit(inline="always")
def _outputs_of(products, k, tile, lines, outputs):
    """The 4×4 outputs of a tile and a channel: outputs [4, 4, M]; lines [4, 8, M] hold what is between.

    Not [8, 4, M]: LLVM checks once for all u, by ranges, whether what the inner loop writes overlaps. There it always
    would, and the loop without vector instructions would run.
    """
    for u in range(8):
        for m in range(outputs.shape[2]):
            lines[0, u, m], lines[1, u, m], lines[2, u, m], lines[3, u, m] = _outputs(
                products[u, 0, k, tile, m], products[u, 1, k, tile, m],
                products[u, 2, k, tile, m], products[u, 3, k, tile, m],
                products[u, 4, k, tile, m], products[u, 5, k, tile, m],
                products[u, 6, k, tile, m], products[u, 7, k, tile, m],
            )  # fmt: skip
    for v in range(4):
        for m in range(outputs.shape[2]):
            outputs[0, v, m], outputs[1, v, m], outputs[2, v, m], outputs[3, v, m] = _outputs(
                lines[v, 0, m], lines[v, 1, m], lines[v, 2, m], lines[v, 3, m],
                lines[v, 4, m], lines[v, 5, m], lines[v, 6, m], lines[v, 7, m],
            )  # fmt: skip


@njit(inline="always")
def _of_pixels(a, b, c, d, e, f, g, h):
    """Eight pixels → the values that are multiplied: at points ±x, an even part plus and minus an odd one."""
    q = np.float32
    even, odd = c + g - q(4.25) * e, b + f - q(4.25) * d
    even_of_2, odd_of_2 = q(0.25) * c - q(1.25) * e + g, q(0.5) * b - q(2.5) * d + q(2) * f
    even_of_half, odd_of_half = q(4) * c - q(5) * e + g, q(2) * b - q(2.5) * d + q(0.5) * f
    return (
        a - g + q(5.25) * (e - c),
        even + odd, even - odd,
        even_of_2 + odd_of_2, even_of_2 - odd_of_2,
        even_of_half + odd_of_half, even_of_half - odd_of_half,
        h - b + q(5.25) * (d - f),
    )  # fmt: skip


@njit(inline="always")
def _outputs(a, b, c, d, e, f, g, h):
    """Eight products → four outputs."""
    q = np.float32
    even, odd, even_of_2, odd_of_2, even_of_half, odd_of_half = b + c, b - c, d + e, d - e, f + g, f - g
    return (
        a + even + even_of_2 + even_of_half,
        odd + q(2) * odd_of_2 + q(0.5) * odd_of_half,
        even + q(4) * even_of_2 + q(0.25) * even_of_half,
        odd + q(8) * odd_of_2 + q(0.125) * odd_of_half + h,
    )
