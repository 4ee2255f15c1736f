"""A LeNet whose large products are of bytes, a multiple faster than float32 on a CPU that has instructions for them."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from engine.models.convolution import convolved
from engine.models.lenet import LeNet
from engine.models.network import Network
from engine.models.pooling import pooled, pooled_bytes, pooled_sum_in_bytes

ROOM = 1.05  # activations may be so many times the largest seen
FULL = 255  # the largest byte
MOST = (2**31 - 1) // (FULL * 127)  # products of bytes whose sum an int32 holds, whatever they are
SMALLEST = 1e-30  # a byte's unit where all that was seen is 0
_PLAIN = [1, 1], [0, 0], [1, 1], 1  # strides, padding, dilation, groups
_RELU: tuple[str, list[float], str] = "relu", [], ""


class QuantisedLeNet(Network):
    """What follows the first layer of a LeNet that is `quantisable`, without gradients.

    Inputs of the second convolution and of the first dense layer are bytes, in units of a part of the largest seen, and
    so are their weights, in units of an output's own; sums of products are exact integers, and the last layer is in
    float32. So activations are off by rounding alone, unless one was too large for its byte. That byte is full then,
    which pooling cannot hide since it keeps the largest, and such an image's logits are NaN.
    """

    @torch.inference_mode()
    def __init__(self, exact: Network, seen: Iterable[Tensor]) -> None:
        """seen: outputs [N, C, H, W] of the first layer, as the network will get them."""
        assert isinstance(exact, LeNet)
        super().__init__()
        self._exact = exact
        largest = torch.stack([self._largest(h) for h in seen]).amax(dim=0)
        self._first, self._second = (largest * ROOM / FULL).clamp(min=SMALLEST).tolist()
        weights, units = _in_bytes(exact.conv2.weight)
        packed = torch.ops.onednn.qconv_prepack(weights, units, self._first, 0, *_PLAIN)
        self._conv2 = packed, units, torch.zeros(len(units), dtype=torch.int32), exact.conv2.bias
        weights, units = _in_bytes(exact.fc1.weight)
        packed = torch.ops.onednn.qlinear_prepack(weights, None)
        self._fc1 = packed, units, torch.zeros(len(units), dtype=torch.int32), exact.fc1.bias

    def _largest(self, h: Tensor) -> Tensor:
        first = pooled(h)
        return torch.stack([first.max(), pooled(convolved(self._exact.conv2, first)).max()])

    def rest(self, h: Tensor) -> Tensor:
        return self.rest_of_sum(h, torch.zeros_like(h[:1]))

    def rest_of_sum(self, h: Tensor, shift: Tensor) -> Tensor:
        ops = torch.ops.onednn
        first = pooled_sum_in_bytes(h, shift, unit=self._first)
        wide = ops.qconv2d_pointwise(first, self._first, 0, *self._conv2, *_PLAIN, self._second, 0, torch.uint8, *_RELU)
        second = pooled_bytes(wide).permute(0, 2, 3, 1).flatten(1)
        hidden = ops.qlinear_pointwise(second, self._second, 0, *self._fc1, 1.0, 0, torch.float32, *_RELU)
        full = torch.maximum(first.permute(0, 2, 3, 1).flatten(1).amax(dim=1), second.amax(dim=1)) == FULL
        return self._exact.fc2(hidden).masked_fill(full[:, None], torch.nan)


def _in_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 of the weights' shape, its units [K]): one for each output."""
    units = (weight.flatten(1).abs().amax(dim=1) / 127).clamp(min=SMALLEST)
    return (weight / units.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), units


def quantisable(network: Network) -> bool:
    """Whether it has such a form, and this CPU is faster with it."""
    return isinstance(network, LeNet) and network.fc1.in_features <= MOST and multiplies_bytes()


@cache
def multiplies_bytes() -> bool:
    """Whether this CPU has AVX512-VNNI, and torch's operators for it give what they should, tried once.

    They are internal to torch: should a version change them, nothing is lost but time.
    """
    if not torch.cpu.get_capabilities().get("avx512_vnni"):
        return False
    with torch.device("meta"):
        exact = LeNet((1, 16, 16), 2, widths=(8, 8, 8))
    exact, h = exact.to_empty(device="cpu"), torch.ones(2, 8, 12, 12)
    with torch.inference_mode():
        for parameter in exact.parameters():
            parameter.fill_(0.01)
        try:
            found = QuantisedLeNet(exact, [h]).rest(h)
        except (AttributeError, TypeError, RuntimeError):
            return False
        return torch.allclose(found, exact.rest(h), rtol=0.02)
