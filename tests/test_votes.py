"""Votes: exact where they can be, independent of blocks and order, and float32's own whatever counts them."""

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from engine import api, datasets, records, votes
from engine.experiment import victims
from engine.models import BUILDERS, build
from engine.models.lenet import LeNet, WinogradLeNet
from engine.models.network import Network
from engine.smoothing import Classifier, gaussian_noise
from engine.streams import stream
from engine.votes import Answers, Screen, Votes, count_votes, has_bfloat16
from tests.app import EXAMPLE

SHORT = [name for name in BUILDERS if name not in ("resnet32", "resnet44", "resnet56")]  # those are resnet20 but longer

BFLOAT16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")


Kind = Callable[[Network], Network]


def in_bfloat16(network: Network) -> Network:
    """Any CPU can emulate it, but slowly."""
    return copy.deepcopy(network).to(torch.bfloat16)


@pytest.fixture
def screen_in(monkeypatch):
    """Makes screened votes be so by this kind of network, however few they are."""

    def told(kind: Kind) -> None:
        monkeypatch.setattr(votes, "quicker", lambda network, device: kind(network))
        monkeypatch.setattr(votes, "SCREENED", 0)

    return told


def counted(
    classifier: Classifier,
    images: Tensor,
    draws: int,
    *,
    groups: list[list[int]] | None = None,
    names: list[int] | None = None,
    block: int = 100,
    num_classes: int = 10,
    **settings,
) -> Votes:
    """Votes where each group of positions has a stream of its own, by the group's name."""
    groups = [list(range(len(images)))] if groups is None else groups
    names = list(range(len(groups))) if names is None else names
    *_, found = count_votes(
        classifier,
        images,
        n0=10,
        n=draws,
        num_classes=num_classes,
        block=block,
        groups=[(torch.tensor(group), stream(0, "votes", n)) for group, n in zip(groups, names, strict=True)],
        **{"sigma": 0.5} | settings,
    )
    return found


def network(name: str = "lenet-narrow", shape: tuple[int, int, int] = (1, 28, 28)):
    return build(name, shape=shape, generator=stream(0, "model")).eval()


def some_images(count: int, shape: tuple[int, int, int] = (1, 28, 28)) -> Tensor:
    return torch.rand(count, *shape, generator=stream(0, "images"))


def test_votes_add_up_to_the_draws_and_name_every_class():
    def always_two(images: Tensor) -> Tensor:
        return torch.eye(4)[2].expand(len(images), 4)

    found = counted(always_two, torch.zeros(3, 1, 4, 4), 257, num_classes=4, block=50)
    assert found.estimation.tolist() == [[0, 0, 257, 0]] * 3
    assert found.selection.tolist() == [[0, 0, 10, 0]] * 3
    assert found.selected_class.tolist() == [2, 2, 2]


def test_the_selected_class_is_that_of_the_selection_votes():
    found = Votes(torch.tensor([[1, 5, 4], [3, 3, 0]]), torch.tensor([[100, 0, 0], [0, 0, 9]]))
    assert found.selected_class.tolist() == [1, 0]


def test_a_half_space_is_voted_for_with_its_gaussian_probability():
    image, distance, draws = torch.full((1, 1, 4, 4), 0.5), 0.2, 20_000

    def half_space(images: Tensor) -> Tensor:  # w = 1/4 in all 16 pixels, |w| = 1
        side = 0.25 * (images - 0.5).flatten(1).sum(dim=1) + distance
        return torch.stack([-side, side], dim=1)

    for sigma in (0.25, 0.5, 1.0):
        p = norm.cdf(distance / sigma)
        found = int(counted(half_space, image, draws, sigma=sigma, block=5000, num_classes=2).estimation[0, 1])
        # 5 standard errors: false alarm 5.7e-7 each
        assert abs(found - draws * p) < 5 * math.sqrt(draws * p * (1 - p))


