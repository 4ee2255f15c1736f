"""How visible a perturbation is, on cases whose answers are known."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.perception import measure, summarise


def constant(value: float, count: int = 1) -> np.ndarray:
    return np.full((count, 1, 28, 28), value, dtype=np.float32)


def test_a_constant_change_of_a_tenth_has_20_decibels():
    found = measure(constant(0.5), constant(0.1))
    assert found.linf[0] == pytest.approx(0.1)
    assert found.l2[0] == pytest.approx(2.8)
    assert found.psnr[0] == pytest.approx(20.0, abs=1e-5)
    assert found.changed_share.tolist() == [1.0]


@pytest.mark.parametrize(("clean", "change"), [(0.5, 0.1), (0.0, 0.1), (0.9, -0.4)])
def test_the_similarity_of_constant_images_is_that_of_their_luminances(clean, change):
    """SSIM = (2ab + c)/(a² + b² + c) with c = 0.01², as nothing varies."""
    other = clean + change
    expected = (2 * clean * other + 1e-4) / (clean**2 + other**2 + 1e-4)
    assert measure(constant(clean), constant(change)).ssim[0] == pytest.approx(expected, rel=1e-4)


def test_a_single_pixel_is_measured_exactly():
    delta = constant(0.0, 2)
    delta[1, 0, 3, 4] = -0.25
    found = measure(constant(0.5, 2), delta)
    assert found.linf.tolist() == found.l2.tolist() == [0.0, 0.25]
    assert found.changed_share.tolist() == [0.0, 1 / 784]
    assert found.psnr[1] == pytest.approx(-10 * math.log10(0.0625 / 784))


def test_an_unchanged_image_is_infinitely_like_itself():
    found = measure(np.random.default_rng(0).random((2, 1, 28, 28), np.float32), constant(0.0, 2))
    assert found.psnr.tolist() == [math.inf] * 2
    assert found.ssim == pytest.approx(1.0)
    assert summarise(found) == {
        "linf_max": 0.0,
        "l2_mean": 0.0,
        "psnr_mean": None,
        "ssim_mean": pytest.approx(1.0),
        "changed_share": 0.0,
    }


@pytest.mark.parametrize("unchanged", [0, 1, 2])
def test_a_summary_is_valid_json_whatever_is_unchanged(unchanged):
    """As is every image of a label flip; one such image leaves the mean PSNR without a value."""
    delta = constant(0.1, 2)
    delta[:unchanged] = 0
    found = summarise(measure(constant(0.5, 2), delta))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["psnr_mean"] is None) == (unchanged > 0)


def test_no_image_has_no_mean():
    found = summarise(measure(constant(0.0, 0), constant(0.0, 0)))
    assert found == {"linf_max": 0.0, "l2_mean": None, "psnr_mean": None, "ssim_mean": None, "changed_share": None}


def test_a_summary_has_the_largest_linf_and_the_means_of_the_rest():
    delta = np.concatenate([constant(0.1), constant(0.01)])
    found = summarise(measure(constant(0.5, 2), delta))
    assert found["linf_max"] == pytest.approx(0.1)
    assert found["l2_mean"] == pytest.approx(0.5 * (2.8 + 0.28))
    assert found["psnr_mean"] == pytest.approx(0.5 * (20 + 40), abs=1e-4)
    assert found["changed_share"] == 1.0


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(
    arrays(np.float64, (2, 1, 8, 8), elements=st.floats(0, 1)),
    arrays(np.float64, (2, 1, 8, 8), elements=st.floats(-1, 1)),
)
def test_norms_bound_each_other_and_similarity_is_at_most_one(clean, other):
    delta = (clean + other).clip(0, 1) - clean
    found = measure(clean, delta)
    assert (found.linf <= found.l2 + 1e-12).all()
    assert (found.l2 <= 8 * found.linf + 1e-12).all()
    assert (found.ssim <= 1 + 1e-9).all()
    assert (found.ssim >= -1 - 1e-9).all()
    assert ((found.changed_share == 0) == (found.linf == 0)).all()
