"""Random crops and flips."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.augmentation import PADDING, augment, crop_and_flip
from engine.streams import stream

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 16, 24)]
offsets = st.tuples(st.integers(0, 2 * PADDING), st.integers(0, 2 * PADDING))


def images(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(count, *shape, generator=stream(0, "test images"))


def cut(image: Tensor, row: int, column: int, flip: bool) -> Tensor:
    """One image [C, H, W], by slicing."""
    _, height, width = image.shape
    part = F.pad(image, (PADDING,) * 4)[:, row : row + height, column : column + width]
    return part.flip(2) if flip else part


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(st.sampled_from(SHAPES), st.lists(st.tuples(offsets, st.booleans()), min_size=1, max_size=5))
def test_every_image_is_cut_at_its_own_offset_and_flipped_if_it_is_to_be(shape, drawn):
    x = images(len(drawn), shape)
    found = crop_and_flip(x, torch.tensor([at for at, _ in drawn]), torch.tensor([flip for _, flip in drawn]))
    expected = torch.stack([cut(image, *at, flip) for image, (at, flip) in zip(x, drawn, strict=True)])
    assert torch.equal(found, expected)


def test_the_middle_unflipped_is_the_image_itself():
    x = images(3, (3, 16, 24))
    assert torch.equal(crop_and_flip(x, torch.full((3, 2), PADDING), torch.zeros(3, dtype=torch.bool)), x)
    assert augment(x, "none", generator=stream(0, "augment")) is x


def placements(x: Tensor, found: Tensor) -> list[tuple[int, int, bool]]:
    """The offset and flip of each image, found by trying all."""
    rows = range(2 * PADDING + 1)
    every = [(row, column, flip) for row in rows for column in rows for flip in (False, True)]
    return [
        next(one for one in every if torch.equal(cut(image, *one), seen)) for image, seen in zip(x, found, strict=True)
    ]


def test_a_batch_shares_its_offset_or_each_image_has_its_own_and_flips_are_always_per_image():
    x = images(40, (1, 10, 12))
    shared, own = (
        placements(x, augment(x, kind, generator=stream(0, "augment"))) for kind in ("crop-flip-batch", "crop-flip")
    )
    assert len({at[:2] for at in shared}) == 1
    assert len({at[:2] for at in own}) > 20  # of 81; 40 draws give fewer with a chance below 1e-6
    for flips in ([at[2] for at in shared], [at[2] for at in own]):
        assert 5 < sum(flips) < 35  # Binomial(40, 1/2) is outside with a chance below 1e-6


def test_all_offsets_are_equally_likely():
    x = torch.arange(1.0, 145.0).reshape(1, 1, 12, 12).expand(4000, 1, 12, 12)
    found = augment(x, "crop-flip", generator=stream(0, "offsets"))
    middle = found[:, 0, 6, 5:7].amin(dim=1) - 1  # rows are told by the pixel, whichever way round it lies
    counts = torch.bincount((middle // 12).long())[2:11].double()
    assert counts.sum() == 4000
    chi_squared = float(((counts - 4000 / 9) ** 2 / (4000 / 9)).sum())
    assert chi_squared < 45  # 8 degrees of freedom: false alarm 4e-7


def test_the_same_generator_gives_the_same_crops():
    x = images(5, (3, 32, 32))
    first, again, other = (augment(x, "crop-flip", generator=stream(0, "augment", i)) for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["crop-flip", "crop-flip-batch"])
def test_gradients_reach_the_pixels_through_crop_and_flip(kind):
    x = images(3, (2, 6, 5)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, kind, generator=stream(0, "augment")), (x,))


def test_a_pixel_that_is_cut_off_gets_no_gradient_and_every_other_its_own():
    x = images(1, (1, 8, 8)).requires_grad_()
    crop_and_flip(x, torch.tensor([[0, 2 * PADDING]]), torch.tensor([True])).sum().backward()
    kept = torch.zeros(1, 1, 8, 8)
    kept[:, :, :4, 4:] = 1  # four rows down, four columns to the left
    assert torch.equal(x.grad, kept)
