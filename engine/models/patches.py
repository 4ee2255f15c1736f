"""How a convolution's images and weights lie in memory for the loops of gradients.py: patches in long runs of numbers.

Images [N, C, H, W] become rows [N, rows, numbers], weights [K, C, side, side] runs [K, runs, numbers]. A patch is as
many runs of as many rows, one below the other, that begin at `depth` times the left pixel of the patch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.gradients import PATCH


@dataclass(frozen=True)
class Rows:
    """Those of images in channels_last: a patch has `side` runs of side · C numbers."""

    images: torch.Size
    weights: torch.Size

    @property
    def depth(self) -> int:
        return self.weights[1]

    def from_weights(self, weights: Tensor) -> Tensor:
        return weights.permute(0, 2, 3, 1).flatten(2).contiguous()

    def empty_runs(self, like: Tensor) -> Tensor:
        filters, channels, side, _ = self.weights
        return like.new_empty(filters, side, side * channels)

    def to_weights(self, runs: Tensor) -> Tensor:
        return runs.unflatten(2, (-1, self.depth)).permute(0, 3, 1, 2)

    def from_images(self, images: Tensor) -> Tensor:
        last = images.permute(2, 3, 1, 0)  # as winograd.py leaves them
        if last.is_contiguous():
            return last.flatten(0, 2).t().contiguous().view(len(images), len(last), -1)
        return images.permute(0, 2, 3, 1).contiguous().flatten(2)

    def to_images(self, rows: Tensor) -> Tensor:
        return rows.unflatten(2, (-1, self.depth)).permute(0, 3, 1, 2)

    def empty(self, like: Tensor) -> Tensor:
        n, channels, height, width = self.images
        return like.new_empty(n, height, width * channels)


@dataclass(frozen=True)
class Bands:
    """For one channel: a row for each of a patch's upper pixels, with the `side` pixels from there down of each column.

    So a patch is one run. It is padded to PATCH: what follows in memory is read, and added to weights of no pixel.
    """

    images: torch.Size
    weights: torch.Size

    @property
    def depth(self) -> int:
        return self.weights[2]

    def empty_runs(self, like: Tensor) -> Tensor:
        return like.new_empty(self.weights[0], 1, PATCH)

    def to_weights(self, runs: Tensor) -> Tensor:
        side = self.depth
        return runs[..., : side * side].unflatten(2, (side, side)).mT

    def from_images(self, images: Tensor) -> Tensor:
        bands = self.empty(images)
        bands.unflatten(2, (-1, self.depth)).copy_(images.squeeze(1).unfold(1, self.depth, 1))
        return bands

    def empty(self, like: Tensor) -> Tensor:
        n, _, height, width = self.images
        shape = n, height - self.depth + 1, width * self.depth
        size = shape[0] * shape[1] * shape[2]
        return like.new_empty(size + PATCH)[:size].view(shape)
