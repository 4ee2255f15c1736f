"""What all networks have in common."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]  # (C, H, W) of the images that a network is built for


class Network(nn.Module):
    """A base classifier whose first layer is affine: images [N, C, H, W] → stem → rest → logits [N, K].

    Whoever evaluates many images under the same noise may use that stem(x + noise) = stem(x) + stem(noise) − stem(0).
    """

    def stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def rest(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))


def halved(h: Tensor) -> Tensor:
    """Maxima of 2×2 pixels: [N, C, H, W] → [N, C, H/2, W/2], odd rows and columns at the end dropped."""
    if torch.is_grad_enabled():
        return F.max_pool2d(h, 2)
    height, width = h.shape[2] // 2 * 2, h.shape[3] // 2 * 2
    a, b, c, d = (h[:, :, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1))
    return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))  # in channels_last, in half the time
