"""Feature squeezing: exact answers on small images, and what it must leave alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from engine.squeezing import squeeze_features
from engine.streams import stream


def some(shape: tuple[int, ...] = (3, 2, 7, 5)) -> torch.Tensor:
    return torch.rand(shape, generator=stream(0, "squeezing"))


def test_none_is_the_very_same_tensor() -> None:
    images = some()
    assert squeeze_features(images, "none") is images


def test_the_median_is_scipys() -> None:
    images = some()
    expected = median_filter(images.numpy(), size=(1, 1, 3, 3), mode="nearest")
    np.testing.assert_array_equal(squeeze_features(images, "median").numpy(), expected)


@pytest.mark.parametrize(("squeezing", "levels"), [("one-bit", [0, 1]), ("three-bit", [k / 7 for k in range(8)])])
def test_bits_leave_so_many_levels_and_move_no_pixel_by_more_than_half_a_step(squeezing: str, levels: list) -> None:
    images = some()
    squeezed = squeeze_features(images, squeezing)
    torch.testing.assert_close(squeezed.unique(), torch.tensor(levels, dtype=torch.float32))
    assert (squeezed - images).abs().max() <= 0.5 / (len(levels) - 1) + 1e-6


@given(st.floats(0, 0.49), st.integers(0, 1))
def test_one_bit_removes_any_change_below_a_half_from_black_and_white(epsilon: float, seed: int) -> None:
    images = some().round()
    signs = torch.rand(images.shape, generator=stream(seed, "signs")) - 0.5
    changed = (images + epsilon * signs.sign()).clamp(0, 1)
    assert torch.equal(squeeze_features(changed, "one-bit"), images)


@pytest.mark.parametrize("squeezing", ["median", "one-bit", "three-bit"])
def test_what_is_in_the_pixel_range_stays_in_it(squeezing: str) -> None:
    squeezed = squeeze_features(some(), squeezing)
    assert squeezed.min() >= 0
    assert squeezed.max() <= 1
    assert squeezed.shape == (3, 2, 7, 5)
