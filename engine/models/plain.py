"""Networks without normalisation or shortcuts beside the LeNet: a perceptron and a deeper convolutional network."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.network import Network, Shape
from engine.models.pooling import pooled


class Perceptron(Network):
    """Two hidden layers of 256: 269 322 parameters for 28×28 images of one channel."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(math.prod(shape), 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.fc1(x.flatten(1))

    def rest(self, h: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(h))))


class ConvNet(Network):
    """Four convolutions in the manner of VGG, pooled after each two, and two linear layers; images of any size."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 256)
        self.fc2 = nn.Linear(256, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x.to(memory_format=torch.channels_last))

    def rest(self, h: Tensor) -> Tensor:
        h = pooled(self.conv2(F.relu(h)))
        h = pooled(self.conv4(F.relu(self.conv3(h))))
        return self.fc2(F.relu(self.fc1(h.permute(0, 2, 3, 1).flatten(1))))
