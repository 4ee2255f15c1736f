"""Residual networks for small images: He et al.'s for CIFAR, PACD's variant of it, and torchvision's ResNet-18.

Batch normalisation works on the batch at hand in training mode, which a new network is in, and on running statistics
in evaluation mode, in which victims are certified.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.network import Network, Shape

WIDTHS = (16, 32, 64)


class Affine(nn.Module):
    """scale·x/√1.001 + shift for each channel: Keras's batch normalisation with a moving mean of 0 and variance of 1.

    That is what PACD's code trains and certifies, since it never asks Keras for the training phase.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels))
        self.shift = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift[:, None, None], x, (self.scale / math.sqrt(1.001))[:, None, None])


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": at stride 2 an even side gets its one zero at the end."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            same_padding(side, kernel, stride)
            for side, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        )
        if rows[0] == rows[1] and columns[0] == columns[1]:
            return F.conv2d(x, self.weight, self.bias, self.stride, (rows[0], columns[0]))
        return F.conv2d(F.pad(x, (*columns, *rows)), self.weight, self.bias, self.stride)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) that let ceil(side/stride) values come out, the odd one after."""
    zeros = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    return zeros // 2, zeros - zeros // 2


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, *, stride: int, pacd: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, width, stride=stride, pacd=pacd), _norm(width, pacd=pacd)
        self.conv2, self.norm2 = _conv(width, width, stride=1, pacd=pacd), _norm(width, pacd=pacd)
        self.shortcut: nn.Module = nn.Identity()
        if (channels, stride) != (width, 1):
            projection = nn.Conv2d(channels, width, 1, stride, bias=pacd)
            self.shortcut = projection if pacd else nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(Network):
    """6n + 2 layers: a stem and three stages of n blocks, 16, 32 and 64 wide, then the mean over the image.

    He et al.'s own is batch-normalised, its shortcuts are projections where the shape changes (their option B).
    ResNet-20: 272 474 parameters for 32×32 images in colour.

    PACD's (`pacd`) has a bias in every convolution, `Affine` for each batch normalisation, none in its shortcuts, and
    TensorFlow's padding: 273 066 parameters. Its code pools by 8×8; here the mean is over whatever is left, which is
    8×8 for its 32×32 images, so that other sizes fit too.

    Source: He, Zhang, Ren, Sun 2016, arXiv:1512.03385, Section 4.2; Mehra et al. 2021, released code.
    """

    def __init__(self, shape: Shape, num_classes: int, *, n: int, pacd: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = _conv(shape[0], WIDTHS[0], stride=1, pacd=pacd), _norm(WIDTHS[0], pacd=pacd)
        before = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.Sequential(
            *(
                Block(before[stage] if first else width, width, stride=2 if first and stage > 0 else 1, pacd=pacd)
                for stage, width in enumerate(WIDTHS)
                for first in [True] + [False] * (n - 1)
            )
        )
        self.fc = nn.Linear(WIDTHS[-1], num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv(x.to(memory_format=torch.channels_last))

    def rest(self, h: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.norm(h))).mean(dim=(2, 3)))


class ResNet18(Network):
    """torchvision's ResNet-18, whose stem keeps a small image's size: 3×3 at stride 1, and no pooling.

    11 173 962 parameters for 32×32 images in colour and ten classes. Source: He et al. 2016, Section 4.1.
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # whatever is made on import, it must be real
            from torchvision.models import resnet18  # takes a second to import

        self.network = resnet18(num_classes=num_classes)
        self.network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        self.network.maxpool = nn.Identity()

    def stem(self, x: Tensor) -> Tensor:
        return self.network.conv1(x.to(memory_format=torch.channels_last))

    def rest(self, h: Tensor) -> Tensor:
        network = self.network
        for stage in (network.bn1, network.relu, network.layer1, network.layer2, network.layer3, network.layer4):
            h = stage(h)
        return network.fc(network.avgpool(h).flatten(1))


def _conv(channels: int, width: int, *, stride: int, pacd: bool) -> nn.Conv2d:
    if pacd:
        return SameConv2d(channels, width, 3, stride)
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


def _norm(width: int, *, pacd: bool) -> nn.Module:
    return Affine(width) if pacd else nn.BatchNorm2d(width)
