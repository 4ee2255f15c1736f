"""Loops that torch has no quick operation for, compiled by Numba; importing it takes half a second.

Images are C-contiguous [N, H, W, C], pooled ones [N, H // 2, W // 2, C]; an odd last row or column is in no window.
The loops over channels are what becomes vector instructions: they must stay free of branches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload


def jitted(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call, without the interpreter's lock; kept for later processes, if there is where.

    A product that is added is one instruction, rounded once; nothing else about floats is relaxed.
    """
    how: dict[str, Any] = dict(nogil=True, fastmath={"contract"})
    try:
        return njit(cache=True, **how)(loop)
    except RuntimeError:  # neither the project nor the user's cache folder can be written
        return njit(**how)(loop)


SIDE = 5  # of the kernels that have loops of their own
NONE = np.uint8(4)  # of a window in which nothing is above 0; its pixels are 0 to 3, row by row


@jitted
def choose(values, maxima, chosen, infinity, minus_infinity, nan):
    """The largest of 0 and of each window's pixels, and which it is, the first of several: uint8.

    Values are floats, or bfloat16 as the int16 of its bits: those from 0 up have the order of the numbers, those of
    negative numbers are below 0. A window with a NaN gives `nan`.

    Args:
        infinity: in the values' own form; what is not ≤ it is a NaN (bits of positive NaNs are above infinity's).
        minus_infinity: likewise, since bits of negative NaNs lie between it and 0; of floats 0, so that none does.
    """
    images, rows, columns, channels = maxima.shape
    zero = maxima.dtype.type(0)
    for n in range(images):
        for i in range(rows):
            for j in range(columns):
                for k in range(channels):
                    a, b = values[n, 2 * i, 2 * j, k], values[n, 2 * i, 2 * j + 1, k]
                    c, d = values[n, 2 * i + 1, 2 * j, k], values[n, 2 * i + 1, 2 * j + 1, k]
                    top, bottom = a if a >= b else b, c if c >= d else d
                    best = top if top >= bottom else bottom
                    lost = (not a <= infinity) | (not b <= infinity) | (not c <= infinity) | (not d <= infinity)
                    lost |= ((minus_infinity < a) & (a < zero)) | ((minus_infinity < b) & (b < zero))
                    lost |= ((minus_infinity < c) & (c < zero)) | ((minus_infinity < d) & (d < zero))
                    maxima[n, i, j, k] = nan if lost else best if best > zero else zero
                    which = np.uint8(2) if c == best else np.uint8(3)
                    which = np.uint8(1) if b == best else which
                    which = np.uint8(0) if a == best else which
                    chosen[n, i, j, k] = which if best > zero else NONE


@jitted
def scatter(pooled, chosen, images):
    """Brings each value to the pixel that its window chose; all others become 0."""
    number, rows, columns, channels = pooled.shape
    zero = pooled.dtype.type(0)
    images[:] = zero
    for n in range(number):
        for i in range(rows):
            for j in range(columns):
                for k in range(channels):
                    which = chosen[n, i, j, k]
                    pixel = which & 3  # of NONE the first, which gets a 0
                    value = pooled[n, i, j, k] if which == pixel else zero
                    images[n, 2 * i + (pixel >> 1), 2 * j + (pixel & 1), k] = value


@jitted
def gather(images, chosen, pooled):
    """The pixel that each window chose, or 0: the transpose of `scatter`."""
    number, rows, columns, channels = pooled.shape
    zero = pooled.dtype.type(0)
    for n in range(number):
        for i in range(rows):
            for j in range(columns):
                for k in range(channels):
                    which = chosen[n, i, j, k]
                    pixel = which & 3  # of NONE the first, which is then left
                    value = images[n, 2 * i + (pixel >> 1), 2 * j + (pixel & 1), k]
                    pooled[n, i, j, k] = value if which == pixel else zero


@jitted
def pool_sums(values, shift, maxima):
    """`choose` without the choices, for values + shift [H, W, C]: float32, or bits of bfloat16 as int16.

    The sums are float32's, of which the largest is rounded: the same as the largest of rounded sums.
    """
    images, rows, columns, channels = maxima.shape
    zero = np.float32(0)
    for n in range(images):
        for i in range(rows):
            for j in range(columns):
                for k in range(channels):
                    a = _widened(values[n, 2 * i, 2 * j, k]) + _widened(shift[2 * i, 2 * j, k])
                    b = _widened(values[n, 2 * i, 2 * j + 1, k]) + _widened(shift[2 * i, 2 * j + 1, k])
                    c = _widened(values[n, 2 * i + 1, 2 * j, k]) + _widened(shift[2 * i + 1, 2 * j, k])
                    d = _widened(values[n, 2 * i + 1, 2 * j + 1, k]) + _widened(shift[2 * i + 1, 2 * j + 1, k])
                    best = largest(a, b, c, d)
                    maxima[n, i, j, k] = _narrowed(zero if best <= zero else best, maxima[n, i, j, k])


@njit(inline="always")
def largest(a, b, c, d):
    """NaN if one of them is."""
    top, bottom = a if (a >= b) | (a != a) else b, c if (c >= d) | (c != c) else d
    return top if (top >= bottom) | (top != top) else bottom


@njit(inline="always")
def best_of(a, b, c, d, bias, zero):
    """(ReLU of the largest of four outputs plus a bias, which of them it is, or NONE)."""
    best = largest(a, b, c, d)
    which = np.uint8(2) if c == best else np.uint8(3)
    which = np.uint8(1) if b == best else which
    which = np.uint8(0) if a == best else which
    best += bias
    return zero if best <= zero else best, which if best > zero else NONE


def _widened(value):
    """As float32."""


def _narrowed(value, like):
    """Float32 in the form of `like`."""


@overload(_widened)
def _widened_in(value):
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: np.int32(np.int32(value) << np.int32(16)).view(np.float32)


@overload(_narrowed)
def _narrowed_in(value, like):
    if isinstance(like, types.Float):
        return lambda value, like: value
    return lambda value, like: _rounded(value)


@njit
def _rounded(value):
    """To the nearest bfloat16, the even one of two; a NaN stays one."""
    bits = np.float32(value).view(np.int32)
    nearest = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    return np.int16(nearest if value == value else np.int32(0x7FC0))
