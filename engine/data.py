"""Labelled images as tensors, and the split into training and validation."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine import datasets
from engine.streams import stream


@dataclass(frozen=True)
class LabelledImages:
    """Images float32 [N, C, H, W] in [0, 1] and labels int64 [N]; indices [N] are positions in the original set."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, which: Tensor) -> "LabelledImages":
        """The images at these positions (or under this mask), in that order."""
        return LabelledImages(self.images[which], self.labels[which], self.indices[which])

    def of_class(self, label: int) -> "LabelledImages":
        return self.select(self.labels == label)

    def to(self, device: torch.device | str) -> "LabelledImages":
        return LabelledImages(self.images.to(device), self.labels.to(device), self.indices.to(device))


def load(dataset: str, root: Path, *, train: bool) -> LabelledImages:
    """The original training or test set, in its original order. Raises: datasets.DatasetUnavailable."""
    images, labels = (torch.tensor(array) for array in datasets.read(dataset, root, train=train))
    return LabelledImages(images, labels, torch.arange(len(labels)))


def split(
    original: LabelledImages, *, train_size: int, validation_size: int, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Disjoint random (training, validation) subsets; they depend on nothing but the sizes and the seed.

    The validation images are drawn first, so that a smaller training set leaves the attacker's images as they were.
    """
    if train_size + validation_size > len(original):
        raise ValueError(
            f"train_size + validation_size must be at most {len(original)}, got {train_size} + {validation_size}"
        )
    order = torch.randperm(len(original), generator=stream(seed, "split"))
    validation, training = order[: validation_size + train_size].split([validation_size, train_size])
    return original.select(training.sort().values), original.select(validation.sort().values)
