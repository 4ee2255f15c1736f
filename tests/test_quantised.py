"""The LeNet in bytes: how close it is, that it owns up to what it cannot hold, and where it is used."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from engine import votes
from engine.models import BUILDERS, build, quantised
from engine.models.lenet import LeNet
from engine.models.quantised import MOST, QuantisedLeNet, multiplies_bytes, quantisable
from engine.streams import stream
from engine.votes import narrow_type

VNNI = pytest.mark.skipif(not multiplies_bytes(), reason="this CPU has no AVX512-VNNI")
CPU = torch.device("cpu")


def lenet(name: str = "lenet", shape: tuple[int, int, int] = (1, 28, 28)) -> LeNet:
    model = build(name, shape=shape, generator=stream(0, "model")).eval()
    assert isinstance(model, LeNet)
    return model


def outputs(model: LeNet, count: int, *, scale: float = 1.0) -> Tensor:
    """Of the first layer at random images."""
    with torch.no_grad():
        return model.stem(scale * torch.rand(count, *model.shape, generator=stream(0, "images")))


@VNNI
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 19)])
@pytest.mark.parametrize("name", ["lenet", "lenet-narrow"])
def test_logits_in_bytes_are_within_a_few_hundredths_of_their_size(name, shape):
    model = lenet(name, shape)
    h = outputs(model, 64)
    with torch.inference_mode():
        exact, found = model.rest(h), QuantisedLeNet(model, h.split(16)).rest(h)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.05 * float(exact.abs().max()))
        assert not torch.equal(found, exact)


@VNNI
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_logits_are_nan_just_where_an_activation_is_larger_than_its_byte_holds(layer):
    model = lenet("lenet-narrow")
    h = outputs(model, 40)
    with torch.inference_mode():
        narrow = QuantisedLeNet(model, [h])
        assert not narrow.rest(h).isnan().any()  # there is room for what was seen
        if layer == "conv1":
            h[7, 3, 11, 13] = h.max() * 1.2
        else:  # the largest that this layer ever gives, and none of what it is given is larger than before
            model.conv2.bias.fill_(-10.0)
            narrow = QuantisedLeNet(model, [h])
            narrow._exact.conv2.bias[3] = 0.0
        clipped = narrow.rest(h).isnan().any(dim=1)
    assert clipped.nonzero().flatten().tolist() == ([7] if layer == "conv1" else list(range(40)))


@VNNI
def test_logits_depend_on_the_batch_by_the_last_layers_rounding_alone_and_not_on_what_else_runs():
    model = lenet()
    h, shift = outputs(model, 250), outputs(model, 1)

    def logits(rows: slice) -> Tensor:
        with torch.inference_mode():
            return narrow.rest_of_sum(h[rows], shift)

    narrow = QuantisedLeNet(model, [h + shift])
    whole = logits(slice(0, 250))
    for first, last in ((0, 1), (3, 100), (120, 250)):
        torch.testing.assert_close(logits(slice(first, last)), whole[first:last], rtol=0, atol=1e-6)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, whole) for found in pool.map(logits, [slice(0, 250)] * 8))


@VNNI
def test_only_lenets_whose_sums_an_int32_holds_have_such_a_form():
    assert {name for name in BUILDERS if quantisable(build(name, generator=stream(0, "model")))} == {
        *("lenet", "lenet-narrow")
    }
    assert quantisable(LeNet((1, 28, 28), 10, widths=(8, MOST // 16, 8)))
    assert not quantisable(LeNet((1, 28, 28), 10, widths=(8, MOST // 16 + 1, 8)))


@pytest.mark.parametrize(
    ("bfloat16", "byte", "expected"),
    [(True, True, torch.bfloat16), (False, True, torch.int8), (False, False, None)],
)
def test_bfloat16_comes_first_then_bytes_and_where_there_is_neither_float32(bfloat16, byte, expected, monkeypatch):
    monkeypatch.setattr(votes, "has_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr(quantised, "multiplies_bytes", lambda: byte)
    assert narrow_type(lenet(), CPU) == expected
    assert narrow_type(build("mlp", generator=stream(0, "model")), CPU) == (torch.bfloat16 if bfloat16 else None)


def gone(*_):
    raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")


def wrong(network: QuantisedLeNet, h: Tensor, shift: Tensor) -> Tensor:
    return network._exact.rest(h) / 2  # as where two products' sum is cut off at 16 bits


@pytest.mark.parametrize("broken", [gone, wrong])
def test_operators_that_are_gone_or_wrong_are_not_used(broken, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(QuantisedLeNet, "rest_of_sum", broken)
    assert not multiplies_bytes.__wrapped__()


def test_a_cpu_without_the_instructions_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": False})
    monkeypatch.setattr(quantised, "QuantisedLeNet", lambda *_: pytest.fail("it was tried"))
    assert not multiplies_bytes.__wrapped__()
