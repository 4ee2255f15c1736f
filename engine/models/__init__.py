"""Base classifiers f: images [N, C, H, W] in [0, 1] → logits [N, K]. Adding one is a class and a line in BUILDERS."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from engine.choices import SMALLEST_SIDE
from engine.models.initialise import Initialiser, glorot_uniform, he_normal, he_normal_truncated, torch_uniform
from engine.models.lenet import LeNet
from engine.models.network import Network, Shape
from engine.models.plain import ConvNet, Perceptron
from engine.models.resnet import Affine, ResNet, ResNet18

# How an architecture is built, and how its layers begin; normalisation begins with scales of 1 and shifts of 0.
BUILDERS: dict[str, tuple[Callable[[Shape, int], Network], Initialiser]] = {
    "mlp": (Perceptron, glorot_uniform),
    "lenet-narrow": (partial(LeNet, widths=(8, 16, 100)), glorot_uniform),
    "lenet": (LeNet, glorot_uniform),
    "lenet-torch": (LeNet, torch_uniform),
    "convnet": (ConvNet, he_normal),
    "resnet8": (partial(ResNet, n=1), he_normal),
    "resnet20": (partial(ResNet, n=3), he_normal),
    "resnet32": (partial(ResNet, n=5), he_normal),
    "resnet44": (partial(ResNet, n=7), he_normal),
    "resnet56": (partial(ResNet, n=9), he_normal),
    "resnet20-pacd": (partial(ResNet, n=3, pacd=True), he_normal_truncated),
    "resnet18": (ResNet18, he_normal),
}


def build(
    architecture: str, *, shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10, generator: torch.Generator
) -> Network:
    """A base classifier with fresh weights for images of this shape (C, H, W), on the generator's device.

    Raises: ValueError if the images are too small for it.
    """
    builder, initialise = BUILDERS[architecture]
    channels, height, width = shape
    if min(height, width) < (side := SMALLEST_SIDE.get(architecture, 8)):
        raise ValueError(f"{architecture} needs images of at least {side}×{side} pixels, got {width}×{height}")
    with torch.device("meta"):
        model = builder((channels, height, width), num_classes)
    device, kinds = generator.device, model.state_dict().items()  # to_empty would import sympy, which takes a while
    model.load_state_dict({name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in kinds}, assign=True)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | Affine):
                module.reset_parameters()  # ones and zeros, the running statistics included
            elif isinstance(module, nn.Conv2d | nn.Linear):
                if module.bias is not None:
                    module.bias.zero_()
                initialise(module, generator)
    return model


def flat_weights(model: nn.Module) -> Tensor:
    """All parameters as one detached vector [W], the form in which bilevel optimisation sees them."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def with_weights(model: nn.Module, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The model as a function of images that uses (and is differentiable in) the weight vector [W].

    The model stays as it is: batch normalisation in training mode moves a copy of its running statistics, which no
    output depends on then. So what a loss gives depends on its arguments alone, however often it is called, and the
    functions of one model may be called side by side.
    """
    return _bound(model, iter(weights.split([parameter.numel() for parameter in model.parameters()])))


def _bound(module: nn.Module, pieces: Iterator[Tensor]) -> nn.Module:
    """Shares all but weights and buffers with the module: it may run beside others, and copies no weight."""
    twin = copy.copy(module)
    own = {name: None if p is None else next(pieces).view(p.shape) for name, p in module._parameters.items()}
    twin.__dict__["_parameters"] = own  # tensors of a graph, as functional_call has it, where torch types leaves
    twin._buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    twin._modules = {name: None if m is None else _bound(m, pieces) for name, m in module._modules.items()}
    return twin
