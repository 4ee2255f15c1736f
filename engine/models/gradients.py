"""Loops for gradients of convolutions, compiled by Numba: for convolution.py and pooling.py.

The innermost loops become vector instructions, in to_images and to_weights since ROW is a constant.
"""

from engine.models.kernels import jitted

ROW = 100  # numbers of a row of a patch of a LeNet's second convolution: 5 pixels of 20 channels


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


@jitted
def to_images(maxima, chosen, weights, images):
    """Gradient of maxima of a convolution's outputs → of its images.

    Args:
        maxima, chosen: [N, H' // 2, W' // 2, K], the second as kernels.choose gives it.
        weights: [K, side, ROW].
        images: [N, H, W · C], filled.
    """
    number, rows, columns, channels = maxima.shape
    side = weights.shape[1]
    images[:] = 0
    for n in range(number):
        for k in range(channels):
            for i in range(rows):
                for j in range(columns):
                    which = chosen[n, i, j, k]
                    if which < 4:
                        value = maxima[n, i, j, k]
                        top, left = 2 * i + (which >> 1), (2 * j + (which & 1)) * (ROW // side)
                        for u in range(side):
                            row, weight = images[n, top + u, left : left + ROW], weights[k, u]
                            for t in range(ROW):
                                row[t] += value * weight[t]


@jitted
def to_weights(maxima, chosen, images, weights, biases):
    """Likewise → of its weights and biases [K], filled."""
    number, rows, columns, channels = maxima.shape
    side = weights.shape[1]
    weights[:] = 0
    biases[:] = 0
    for n in range(number):
        for k in range(channels):
            for i in range(rows):
                for j in range(columns):
                    which = chosen[n, i, j, k]
                    if which < 4:
                        value = maxima[n, i, j, k]
                        top, left = 2 * i + (which >> 1), (2 * j + (which & 1)) * (ROW // side)
                        biases[k] += value
                        for u in range(side):
                            row, weight = images[n, top + u, left : left + ROW], weights[k, u]
                            for t in range(ROW):
                                weight[t] += value * row[t]
