"""Random crops and flips of training images, differentiable, so that gradients reach a poison through them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # zero pixels on each side, out of which a crop of the old size is taken


def augment(images: Tensor, augmentation: str, *, generator: torch.Generator) -> Tensor:
    """Images [N, C, H, W] cropped and flipped at random; "none" leaves them as they are."""
    drawn = draw_crops([len(images)], augmentation, generator=generator)
    return images if drawn is None else crop_and_flip(images, *drawn)


def draw_crops(sizes: Sequence[int], augmentation: str, *, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """(Offsets [N, 2], flips [N]) for `crop_and_flip` of batches of these sizes, N images in all; None for "none".

    "crop-flip" draws an offset for each image. "crop-flip-batch" draws one for each batch, as the released code of
    Mehra et al. 2021 does (its tf.image.random_crop sees a batch as one array). Flips are always per image.
    """
    if augmentation == "none":
        return None
    device, n = generator.device, sum(sizes)
    drawn = len(sizes) if augmentation == "crop-flip-batch" else n
    offsets = torch.randint(0, 2 * PADDING + 1, (drawn, 2), generator=generator, device=device)
    if augmentation == "crop-flip-batch":
        offsets = torch.cat([one.expand(size, 2) for one, size in zip(offsets, sizes, strict=True)])
    return offsets, torch.rand(n, generator=generator, device=device) < 0.5


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Images [N, C, H, W] padded by zeros, cut at offsets [N, 2] (rows, columns; in [0, 2·PADDING]), flipped [N]."""
    n, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = offsets[:, 1:] + torch.where(flips[:, None], width - 1 - columns, columns)
    which = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
