"""The LeNet of the certification literature."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.convolution import convolved
from engine.models.convolved_pooling import convolved_and_pooled
from engine.models.network import Network, Shape
from engine.models.pooling import pooled, pooled_sum


class LeNet(Network):
    """The 20-50-500 LeNet of MACER, Consistency and PACD: 431 080 parameters for 28×28 images of one channel.

    Pooling comes before ReLU: the same function, since both are monotone, at a quarter of the ReLU's cost. On a CPU
    layers work with channels or images last in memory, which is 2 to 4 times faster.
    """

    def __init__(self, shape: Shape, num_classes: int, *, widths: tuple[int, int, int] = (20, 50, 500)) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape
        pixels = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(channels, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.fc1 = nn.Linear(pixels * widths[1], widths[2])
        self.fc2 = nn.Linear(widths[2], num_classes)

    def aligned(self) -> "LeNet":
        """With widths in powers of two from 8 on; what is added is zero.

        In multiples of 8 (24, 56, 504) an H100's second convolution takes 2.4 times as long as with 32 and 64.
        """
        widths = [max(8, 1 << (len(layer.weight) - 1).bit_length()) for layer in (self.conv1, self.conv2, self.fc1)]
        with torch.device("meta"):
            wide = LeNet(self.shape, len(self.fc2.weight), widths=(widths[0], widths[1], widths[2]))
        wide = wide.to(self.fc2.weight.dtype).to_empty(device=self.fc2.weight.device).train(self.training)
        old, new = dict(self.named_parameters()), dict(wide.named_parameters())
        with torch.no_grad():
            for name, parameter in new.items():
                values, padded = old[name], parameter.zero_()
                if name == "fc1.weight":  # its columns are pixels of all channels
                    values, padded = (
                        w.unflatten(1, (-1, c)) for w, c in ((values, len(self.conv2.weight)), (padded, widths[1]))
                    )
                padded[tuple(slice(size) for size in values.shape)] = values
        return wide

    def forward(self, x: Tensor) -> Tensor:
        if type(self) is not LeNet:  # whose stem or rest may be others
            return super().forward(x)
        return self._after_pooling(convolved_and_pooled(self.conv1, x))

    def stem(self, x: Tensor) -> Tensor:
        return convolved(self.conv1, x)

    def rest(self, h: Tensor) -> Tensor:
        return self._after_pooling(pooled(h))

    def rest_of_sum(self, h: Tensor, shift: Tensor) -> Tensor:
        return self._after_pooling(pooled_sum(h, shift))

    def _after_pooling(self, h: Tensor) -> Tensor:
        h = convolved_and_pooled(self.conv2, h)
        h = h.permute(0, 2, 3, 1).flatten(1)  # [N, 800] in (H, W, C) order, as Keras has it
        return self.fc2(F.relu(self.fc1(h)))


class WinogradLeNet(Network):
    """A LeNet without gradients on a CPU, draws last in memory: the second convolution by transforms of tiles."""

    @torch.inference_mode()
    def __init__(self, exact: LeNet) -> None:
        super().__init__()
        from engine.models.first_layer import Direct
        from engine.models.winograd import Tiled

        self._exact, self._first = exact, Direct(exact.conv1.weight, exact.conv1.bias)
        self._second = Tiled(exact.conv2.weight, exact.conv2.bias)

    def stem(self, x: Tensor) -> Tensor:
        """The first layer's outputs as `prepared` has them."""
        from engine.models.winograd import images_last

        if x.shape[1] > 1:  # where torch's convolution is the quicker one, and outputs are turned round
            return self.prepared(self._exact.stem(x))
        return self._first.outputs(images_last(x)).permute(3, 2, 0, 1)

    def prepared(self, h: Tensor) -> Tensor:
        """[M, C, H, W] with the draws last in memory."""
        from engine.models.winograd import images_last

        return images_last(h).permute(3, 2, 0, 1)

    def rest(self, h: Tensor) -> Tensor:
        return self.rest_of_sum(h, torch.zeros_like(h[:1]))

    def rest_of_sum(self, h: Tensor, shift: Tensor) -> Tensor:
        from engine.models import tiles

        shared, at = h.permute(2, 3, 1, 0).contiguous(), shift[0].permute(1, 2, 0).contiguous()
        height, width, channels, draws = shared.shape
        pooled = h.new_empty(height // 2, width // 2, channels, draws)
        tiles.pool(shared.numpy(), at.numpy(), pooled.numpy())
        maxima, _ = self._second.maxima(pooled)
        fc1, fc2 = self._exact.fc1, self._exact.fc2
        hidden = torch.addmm(fc1.bias[:, None], fc1.weight, maxima.view(-1, draws)).relu_()
        return torch.addmm(fc2.bias[:, None], fc2.weight, hidden).T
