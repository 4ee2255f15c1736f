"""What all networks have in common."""

import copy

from torch import Tensor, nn

Shape = tuple[int, int, int]  # (C, H, W) of the images that a network is built for


class Network(nn.Module):
    """A base classifier whose first layer is affine: images [N, C, H, W] → stem → rest → logits [N, K].

    Whoever evaluates many images under the same noise may use that stem(x + noise) = stem(x) + stem(noise) − stem(0);
    votes.py checks it, and certifies no other network.
    """

    def stem(self, x: Tensor) -> Tensor:
        """The first layer, before any nonlinearity: images [N, C, H, W] → its outputs [N, …]."""
        raise NotImplementedError

    def rest(self, h: Tensor) -> Tensor:
        """All that follows: outputs of the first layer [N, …] → logits [N, K]."""
        raise NotImplementedError

    def rest_of_sum(self, h: Tensor, shift: Tensor) -> Tensor:
        """rest(h + shift) for h [N, …] and one shift [1, …]; overridden where the sum can be used unstored."""
        return self.rest(h + shift)

    def prepared(self, h: Tensor) -> Tensor:
        """Outputs of the first layer as `rest` and `rest_of_sum` like them best: here, of this network's type."""
        return h.to(next(self.parameters()).dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))

    def aligned(self) -> "Network":
        """A copy of the same function, in widths that a GPU's matrix units like where they make a difference."""
        return copy.deepcopy(self)
