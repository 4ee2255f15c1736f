"""Loops for gradients of convolutions, compiled by Numba: see convolution.py."""

from numba import njit


@njit(nogil=True, cache=True)
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