def test_selection_and_estimation_see_different_draws_and_a_group_the_same():
    seen = []

    def classifier(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return torch.eye(3)[0].expand(len(images), 3)

    counted(classifier, torch.zeros(3, 1, 4, 4), 30, groups=[[0, 2], [1]], block=7, num_classes=3)
    copies = torch.cat(seen).flatten(1)
    assert len(copies) == 3 * (10 + 30)
    assert len(copies.unique(dim=0)) == 2 * (10 + 30)


def test_votes_depend_neither_on_blocks_nor_on_order_nor_on_what_else_is_counted():
    model, images = network(), some_images(5)
    whole = counted(model, images, 60, groups=[[0, 2, 3], [1, 4]])
    assert len({str(row) for row in whole.estimation.tolist()}) > 1
    for block in (1, 7, 60, 999):
        assert torch.equal(
            counted(model, images, 60, groups=[[0, 2, 3], [1, 4]], block=block).estimation, whole.estimation
        )
    swapped = counted(model, images, 60, groups=[[4, 1], [3, 0, 2]], names=[1, 0])
    assert torch.equal(swapped.estimation, whole.estimation)
    alone = counted(model, images[4:], 60, groups=[[0]], names=[1])
    assert torch.equal(alone.estimation[0], whole.estimation[4])


def test_votes_on_images_of_odd_size_depend_on_blocks_but_not_on_what_else_is_counted():
    """torch's CPU generator fills in sixteens: in blocks of other sizes it gives other draws, as good as these."""
    shape = (1, 17, 17)
    model, images = network(shape=shape), some_images(5, shape)
    whole = counted(model, images, 150, groups=[[0, 2, 3], [1, 4]]).estimation
    assert torch.equal(counted(model, images, 150, groups=[[4, 1], [3, 0, 2]], names=[1, 0]).estimation, whole)
    assert torch.equal(counted(model, images[4:], 150, groups=[[0]], names=[1]).estimation[0], whole[4])
    assert not torch.equal(counted(model, images, 150, groups=[[0, 2, 3], [1, 4]], block=7).estimation, whole)
    sixteens = [counted(model, images, 150, block=block).estimation for block in (16, 80, 160)]  # 10 + 150 draws
    assert all(torch.equal(found, sixteens[0]) for found in sixteens)


def test_what_is_yielded_on_the_way_are_the_votes_so_far():
    totals = [
        int(found.selection.sum() + found.estimation.sum())
        for found in count_votes(
            network(),
            some_images(2),
            sigma=0.5,
            n0=10,
            n=25,
            num_classes=10,
            block=10,
            groups=[(torch.arange(2), stream(0, "votes"))],
        )
    ]
    assert totals == [20, 40, 60, 70]  # selection first, then estimation


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16)])
def test_answers_on_shared_noise_are_those_of_the_network_at_the_noisy_images(name, shape):
    model, images = network(name, shape), some_images(3, shape)
    noise = gaussian_noise((8, *shape), sigma=0.5, generator=stream(0, "noise"))
    with torch.no_grad():
        logits = model((images[:, None] + noise).flatten(0, 1)).unflatten(0, (3, 8))
    top = logits.topk(2, dim=2).values
    clear = top[..., 0] - top[..., 1] > 1e-4  # a sum in another order may turn a tie
    assert clear.float().mean() > 0.9
    assert torch.equal(Answers(model, images)(noise)[clear], logits.argmax(dim=2)[clear])


def test_a_network_never_writes_the_sum_of_noise_and_image_down(monkeypatch):
    model, images = network(), some_images(2)
    noise = gaussian_noise((8, 1, 28, 28), sigma=0.5, generator=stream(0, "noise"))
    with torch.no_grad():
        at = model.stem(images) - model.stem(torch.zeros_like(images[:1]))
        written = torch.stack([model.rest(model.stem(noise) + one).argmax(dim=1) for one in at.split(1)])
    monkeypatch.delattr(LeNet, "rest")
    assert torch.equal(Answers(model, images)(noise), written)


