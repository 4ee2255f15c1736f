"""A first layer's convolution of 5×5 with noise draws last in memory: a loop compiled by Numba, for lenet.py.

torch's takes longer where images have one channel, and then its outputs would have to be turned round.
"""

import numpy as np

from engine.models.kernels import jitted

SIDE = 5  # of a kernel
TOGETHER = 4  # outputs of a row that are summed at a time, from eight pixels; a row has at least so many


@jitted
def convolve(images, kernels, biases, outputs):
    """Images [C, H, W, M], kernels [K, C, 5, 5], biases [K] → outputs [H - 4, W - 4, K, M]."""
    rows, columns, filters, draws = outputs.shape
    sums = np.empty((TOGETHER, draws), images.dtype)
    for i in range(rows):
        for start in range(0, columns, TOGETHER):
            j = min(start, columns - TOGETHER)  # the last ones may be made twice
            for k in range(filters):
                sums[:] = biases[k]
                for c in range(images.shape[0]):
                    for y in range(SIDE):
                        p, q, r = kernels[k, c, y, 0], kernels[k, c, y, 1], kernels[k, c, y, 2]
                        s, t = kernels[k, c, y, 3], kernels[k, c, y, 4]
                        for m in range(draws):
                            a, b = images[c, i + y, j, m], images[c, i + y, j + 1, m]
                            d, e = images[c, i + y, j + 2, m], images[c, i + y, j + 3, m]
                            f, g = images[c, i + y, j + 4, m], images[c, i + y, j + 5, m]
                            h, o = images[c, i + y, j + 6, m], images[c, i + y, j + 7, m]
                            sums[0, m] += p * a + q * b + r * d + s * e + t * f
                            sums[1, m] += p * b + q * d + r * e + s * f + t * g
                            sums[2, m] += p * d + q * e + r * f + s * g + t * h
                            sums[3, m] += p * e + q * f + r * g + s * h + t * o
                for m in range(draws):
                    outputs[i, j, k, m], outputs[i, j + 1, k, m] = sums[0, m], sums[1, m]
                    outputs[i, j + 2, k, m], outputs[i, j + 3, k, m] = sums[2, m], sums[3, m]
