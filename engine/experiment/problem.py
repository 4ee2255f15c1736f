"""What one experiment is given: the attacker's and the victims' images, and the test images to certify."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine import datasets
from engine.config import Config
from engine.data import LabelledImages, load, split
from engine.streams import stream
from engine.threat import choose_attacker_indices, choose_poison_indices


@dataclass(frozen=True)
class Problem:
    """All data of one experiment, on its device. All index tensors are positions within `training` or `test`."""

    training: LabelledImages
    validation: LabelledImages  # of the target class, the attacker's
    test: LabelledImages  # the images to certify
    test_weights: Tensor  # [N] so that the stratified sample stands for the whole test set
    poison_indices: Tensor
    attacker_indices: Tensor  # ascending: the training images in the attacker's hands
    class_names: tuple[str, ...]

    def attackers_training(self) -> tuple[LabelledImages, Tensor]:
        """(The training images in the attacker's hands, the positions among them that may change)."""
        return self.training.select(self.attacker_indices), torch.searchsorted(
            self.attacker_indices, self.poison_indices
        )


def pose(config: Config, data_root: Path, device: torch.device) -> Problem:
    """The problem that a configuration poses; it depends on data set, sizes, threat and seed alone.

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
    class_names = datasets.class_names(config.dataset, data_root)
    known = choose_attacker_indices(training.labels, attacker_share=config.threat.attacker_share, seed=config.seed)
    indices = known[
        choose_poison_indices(
            training.labels[known],
            target_class=target,
            poison_fraction=config.threat.poison_fraction,
            seed=config.seed,
        )
    ]
    chosen, weights = [], []
    for label in range(len(class_names)):
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
        known.to(device),
        class_names,
    )
