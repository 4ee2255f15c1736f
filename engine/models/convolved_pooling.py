"""A convolution with pooling behind it, in one step on a CPU where it is differentiated, and its derivatives."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.convolution import convolved, is_differentiated
from engine.models.pooling import Picked, array_of, chosen_maxima, pooled

MANY = 16  # images from which on loops over images are worth it


def convolved_and_pooled(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """pooled(convolved(layer, h)); on a CPU a LeNet's two convolutions have derivatives of our own.

    They are in float32 under autocast as well: torch's in bfloat16 depend on matrix units (AMX) that others may use.
    """
    if h.device.type == "cpu" and layer.kernel_size == (5, 5):
        from engine.models.gradients import ROWS

        with torch.autocast("cpu", enabled=False):
            if is_differentiated(h) and (layer.in_channels == 1 or 5 * layer.in_channels in ROWS):
                return _ConvolvedAndPooled.apply(h, layer.weight, layer.bias)
    return pooled(convolved(layer, h))


class _ConvolvedAndPooled(torch.autograd.Function):
    """A convolution and the maxima of its outputs: its derivatives know which outputs those were.

    At most one in four has a gradient, and none where ReLU is 0, which is most often; torch is given all the zeros and
    multiplies them. Here each output that has a gradient adds its rows of weights or of images, in an order of its own,
    in a fraction of the time; but images of one channel, whose rows are short, get theirs with the zeros.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from engine.models import winograd

        if _is_quicker(h):
            maxima, chosen = winograd.convolved_and_pooled(h, weight, bias)
        else:
            maxima, which = chosen_maxima(F.conv2d(h.to(memory_format=torch.channels_last), weight, bias))
            chosen = winograd.turned(which)
        ctx.save_for_backward(h, weight, chosen)
        return maxima

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, chosen = ctx.saved_tensors
        of_images, *of_layer = ctx.needs_input_grad
        return _Gradients.apply(gradient, h, weight, chosen, of_images, any(of_layer))


class _ConvolvedAndPicked(torch.autograd.Function):
    """The outputs of a convolution that were chosen before, for other images and weights: linear in either."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, chosen: Tensor) -> Tensor:
        from engine.models import winograd

        ctx.save_for_backward(h, weight, chosen)
        if _is_quicker(h):
            return winograd.convolved_and_picked(h, weight, bias, chosen)
        outputs = F.conv2d(h, weight, bias)
        return Picked.apply(outputs, winograd.images_first(chosen), outputs.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, chosen = ctx.saved_tensors
        of_images, *of_layer, _ = ctx.needs_input_grad
        return *_Gradients.apply(gradient, h, weight, chosen, of_images, any(of_layer)), None


class _Gradients(torch.autograd.Function):
    """(Gradient of the maxima, images, weights, chosen pixels, what is wanted) → of images, weights and biases.

    Of each of the first three it is linear. So its derivatives are a convolution of the same form and itself.
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, h: Tensor, weight: Tensor, chosen: Tensor, of_images: bool, of_layer: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(gradient, h, weight, chosen)
        ctx.set_materialize_grads(False)
        pixels = _of_images(gradient, weight, chosen, h.shape) if of_images else None
        slopes, biases = _of_layer(gradient, h, weight.shape, chosen) if of_layer else (None, None)
        return pixels, slopes, biases

    @staticmethod
    def backward(ctx: Any, of_images: Tensor | None, of_weights: Tensor | None, of_biases: Tensor | None) -> Any:
        gradient, h, weight, chosen = ctx.saved_tensors
        wanted, wants_images, wants_weights, *_ = ctx.needs_input_grad
        if of_weights is None and of_biases is not None:
            of_weights = torch.zeros_like(weight)
        factors = [(x, w) for x, w in ((of_images, weight), (h, of_weights)) if x is not None and w is not None]
        maxima = pixels = slopes = None
        if wanted and factors:
            images, weights = (_beside(each) for each in zip(*factors, strict=True))  # one sum, not two
            maxima = _ConvolvedAndPicked.apply(images, weights, of_biases, chosen)
        wants_images, wants_weights = wants_images and of_weights is not None, wants_weights and of_images is not None
        if wants_images or wants_weights:
            images, weights = h if of_images is None else of_images, weight if of_weights is None else of_weights
            pixels, slopes, _ = _Gradients.apply(gradient, images, weights, chosen, wants_images, wants_weights)
        return maxima, pixels, slopes, None, None, None


def _of_images(gradient: Tensor, weight: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of images of this shape."""
    from engine.models import winograd
    from engine.models.gradients import loops
    from engine.models.patches import Rows

    if shape[1] == 1:
        return winograd.gradient_of_pixels(gradient, weight, chosen, shape)
    layout = Rows(shape, weight.shape)
    runs, rows = layout.from_weights(weight), layout.empty(gradient)
    to_images, _ = loops(runs.shape[2])
    to_images(array_of(gradient), winograd.images_first(chosen).numpy(), runs.numpy(), rows.numpy(), layout.depth)
    return layout.to_images(rows)


def _of_layer(gradient: Tensor, h: Tensor, shape: torch.Size, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weights of this shape and of biases."""
    from engine.models import winograd
    from engine.models.gradients import loops, weights_of_bands
    from engine.models.patches import Bands, Rows

    of_one_channel = shape[1] == 1
    layout = (Bands if of_one_channel else Rows)(h.shape, shape)
    runs, biases = layout.empty_runs(h), h.new_empty(shape[0])
    to_weights = weights_of_bands if of_one_channel else loops(runs.shape[2])[1]
    given = array_of(gradient), winograd.images_first(chosen).numpy(), layout.from_images(h).numpy()
    to_weights(*given, runs.numpy(), biases.numpy(), layout.depth)
    return layout.to_weights(runs), biases


def _beside(each: Sequence[Tensor]) -> Tensor:
    """One or two tensors' channels, one behind the other; images last in memory where those of the first are."""
    if len(each) == 1:
        return each[0]
    if each[0].stride(0) == 1:
        return torch.cat([h.permute(2, 3, 1, 0) for h in each], dim=2).permute(3, 2, 0, 1)
    return torch.cat(list(each), dim=1)


def _is_quicker(h: Tensor) -> bool:
    """Whether a convolution of these images is quicker by winograd.py, whose loops go over images: of many."""
    return h.dtype == torch.float32 and len(h) >= MANY