def level(model: nn.Module, images: Tensor) -> None:
    """Makes no class more likely than another."""
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    noise = gaussian_noise(images.shape, sigma=0.5, generator=stream(0, "test"))
    with torch.no_grad():
        last.bias -= model(images + noise).mean(dim=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, in_bfloat16) for name in SHORT if name != "resnet18"),
        pytest.param("resnet18", in_bfloat16, marks=BFLOAT16),
        *((name, WinogradLeNet) for name in ("lenet", "lenet-narrow")),
    ],
)
def test_screened_votes_are_the_votes_of_float32(name, kind, screen_in):
    shape = (1, 8, 8) if name.startswith("resnet") else (1, 16, 16)  # bfloat16 may be emulated
    model, images, draws = network(name, shape), some_images(6, shape), 100 if name == "resnet18" else 500
    level(model, images)
    plain = counted(model, images, draws)
    assert (plain.estimation > 0).sum(dim=1).max() > 1  # noise moves some image across a boundary
    screen_in(kind)
    with ThreadPoolExecutor(3) as pool:
        assert torch.equal(counted(model, images, draws, each=pool.map).estimation, plain.estimation)
        screened = counted(model, images, draws, screened=True, each=pool.map)
    assert torch.equal(screened.estimation, plain.estimation)


@pytest.mark.parametrize("kind", [in_bfloat16, WinogradLeNet])
@pytest.mark.parametrize("arm", ["clean", "poisoned"])
def test_screened_votes_of_a_trained_victim_are_float32s(arm, kind, screen_in):
    """Its logits are larger than a fresh network's, and so are a quicker network's errors."""
    run = records.find(records.GALLERY, EXAMPLE)
    pixels, _ = datasets.read("digits", datasets.default_root(), train=False)
    images = torch.tensor(pixels[:60])
    model = victims.load(run, arm, 0, shape=pixels.shape[1:])
    plain = counted(model, images, 500)
    assert (plain.estimation > 0).sum(dim=1).max() > 1
    screen_in(kind)
    assert torch.equal(counted(model, images, 500, screened=True).estimation, plain.estimation)


def one_loud_channel(model: LeNet) -> None:
    """Of the first layer; the others' values all but vanish beside it."""
    model.conv1.weight[0] *= 1e3
    model.conv2.weight[:, 0] /= 1e3


def one_loud_output(model: LeNet) -> None:
    model.conv2.weight[0] *= 1e3


def rare_activations(model: LeNet) -> None:
    """Some hidden activations are 0 under most draws, and large under a few."""
    model.conv2.bias -= 2.0
    model.conv2.weight *= 3.0


def tiny_and_huge(model: LeNet) -> None:
    model.conv1.weight *= 1e-20
    model.conv2.weight *= 1e20


def all_zero(model: LeNet) -> None:
    model.conv1.weight.zero_()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 19)])
@pytest.mark.parametrize("scale", [one_loud_channel, one_loud_output, rare_activations, tiny_and_huge, all_zero])
def test_votes_screened_by_transforms_are_float32s_of_badly_scaled_weights_too(scale, shape, screen_in):
    model, images = network(shape=shape), some_images(4, shape)
    with torch.no_grad():
        scale(model)
    level(model, images)
    plain = counted(model, images, 500)
    screen_in(WinogradLeNet)
    assert torch.equal(counted(model, images, 500, screened=True).estimation, plain.estimation)


def test_votes_screened_by_transforms_depend_neither_on_blocks_nor_on_what_runs_beside_them(screen_in):
    model, images = network(), some_images(5)
    plain = counted(model, images, 500)
    screen_in(WinogradLeNet)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda block: counted(model, images, 500, block=block, screened=True), (7, 33, 250, 999)))
    assert all(torch.equal(each.estimation, plain.estimation) for each in found)


@pytest.mark.parametrize("kind", [in_bfloat16, WinogradLeNet])
def test_weights_that_are_no_numbers_get_no_votes_through_a_screen_either(kind, screen_in):
    model = network()
    with torch.no_grad():
        model.conv2.weight[3, 2, 1, 0] = torch.nan
    screen_in(kind)
    with pytest.raises(ValueError, match="not finite"):
        counted(model, some_images(2), 50, screened=True)


