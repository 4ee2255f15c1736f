"""The networks written out from their weights, layer by layer, in NCHW: what the engine's must equal."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]  # by the names of a state_dict
Padding = Callable[[Tensor, int], Tensor]  # of a 3×3 convolution's input, given its stride


def lenet(w: Weights, x: Tensor) -> Tensor:
    """Convolution, ReLU, pooling, twice; then 800 features in (C, H, W) order; then two linear layers."""
    channels = w["conv2.weight"].shape[0]
    h = F.max_pool2d(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"])), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, w["conv2.weight"], w["conv2.bias"])), 2)
    fc1 = w["fc1.weight"].view(-1, 4, 4, channels).permute(0, 3, 1, 2).reshape(-1, 16 * channels)
    h = F.relu(F.linear(h.flatten(1), fc1, w["fc1.bias"]))
    return F.linear(h, w["fc2.weight"], w["fc2.bias"])


def padded_at_the_end(x: Tensor, stride: int) -> Tensor:
    """What TensorFlow's SAME does to a 3×3 convolution on even sides."""
    return F.pad(x, (0, 1, 0, 1)) if stride == 2 else F.pad(x, (1, 1, 1, 1))


def padded_all_around(x: Tensor, _stride: int) -> Tensor:
    return F.pad(x, (1, 1, 1, 1))


def resnet(w: Weights, x: Tensor, *, n: int, pad: Padding) -> Tensor:
    """A residual network in evaluation mode; Keras's epsilon is 1e-3, torch's 1e-5."""

    def norm(x: Tensor, name: str) -> Tensor:
        if f"{name}.scale" in w:
            zeros, ones = torch.zeros_like(w[f"{name}.scale"]), torch.ones_like(w[f"{name}.scale"])
            return F.batch_norm(x, zeros, ones, w[f"{name}.scale"], w[f"{name}.shift"], eps=1e-3)
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(pad(x, stride), w[f"{name}.weight"], w.get(f"{name}.bias"), stride)

    x = F.relu(norm(conv(x, "conv"), "norm"))
    for block in range(3 * n):
        name, stride = f"blocks.{block}", 2 if block in (n, 2 * n) else 1
        inner = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.norm1"))
        inner = norm(conv(inner, f"{name}.conv2"), f"{name}.norm2")
        if f"{name}.shortcut.weight" in w:
            x = F.conv2d(x, w[f"{name}.shortcut.weight"], w[f"{name}.shortcut.bias"], 2)
        elif f"{name}.shortcut.0.weight" in w:
            x = norm(F.conv2d(x, w[f"{name}.shortcut.0.weight"], None, 2), f"{name}.shortcut.1")
        x = F.relu(inner + x)
    return F.linear(F.avg_pool2d(x, x.shape[2:]).flatten(1), w["fc.weight"], w["fc.bias"])
