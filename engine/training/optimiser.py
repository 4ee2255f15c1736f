"""The optimisers of victims: torch's own functions, without torch.optim's classes around them.

Those import torch's compiler, which takes more than a second, and half a millisecond a step, a twentieth of a LeNet's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from engine.config import TrainingConfig

MOMENTUM = 0.9  # of SGD


class Optimiser:
    """Adam, or SGD with momentum, with weight decay as an L2 penalty has it."""

    def __init__(self, weights: Sequence[Tensor], config: TrainingConfig) -> None:
        self._weights, self._decay = list(weights), config.weight_decay
        self._first = [torch.zeros_like(weight) for weight in self._weights]
        self._second = [torch.zeros_like(weight) for weight in self._weights] if config.optimiser == "adam" else []
        self._steps = [torch.zeros((), device=weight.device) for weight in self._weights if self._second]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """Changes the weights in place; rate: the learning rate, a scalar, read anew where a GPU replays this."""
        common: dict[str, Any] = dict(
            lr=rate.float() if rate.is_cuda else float(rate),
            weight_decay=self._decay,
            maximize=False,
            fused=True,
        )
        weights, slopes = self._weights, [gradient.contiguous() for gradient in gradients]  # as the weights are
        if self._second:
            how = common | dict(beta1=0.9, beta2=0.999, eps=1e-8, amsgrad=False, capturable=rate.is_cuda)
            adam(weights, slopes, self._first, self._second, [], self._steps, **how)
        else:
            buffers: list[Tensor | None] = [*self._first]
            sgd(weights, slopes, buffers, **common, momentum=MOMENTUM, dampening=0.0, nesterov=False)

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes beside the weights, in place."""
        kinds = {"first": self._first, "second": self._second, "steps": self._steps}
        return {f"{kind} {k}": tensor for kind, each in kinds.items() for k, tensor in enumerate(each)}