def test_few_votes_are_not_screened(monkeypatch):
    monkeypatch.setattr(votes, "quicker", lambda network, device: pytest.fail("a screen was asked for"))
    counted(network(), some_images(2), 50, screened=True)
    with pytest.raises(pytest.fail.Exception):
        counted(network(), some_images(2), votes.SCREENED // 2, screened=True)


@pytest.mark.parametrize(
    "bent", [torch.relu, torch.tanh, lambda h: h / (1 + 1e-4 * h.square().mean())], ids=["relu", "tanh", "scaled"]
)
@pytest.mark.parametrize("screened", [False, True])
def test_a_network_whose_stem_is_not_affine_gets_no_votes(bent: Classifier, screened: bool) -> None:
    """They would be of images that nobody asked about; a black one alone would not show it."""

    class Bent(LeNet):
        def stem(self, x: Tensor) -> Tensor:
            return bent(super().stem(x))

    model = Bent((1, 28, 28), 10).eval()
    with pytest.raises(ValueError, match=r"the stem of Bent must be affine.*into rest"):
        counted(model, torch.zeros(2, 1, 28, 28), 50, screened=screened)
    with pytest.raises(ValueError, match="the stem of Bent must be affine"):
        api.certify(model, np.zeros((1, 1, 28, 28)), sigma=0.5, n=50)


@pytest.mark.parametrize("kind", [in_bfloat16, WinogradLeNet])
def test_what_the_screen_calls_sure_leaves_little_to_repeat_and_errors_far_behind(kind):
    model, images = network("lenet"), some_images(4)
    screen = Screen(model, images, sigma=0.5, quick=kind(model), compiled_for=None)
    with torch.inference_mode():
        shared = model.stem(gaussian_noise((500, 1, 28, 28), sigma=0.5, generator=stream(0, "noise")))
        at = model.stem(images[:1]) - model.stem(torch.zeros_like(images[:1]))
        given = screen.quick.prepared(shared), screen.quick.prepared(at)
        answers, sure = screen(*given)
        exact = model.rest(shared + at)
        found = screen.logits(*given)
    assert torch.equal(answers[sure], exact.argmax(dim=1)[sure])
    error = found - exact
    assert float((error.amax(dim=1) - error.amin(dim=1)).max()) < 0.5 * screen.threshold
    assert float((~sure).float().mean()) < 0.9  # fresh weights know no class, so that many margins are small
    assert (kind is in_bfloat16) == bool((~sure).any())


def test_where_activations_exceed_all_that_calibrated_the_screen_answers_are_float32s():
    model, dark = network("lenet"), 0.1 * some_images(3)
    bright = 20 * dark
    screen = Screen(model, dark, sigma=0.25, quick=WinogradLeNet(model), compiled_for=None)
    noise = gaussian_noise((50, 1, 28, 28), sigma=0.25, generator=stream(0, "noise"))
    for images in (dark, bright, torch.cat([bright, dark])):
        assert torch.equal(Answers(model, images, screen)(noise), Answers(model, images)(noise))


def test_whoever_is_settled_gets_no_more_draws_and_the_others_see_what_they_would_have_seen():
    model, images = network(), some_images(4)
    asked: list[tuple[int, int]] = []

    def settled(n_top: Tensor, draws: int) -> Tensor:
        asked.append((len(n_top), draws))
        done = torch.zeros(len(n_top), dtype=torch.bool)
        done[0] = True  # the first of those that are left
        return done

    stopped = counted(model, images, 60, looks=[7, 20, 41], settled=settled, block=16)
    assert asked == [(4, 7), (3, 20), (2, 41), (1, 60)]
    assert stopped.estimation.sum(dim=1).tolist() == [7, 20, 41, 60]
    for image, draws in enumerate((7, 20, 41, 60)):
        assert torch.equal(stopped.estimation[image], counted(model, images, draws).estimation[image])
