"""Feature squeezing of training images: a defender's cheapest answer to small changes, and not free of charge.

Source: Xu, Evans, Qi 2018, arXiv:1704.01155, where it is applied to test images. Here only training images are
squeezed, so certificates stay as valid as ever. The attacker does not know of it: an attack that did could adapt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = {"one-bit": 1, "three-bit": 3}


def squeeze_features(images: Tensor, squeezing: str) -> Tensor:
    """Images [N, C, H, W] in [0, 1], squeezed: "none", "median" (3×3, edges repeated), "one-bit" or "three-bit"."""
    if squeezing == "none":
        return images
    if squeezing == "median":
        return _median(images)
    levels = 2 ** BITS[squeezing] - 1
    return (images * levels).round() / levels


def _median(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    shifted = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.stack(shifted).median(dim=0).values
