"""The threat model: who may be changed and by how much, and checks of both that trust no attack."""

from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from engine.data import LabelledImages
from engine.streams import stream


class ThreatModelViolated(ValueError):
    """A poison left its budget, its labels or the pixel range."""


@dataclass(frozen=True)
class Poison:
    """Changes to training images: delta [P, C, H, W] float32, and the images' positions [P] in the training set.

    labels [P] int64, if given, replace the images' own: such a poison is not clean-label.
    """

    delta: Tensor
    indices: Tensor
    labels: Tensor | None = None

    def digest(self) -> str:
        """SHA-256 of changes and positions: two poisons of one digest are the same poison of one training set."""
        parts = (self.delta, self.indices) if self.labels is None else (self.delta, self.indices, self.labels)
        return sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()

    def apply(self, training: LabelledImages) -> LabelledImages:
        """The training set with these images (and labels, if the poison has any) changed."""
        images, labels = training.images.clone(), training.labels
        images[self.indices] += self.delta.to(images.device)
        if self.labels is not None:
            labels = labels.clone()
            labels[self.indices] = self.labels.to(labels.device)
        return LabelledImages(images, labels, training.indices)


def choose_attacker_indices(labels: Tensor, *, attacker_share: float, seed: int) -> Tensor:
    """Positions of a random attacker_share of the training images, ascending."""
    order = torch.randperm(len(labels), generator=stream(seed, "attacker indices"))
    return order[: round(attacker_share * len(labels))].sort().values


def choose_poison_indices(labels: Tensor, *, target_class: int, poison_fraction: float, seed: int) -> Tensor:
    """Positions of a random poison_fraction of the target class's training images, ascending.

    Raises: ValueError, where there are none of the class, or a fraction above 0 of them rounds to none.
    """
    candidates = (labels == target_class).nonzero().squeeze(1)
    if len(candidates) == 0:
        raise ValueError(f"the attacker's {len(labels)} training images have none of target_class {target_class}")
    count = round(poison_fraction * len(candidates))
    if poison_fraction > 0 and count == 0:
        raise ValueError(
            f"threat.poison_fraction {poison_fraction:g} of the {len(candidates)} training images of target_class "
            f"{target_class} that the attacker holds is none; it must be 0, or more than {0.5 / len(candidates):.2g}"
        )
    order = torch.randperm(len(candidates), generator=stream(seed, "poison indices"))
    return candidates[order[:count]].sort().values


def project_linf(x_poison: Tensor, x_clean: Tensor, *, epsilon: float) -> Tensor:
    """The nearest images with every pixel within epsilon of the clean one and within [0, 1]."""
    return torch.clamp(x_poison, (x_clean - epsilon).clamp(min=0), (x_clean + epsilon).clamp(max=1))


def within_budget(x_clean: Tensor, change: Tensor, *, epsilon: float) -> Tensor:
    """delta of x_clean's shape [P, C, H, W]: a change, cut at epsilon (L∞) and where a pixel would leave [0, 1]."""
    return project_linf(x_clean + change, x_clean, epsilon=epsilon) - x_clean


def check(
    poison: Poison, training: LabelledImages, *, target_class: int, epsilon: float, clean_label: bool = True
) -> None:
    """Raises ThreatModelViolated unless the poison is clean-label, within epsilon (L∞) and gives pixels in [0, 1].

    Without clean_label it may have labels, each of another class that occurs in the training set.
    The tolerance of 1e-6 covers float32 rounding of clean + delta.
    """
    if not bool(poison.delta.isfinite().all()):
        raise ThreatModelViolated("the poison has values that are not finite")
    if not bool(((poison.indices >= 0) & (poison.indices < len(training))).all()):
        raise ThreatModelViolated("the poison names an image that is not in the training set")
    if not bool((training.labels[poison.indices] == target_class).all()):
        raise ThreatModelViolated(f"the poison touches images outside target class {target_class}")
    if len(poison.indices.unique()) != len(poison.delta):
        raise ThreatModelViolated("the poison names an image twice, or has not one delta per image")
    if poison.labels is not None:
        _check_labels(poison.labels, poison, training, target_class=target_class, clean_label=clean_label)
    if len(poison.delta) == 0:
        return
    largest = float(poison.delta.abs().max())
    if largest > epsilon + 1e-6:
        raise ThreatModelViolated(f"the poison changes a pixel by {largest}, more than epsilon = {epsilon}")
    images = training.images[poison.indices] + poison.delta
    if float(images.min()) < -1e-6 or float(images.max()) > 1 + 1e-6:
        raise ThreatModelViolated("the poison leaves the pixel range [0, 1]")


def _check_labels(
    labels: Tensor, poison: Poison, training: LabelledImages, *, target_class: int, clean_label: bool
) -> None:
    if clean_label:
        raise ThreatModelViolated("the poison changes labels, and so is not clean-label")
    if labels.dtype != torch.int64 or labels.shape != poison.indices.shape:
        raise ThreatModelViolated("the poison has not one whole number per image as labels")
    if not bool(torch.isin(labels, training.labels).all()):
        raise ThreatModelViolated("the poison has a label that no training image has")
    if bool((labels == target_class).any()):
        raise ThreatModelViolated(f"the poison has target class {target_class} among the labels that are to replace it")
