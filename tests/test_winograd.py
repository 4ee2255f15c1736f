"""The LeNet by transforms of tiles: the same function, wherever it is used."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import votes
from engine.models import BUILDERS, build, tiles
from engine.models.lenet import LeNet, WinogradLeNet
from engine.streams import stream
from engine.votes import quicker

CPU = torch.device("cpu")


def lenet(name: str = "lenet", shape: tuple[int, int, int] = (1, 28, 28)) -> LeNet:
    model = build(name, shape=shape, generator=stream(0, "model")).eval()
    assert isinstance(model, LeNet)
    return model


def outputs(model: LeNet, count: int) -> Tensor:
    """Of the first layer at random images."""
    with torch.no_grad():
        return model.stem(torch.rand(count, *model.shape, generator=stream(0, "images")))


def test_values_at_points_times_values_at_points_are_a_convolutions_outputs():
    """In one dimension and in float64: the algorithm itself, without the rounding of a network."""
    random = np.random.default_rng(0)
    kernel, pixels = random.normal(size=5), random.normal(size=8)
    found = tiles._outputs.py_func(*((tiles.OF_LINE @ kernel) * tiles._of_pixels.py_func(*pixels)))
    np.testing.assert_allclose(found, [pixels[i : i + 5] @ kernel for i in range(4)], rtol=1e-12, atol=1e-12)


# From the smallest, which leave a single window, over tiles that reach beyond the images to rows that no window has.
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 19), (1, 16, 16), (2, 22, 30), (3, 32, 32), (1, 26, 23)])
@pytest.mark.parametrize("name", ["lenet", "lenet-narrow"])
def test_logits_are_the_networks_to_float32s_last_digits(name, shape):
    model = lenet(name, shape)
    h, shift = outputs(model, 23), outputs(model, 24)[23:]
    with torch.inference_mode():
        quick = WinogradLeNet(model)
        exact, size = model.rest_of_sum(h, shift), float(model.rest(h).abs().max())
        for given in (h, quick.prepared(h), h.contiguous()):
            assert torch.equal(given, h)
            torch.testing.assert_close(quick.rest_of_sum(given, quick.prepared(shift)), exact, rtol=0, atol=1e-5 * size)
        torch.testing.assert_close(quick.rest(h), model.rest(h), rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 19), (2, 22, 31)])
@pytest.mark.parametrize("count", [2, 23, 250])
def test_the_first_layer_is_the_networks_to_float32s_last_digits(shape, count):
    model = lenet("lenet", shape)
    x = torch.randn(count, *shape, generator=stream(0, "images"))
    with torch.inference_mode():
        quick, exact = WinogradLeNet(model), model.stem(x)
        torch.testing.assert_close(quick.stem(x), quick.prepared(exact), rtol=0, atol=1e-6 * float(exact.abs().max()))
        assert quick.stem(x).stride() == quick.prepared(exact).stride()


def test_what_is_no_number_stays_none():
    model = lenet()
    h = outputs(model, 20)
    h[7, 3, 11, 13] = torch.nan
    with torch.inference_mode():
        found = WinogradLeNet(model).rest(h).isnan().any(dim=1)
    assert found.nonzero().flatten().tolist() == [7]


def test_logits_do_not_depend_on_what_else_runs():
    model = lenet()
    h, shift = outputs(model, 250), outputs(model, 1)
    quick = WinogradLeNet(model)

    def logits(_: int) -> Tensor:
        with torch.inference_mode():
            return quick.rest_of_sum(h, shift)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, logits(0)) for found in pool.map(logits, range(8)))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_lenets_are_transformed_but_where_a_cpu_multiplies_matrices_of_bfloat16(amx, narrow, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx, "avx512_bf16": narrow or amx})
    for name in BUILDERS:
        found = quicker(build(name, generator=stream(0, "model")), CPU)
        if name.startswith("lenet") and not amx:
            assert isinstance(found, WinogradLeNet)
        elif narrow or amx:
            assert next(found.parameters()).dtype == torch.bfloat16
        else:
            assert found is None
    assert votes.has_bfloat16() == (narrow or amx)
