"""A convolution's outputs from transforms of tiles, around ReLU and pooling: loops compiled by Numba, for winograd.py.

A tile of 8×8 pixels and a kernel of 5×5 have 4×4 outputs. With either as polynomials in two variables, their values at
0, ±1, ±2, ±1/2 and infinity take 64 products, the outputs themselves 400; all else is additions. What is last in memory
is the noise draw: the innermost loops go over draws and become vector instructions.

Source: Lavin and Gray 2016, arXiv:1509.09308, after Winograd and Toom and Cook.
"""

import numpy as np
from numba import njit

from engine.models.kernels import jitted, largest

SIDE = 5  # of the kernel
_SCALES = {0: 1, 1: -2 / 9, -1: -2 / 9, 2: 1 / 90, -2: 1 / 90, 1 / 2: 32 / 45, -1 / 2: 32 / 45}
OF_KERNEL = np.array(
    [*([scale * x**k for k in range(SIDE)] for x, scale in _SCALES.items()), [0, 0, 0, 0, 1]]
)  # [8, 5]


@jitted
def into_tiles(shared, shift, tiles, across):
    """ReLU and 2×2 pooling of shared + shift, and transforms of its tiles, which begin four pixels from each other.

    Args:
        shared, shift: [H, W, C, M] and [H, W, C].
        tiles: [8, 8, C, tiles, M], filled: `across` in a row. Pixels beyond the pooled images are 0.
    """
    height, width, channels, draws = shared.shape
    down = tiles.shape[3] // across
    zero = shared.dtype.type(0)
    pooled = np.zeros((4 * down + 4, 4 * across + 4, draws), shared.dtype)
    lines = np.empty((8, 4 * across + 4, draws), shared.dtype)
    rows, columns = min(height // 2, len(pooled)), min(width // 2, pooled.shape[1])  # an odd last one may be left over
    for k in range(channels):
        for i in range(rows):
            for j in range(columns):
                a, b = shift[2 * i, 2 * j, k], shift[2 * i, 2 * j + 1, k]
                c, d = shift[2 * i + 1, 2 * j, k], shift[2 * i + 1, 2 * j + 1, k]
                for m in range(draws):
                    p, q = shared[2 * i, 2 * j, k, m] + a, shared[2 * i, 2 * j + 1, k, m] + b
                    r, s = shared[2 * i + 1, 2 * j, k, m] + c, shared[2 * i + 1, 2 * j + 1, k, m] + d
                    best = largest(p, q, r, s)
                    pooled[i, j, m] = zero if best <= zero else best
        for row in range(down):
            y = 4 * row
            for x in range(4 * across + 4):
                for m in range(draws):
                    (
                        lines[0, x, m], lines[1, x, m], lines[2, x, m], lines[3, x, m],
                        lines[4, x, m], lines[5, x, m], lines[6, x, m], lines[7, x, m],
                    ) = _of_pixels(
                        pooled[y, x, m], pooled[y + 1, x, m], pooled[y + 2, x, m], pooled[y + 3, x, m],
                        pooled[y + 4, x, m], pooled[y + 5, x, m], pooled[y + 6, x, m], pooled[y + 7, x, m],
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
def out_of_tiles(products, biases, maxima, across):
    """Outputs, of which `products` are the transforms, plus biases; then ReLU and 2×2 pooling.

    Args:
        products: [8, 8, K, tiles, M]; biases: [K].
        maxima: [H, W, K, M], filled.
    """
    _, _, channels, count, draws = products.shape
    height, width = maxima.shape[:2]
    zero = products.dtype.type(0)
    lines = np.empty((8, 4, draws), products.dtype)
    outputs = np.empty((4, 4, draws), products.dtype)
    for k in range(channels):
        for tile in range(count):
            for u in range(8):
                for m in range(draws):
                    lines[u, 0, m], lines[u, 1, m], lines[u, 2, m], lines[u, 3, m] = _outputs(
                        products[u, 0, k, tile, m], products[u, 1, k, tile, m],
                        products[u, 2, k, tile, m], products[u, 3, k, tile, m],
                        products[u, 4, k, tile, m], products[u, 5, k, tile, m],
                        products[u, 6, k, tile, m], products[u, 7, k, tile, m],
                    )  # fmt: skip
            for v in range(4):
                for m in range(draws):
                    outputs[0, v, m], outputs[1, v, m], outputs[2, v, m], outputs[3, v, m] = _outputs(
                        lines[0, v, m], lines[1, v, m], lines[2, v, m], lines[3, v, m],
                        lines[4, v, m], lines[5, v, m], lines[6, v, m], lines[7, v, m],
                    )  # fmt: skip
            top, left = 2 * (tile // across), 2 * (tile % across)
            for i in range(min(2, height - top)):
                for j in range(min(2, width - left)):
                    y, x = 2 * i, 2 * j
                    for m in range(draws):
                        a, b, c, d = (
                            outputs[y, x, m],
                            outputs[y, x + 1, m],
                            outputs[y + 1, x, m],
                            outputs[y + 1, x + 1, m],
                        )
                        best = largest(a, b, c, d) + biases[k]
                        maxima[top + i, left + j, k, m] = zero if best <= zero else best


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
