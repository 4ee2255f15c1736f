"""Base classifiers f: images [N, C, H, W] in [0, 1] → logits [N, K]. Adding one is a class and a line in BUILDERS."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]  # (C, H, W)


class LeNet(nn.Module):
    """The 20-50-500 LeNet of MACER, Consistency and PACD: 431 080 parameters for 28×28 images of one channel.

    Pooling comes before ReLU: the same function, since both are monotone, at a quarter of the ReLU's cost. Layers
    work in channels_last, which is 2 to 4 times faster on a CPU.
    """

    def __init__(self, shape: Shape, num_classes: int, *, widths: tuple[int, int, int] = (20, 50, 500)) -> None:
        super().__init__()
        channels, height, width = shape
        pixels = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(channels, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.fc1 = nn.Linear(pixels * widths[1], widths[2])
        self.fc2 = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = x.permute(0, 2, 3, 1).flatten(1)  # [N, 800] in (H, W, C) order: free in channels_last, and as Keras has it
        return self.fc2(F.relu(self.fc1(x)))


def glorot_uniform(weight: Tensor, generator: torch.Generator) -> None:
    """U(±√(6/(fan_in + fan_out))), Keras's default, as in PACD's code for MNIST."""
    receptive_field = math.prod(weight.shape[2:])
    limit = math.sqrt(6 / (receptive_field * (weight.shape[0] + weight.shape[1])))
    weight.uniform_(-limit, limit, generator=generator)


Initialiser = Callable[[Tensor, torch.Generator], None]
# How an architecture is built, and how its weights of two and more dimensions begin; biases begin at 0, scales at 1.
BUILDERS: dict[str, tuple[Callable[[Shape, int], nn.Module], Initialiser]] = {
    "lenet-narrow": (partial(LeNet, widths=(8, 16, 100)), glorot_uniform),
    "lenet": (LeNet, glorot_uniform),
}


def build(
    architecture: str, *, shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10, generator: torch.Generator
) -> nn.Module:
    """A base classifier with fresh weights for images of this shape (C, H, W), on the generator's device."""
    builder, initialise = BUILDERS[architecture]
    channels, height, width = shape
    with torch.device("meta"):
        model = builder((channels, height, width), num_classes)
    model = model.to_empty(device=generator.device)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()  # ones and zeros, the running statistics included
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 1:
                    parameter.zero_()
                else:
                    initialise(parameter, generator)
    return model


def flat_weights(model: nn.Module) -> Tensor:
    """All parameters as one detached vector [W], the form in which bilevel optimisation sees them."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def with_weights(model: nn.Module, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The model as a function of images that uses (and is differentiable in) the weight vector [W]."""
    parameters = dict(model.named_parameters())
    pieces = weights.split([parameter.numel() for parameter in parameters.values()])
    named = {
        name: piece.view(parameter.shape) for (name, parameter), piece in zip(parameters.items(), pieces, strict=True)
    }
    return lambda images: torch.func.functional_call(model, named, (images,))
