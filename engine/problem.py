"""What one experiment is given: the attacker's and the victims' images, and the test images to certify."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.config import Config
from engine.data import LabelledImages, load, split
from engine.datasets import NUM_CLASSES
from engine.streams import stream
from engine.threat import choose_poison_indices


@dataclass(frozen=True)
class Problem:
    """All data of one experiment, on its device. All index tensors are positions within `training` or `test`."""

    training: LabelledImages
    validation: LabelledImages  # of the target class, the attacker's
    test: LabelledImages  # the images to certify
    test_weights: Tensor  # [N] so that the stratified sample stands for the whole test set
    poison_indices: Tensor


def pose(config: Config, data_root: Path, device: torch.device) -> Problem:
    """The problem that a configuration poses; it depends on the data set, sizes, target class and seed alone.

    Raises: datasets.DatasetUnavailable.
    """
    original, test = (load(config.dataset, data_root, train=train) for train in (True, False))
    training, validation = split(
        original,
        train_size=config.data.train_size,
        validation_size=config.data.validation_size,
        seed=config.seed,
    )
    target = config.threat.target_class
    indices = choose_poison_indices(
        training.labels,
        target_class=target,
        poison_fraction=config.threat.poison_fraction,
        seed=config.seed,
    )
    chosen, weights = [], []
    for label in range(NUM_CLASSES):
        of_class = (test.labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(of_class), generator=stream(config.seed, "test images", label))
        wanted = config.certification.target_images if label == target else config.certification.other_images
        part = of_class[order[:wanted]].sort().values
        chosen.append(part)
        weights.append(torch.full((len(part),), len(of_class) / len(part) / len(test), dtype=torch.float64))
    return Problem(
        training.to(device),
        validation.of_class(target).to(device),
        test.select(torch.cat(chosen)).to(device),
        torch.cat(weights),
        indices.to(device),
    )
