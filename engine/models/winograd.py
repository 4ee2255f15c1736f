"""A LeNet with a fifth of the products: its second convolution by transforms of tiles, as good as float32 allows."""

import torch
from torch import Tensor

from engine.models.lenet import LeNet
from engine.models.network import Network


class WinogradLeNet(Network):
    """What follows the first layer of a LeNet on a CPU, without gradients."""

    @torch.inference_mode()
    def __init__(self, exact: LeNet) -> None:
        from engine.models import tiles

        super().__init__()
        assert exact.conv2.bias is not None
        self._exact, self._biases = exact, exact.conv2.bias.numpy()
        once = torch.from_numpy(tiles.OF_KERNEL)
        kernels = torch.einsum("ui,vj,kcij->uvkc", once, once, exact.conv2.weight.double())
        self._kernels = kernels.to(exact.conv2.weight.dtype).flatten(0, 1)  # [64, K, C]

    def prepared(self, h: Tensor) -> Tensor:
        """[M, C, H, W] with the draws last in memory: [H, W, C, M]."""
        size = h.shape[1:]
        columns = h.permute(0, 2, 3, 1).flatten(1).t().contiguous()  # torch turns a matrix block by block
        return columns.unflatten(0, (size[1], size[2], size[0])).permute(3, 2, 0, 1)

    def rest(self, h: Tensor) -> Tensor:
        return self.rest_of_sum(h, torch.zeros_like(h[:1]))

    def rest_of_sum(self, h: Tensor, shift: Tensor) -> Tensor:
        from engine.models import tiles

        draws, channels, *size = h.shape
        height, width = ((side // 2 - 4) // 2 for side in size)  # of what the second pooling leaves
        down, across = (height + 1) // 2, (width + 1) // 2
        shared, at = h.permute(2, 3, 1, 0).contiguous(), shift[0].permute(1, 2, 0).contiguous()
        into = h.new_empty(8, 8, channels, down * across, draws)
        tiles.into_tiles(shared.numpy(), at.numpy(), into.numpy(), across)
        products = torch.bmm(self._kernels, into.view(64, channels, -1)).view(8, 8, -1, down * across, draws)
        maxima = h.new_empty(height, width, products.shape[2], draws)
        tiles.out_of_tiles(products.numpy(), self._biases, maxima.numpy(), across)
        fc1, fc2 = self._exact.fc1, self._exact.fc2
        hidden = torch.addmm(fc1.bias[:, None], fc1.weight, maxima.view(-1, draws)).relu_()
        return torch.addmm(fc2.bias[:, None], fc2.weight, hidden).T
