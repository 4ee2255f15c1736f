"""Each training procedure: exact answers, derivatives in float64, and training that is reproducible and learns."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy

from engine.config import ProcedureConfig, TrainingConfig
from engine.data import LabelledImages
from engine.models import flat_weights, with_weights
from engine.smoothing import log_mean_softmax, soft_margin
from engine.streams import stream
from engine.training import PROCEDURES, Procedure, make
from engine.training.adversary import ascend, l2, normalised
from engine.training.base import fit

SIGMA, K = 0.3, 3
ADVERSARIAL = ["smoothadv", "smoothadv-pacd", "smoothmix"]


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, f"test procedures {name}"), dtype=torch.float64)


def procedure(name: str, **settings) -> Procedure:
    return make(ProcedureConfig.model_validate({"name": name} | settings), sigma=SIGMA)


def prepared(of: Procedure, classifier, images: Tensor, labels: Tensor, noise: Tensor, strength: float = 1.0):
    return of.prepare(classifier, images, labels, noise, strength=strength, generator=stream(0, "prepare"))


def network() -> nn.Module:
    """16-5-3 with softplus, in float64."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5, dtype=torch.float64), nn.Softplus(), nn.Linear(5, K, dtype=torch.float64)
    )


MODEL = network()
WEIGHTS = 0.5 * normal(103, name="weights")
IMAGES = (0.5 + 0.3 * normal(6, 1, 4, 4, name="images")).clamp(0.05, 0.95)
LABELS = with_weights(MODEL, WEIGHTS)(IMAGES).argmax(dim=1)
LABELS[-1] = (LABELS[-1] + 1) % K  # one wrong image among them


def given(name: str, draws: int = 3) -> tuple[Procedure, Tensor, tuple[Tensor, ...]]:
    """The procedure, noise for IMAGES, and its constants at WEIGHTS."""
    of = procedure(name, **({} if name == "standard" else {"draws": draws}))
    noise = SIGMA * normal(len(IMAGES), of.settings.draws, 1, 4, 4, name="noise")
    return of, noise, prepared(of, with_weights(MODEL, WEIGHTS), IMAGES, LABELS, noise)


# --- all of them


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_losses_are_differentiable_twice_in_weights_and_images(name):
    of, noise, constants = given(name)

    def loss(weights: Tensor, images: Tensor) -> Tensor:
        return of.loss(with_weights(MODEL, weights), images, LABELS, noise, constants)

    arguments = (WEIGHTS.clone().requires_grad_(), IMAGES.clone().requires_grad_())
    value = loss(*arguments)
    assert value.shape == ()
    assert gradcheck(loss, arguments, fast_mode=True)
    assert gradgradcheck(loss, arguments, fast_mode=True)


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_a_loss_depends_on_nothing_but_its_arguments(name):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        of, noise, constants = given(name)
        results.append((of.loss(with_weights(MODEL, WEIGHTS), IMAGES, LABELS, noise, constants), *constants))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_a_module_and_a_function_of_weights_give_the_same_and_prepare_leaves_no_gradients(name):
    model = network()
    nn.utils.vector_to_parameters(WEIGHTS.clone(), model.parameters())
    of, noise, constants = given(name)
    found = prepared(of, model, IMAGES, LABELS, noise)
    assert all(torch.equal(one, other) for one, other in zip(found, constants, strict=True))
    assert not any(constant.requires_grad for constant in constants)
    assert all(parameter.grad is None for parameter in model.parameters())
    one, other = (of.loss(f, IMAGES, LABELS, noise, found) for f in (model, with_weights(MODEL, WEIGHTS)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", list(PROCEDURES))
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_no_gradient_is_lost_to_logits_of_any_size(name, scale, strength):
    """In float32, where softmax reaches 0 and 1 exactly; first and second derivatives in weights and images."""
    of, noise, _ = given(name)
    images, noise = IMAGES.float(), noise.float()
    model = network().float()

    def f(weights: Tensor):
        return lambda batch: scale * with_weights(model, weights)(batch)

    weights, x = WEIGHTS.float().requires_grad_(), images.clone().requires_grad_()
    constants = prepared(of, f(weights.detach()), images, LABELS, noise, strength)
    loss = of.loss(f(weights), x, LABELS, noise, constants, strength=strength)
    slopes = torch.autograd.grad(loss, (weights, x), create_graph=True)
    second = torch.autograd.grad(slopes[0].square().sum(), (weights, x), allow_unused=True)
    assert loss.isfinite()
    assert all(part.isfinite().all() for part in (*slopes, *second) if part is not None)


def toy(count: int = 60) -> LabelledImages:
    """Three classes of 4×4 images, by which column is bright."""
    labels = torch.arange(count) % K
    images = 0.3 * torch.rand(count, 1, 4, 4, generator=stream(0, "toy"))
    images[torch.arange(count), 0, :, labels] += 0.7
    return LabelledImages(images, labels, torch.arange(count))


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_training_learns_and_gives_the_same_bytes_twice(name):
    """The loss is of the same images and draws before and after, since a warm-up changes its meaning on the way.

    MACER's own may well rise: an image that becomes right then brings its whole hinge. Its cross-entropy falls.
    """
    data, of = toy(), procedure(name)
    measure = procedure("gaussian", draws=16) if name.startswith("macer") else of
    noise = of.draw_noise(data.images, generator=stream(0, "noise"))
    config = TrainingConfig(epochs=12, batch_size=10, learning_rate=0.02, schedule="linear")

    def loss(model: nn.Module) -> float:
        constants = prepared(measure, model, data.images, data.labels, noise)
        return float(measure.loss(model, data.images, data.labels, noise, constants).detach())

    results = []
    for _ in range(2):
        model = network().float()
        nn.utils.vector_to_parameters(WEIGHTS.float(), model.parameters())
        before = loss(model)
        records = list(fit(model, data, procedure=of, config=config, epochs=12, generator=stream(0, "fit")))
        after = loss(model)
        assert after < 0.9 * before
        assert records[-1].accuracy > 0.8
        results.append((flat_weights(model).numpy().tobytes(), records))
    assert results[0] == results[1]


# --- the adversary, where all is linear: logits (−w.x, w.x) / 2, whose steepest ascent for label 1 is −w / |w|

W = torch.tensor([3.0, 0, 0, -4.0] + [0.0] * 12, dtype=torch.float64).view(1, 4, 4)


def linear(images: Tensor) -> Tensor:
    side = 0.5 * (images * W).flatten(1).sum(dim=1) - 0.1
    return torch.stack([-side, side], dim=1)


GREY = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
ONE, ZERO = torch.tensor([1, 0]), torch.zeros(2, 4, 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("steps", [2, 5, 10])
@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_smoothadv_goes_straight_to_its_radius_where_all_is_linear(draws, steps, strength):
    """Steps of 2 ε/T along one direction reach the radius after half of them, and then stay there."""
    of = procedure("smoothadv", draws=draws, adversary_steps=steps, adversary_size=0.3)
    noise = SIGMA * normal(2, draws, 1, 4, 4, name="noise")
    (change,) = prepared(of, linear, GREY, ONE, noise, strength)
    expected = 0.3 * strength * torch.stack([-W, W]) / 5
    assert torch.allclose(change, expected, rtol=1e-9)


def test_smoothadv_stops_at_the_pixel_range_and_goes_on_along_it():
    """From a black pixel of weight 3 it cannot go down; all of the change falls to the pixel of weight −4."""
    images = GREY[:1].clone()
    images[0, 0, 0, 0] = 0.0
    of = procedure("smoothadv", draws=4, adversary_steps=10, adversary_size=0.3)
    (change,) = prepared(of, linear, images, ONE[:1], ZERO[:1])
    expected = torch.zeros_like(images)
    expected[0, 0, 0, 3] = 0.3
    assert torch.allclose(change, expected, rtol=1e-9)
    # with room for 0.5 alone, a radius beyond it is not reached
    (change,) = prepared(procedure("smoothadv", adversary_size=2.0), linear, images, ONE[:1], ZERO[:1])
    assert torch.allclose(change, expected / 0.3 * 0.5, rtol=1e-9)


def test_one_step_of_smoothadv_is_as_long_as_its_share():
    """T = 4: one step is half of the radius; the sum is taken from the changes of 1, 2, 3 steps."""
    lengths = []
    for steps in range(1, 5):
        step = lambda gradient: 0.2 * normalised(gradient)  # noqa: E731
        change = ascend(linear, GREY, ONE, ZERO, step=step, steps=steps, radius=0.5)
        lengths.append(float(l2(change)[0]))
    assert lengths == pytest.approx([0.2, 0.4, 0.5, 0.5])


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversaries_raise_the_smoothed_loss_within_range_and_radius(name):
    of, noise, constants = given(name)
    f, change = with_weights(MODEL, WEIGHTS), constants[0]

    def smoothed(images: Tensor) -> Tensor:
        logits = f((images[:, None] + noise).flatten(0, 1)).view(len(images), -1, K)
        return -logits.softmax(dim=2).mean(dim=1).log()[torch.arange(len(images)), LABELS]

    assert (smoothed(IMAGES + change) > smoothed(IMAGES)).all()
    assert float((IMAGES + change).min()) >= -1e-12
    assert float((IMAGES + change).max()) <= 1 + 1e-12
    if name != "smoothmix":
        assert float(l2(change).max()) <= of.settings.adversary_size * (1 + 1e-12)


@pytest.mark.parametrize("name", ["smoothadv", "smoothadv-pacd"])
def test_without_a_change_adversarial_training_is_gaussian_augmentation(name):
    of, noise, _ = given(name)
    f = with_weights(MODEL, WEIGHTS)
    (change,) = prepared(of, f, IMAGES, LABELS, noise, strength=0.0)
    assert (change == 0).all()
    expected = procedure("gaussian").loss(f, IMAGES, LABELS, noise)
    assert torch.equal(of.loss(f, IMAGES, LABELS, noise, (change,)), expected)


def test_without_a_gradient_the_adversary_stays():
    def certain(images: Tensor) -> Tensor:
        return torch.tensor([1e6, 0.0, 0.0]).expand(len(images), 3) + 0 * images.flatten(1)[:, :3]

    images = torch.rand(4, 1, 4, 4, generator=stream(0, "images"))
    labels = torch.zeros(4, dtype=torch.int64)
    for name in ADVERSARIAL:
        of = procedure(name)
        noise = of.draw_noise(images, generator=stream(0, "noise"))
        change = prepared(of, certain, images, labels, noise)[0]
        assert (change == 0).all()


def test_the_authors_adversary_is_adam_cut_at_the_range_and_scaled_to_the_radius():
    """Two steps written out, TensorFlow's form of Adam, with the gradient of the sum of cross-entropies."""
    of = procedure("smoothadv-pacd", draws=1, adversary_steps=2, adversary_size=0.8)
    noise = SIGMA * normal(len(IMAGES), 1, 1, 4, 4, name="noise")
    f = with_weights(MODEL, WEIGHTS)
    change, m, v = torch.zeros_like(IMAGES), 0.0, 0.0
    for t in (1, 2):
        at = (IMAGES + change).requires_grad_()
        cross_entropy(f(at + noise[:, 0]), LABELS, reduction="sum").backward()
        m, v = 0.9 * m + 0.1 * at.grad, 0.999 * v + 0.001 * at.grad**2
        change = change + 0.8 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v**0.5 + 1e-8)
        change = (IMAGES + change).clamp(0, 1) - IMAGES
        for i, part in enumerate(change):
            size = math.sqrt(sum(pixel**2 for pixel in part.flatten().tolist()))
            change[i] = part * min(1, 0.8 / size)
    found = prepared(of, f, IMAGES, LABELS, noise)[0]
    assert torch.allclose(found, change, rtol=1e-9, atol=1e-12)
    assert type(of).fixed_noise
    assert not any(PROCEDURES[name].fixed_noise for name in PROCEDURES if name != "smoothadv-pacd")


# --- MACER


def logits_of(p: list[float]) -> Tensor:
    """Logits whose softmax at inverse temperature 16 is p."""
    return torch.tensor(p, dtype=torch.float64).log() / 16


def lookup(*rows: list[float]):
    """A classifier of images that hold a row's number in their pixel, and the images."""
    table = torch.stack([logits_of(row) for row in rows])
    images = torch.arange(float(len(rows)), dtype=torch.float64).view(-1, 1, 1, 1)
    return lambda batch: table[batch.flatten().round().long()], images


@pytest.mark.parametrize("name", ["macer", "macer-pacd"])
def test_macer_is_the_formula_with_the_quantiles_of_scipy(name):
    rows = [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]]
    labels = torch.tensor([0, 1, 1, 2])  # the third is wrong
    f, images = lookup(*rows)
    squeeze = 1e-3 if name == "macer-pacd" else 0.0

    def q(t: float) -> float:
        return norm.ppf((1 - 2 * squeeze) * t + squeeze)

    entropy = hinge = 0.0
    for row, label in zip(rows, labels.tolist(), strict=True):
        powers = [p ** (1 / 16) for p in row]
        entropy -= math.log(powers[label] / sum(powers) + 1e-10)
        second, first = sorted(row)[1:]
        hinge += (q(second) - q(first) + 8) if row.index(first) == label else 0
    of = procedure(name, draws=5, weight=3.0)
    found = of.loss(f, images, labels, torch.zeros(4, 5, 1, 1, 1, dtype=torch.float64))
    assert float(found) == pytest.approx((entropy + 3.0 * SIGMA / 2 * hinge) / 4, rel=1e-12)


def test_macers_term_is_deferred_until_the_warm_up_is_over():
    of, noise, _ = given("macer")
    f = with_weights(MODEL, WEIGHTS)
    early, late = (float(of.loss(f, IMAGES, LABELS, noise, strength=s)) for s in (0.99, 1.0))
    logits = f((IMAGES[:, None] + noise).flatten(0, 1)).view(len(IMAGES), -1, K)
    entropy = -(logits.softmax(dim=2).mean(dim=1)[torch.arange(len(IMAGES)), LABELS] + 1e-10).log().mean()
    assert early == pytest.approx(float(entropy), rel=1e-12)
    assert late > early


def test_macer_drops_what_is_certain_and_keeps_the_rest_with_its_gradient():
    """P_top of 1 − 1e-30 rounds to 1, so Φ⁻¹ is infinite there; the other image's gradient must not become nan."""
    logits = torch.stack([logits_of([1 - 2e-30, 1e-30, 1e-30]), logits_of([0.6, 0.3, 0.1])])[:, None].requires_grad_()
    margin, top = soft_margin(logits, squeeze=0.0, most=8.0)
    assert margin.tolist() == pytest.approx([math.inf, norm.ppf(0.6) - norm.ppf(0.3)], rel=1e-9)
    assert top.tolist() == [0, 0]
    (slope,) = torch.autograd.grad(torch.where(margin <= 8, margin, 0.0).sum(), logits)
    assert (slope[0] == 0).all()
    assert (slope[1].abs() > 0).all()


def test_a_margin_beyond_the_hinge_is_not_rewarded():
    """q(1 − p) − q(p) is 8 at p = Φ(−4) = 3.17e-5."""

    def term(p: float) -> float:
        f, images = lookup([1 - p, p])
        zeros, labels = torch.zeros(1, 2, 1, 1, 1, dtype=torch.float64), torch.tensor([0])
        whole, none = (procedure("macer", draws=2, weight=w).loss(f, images, labels, zeros) for w in (1.0, 0.0))
        return float(whole - none)

    assert term(norm.cdf(-3.99)) == pytest.approx(SIGMA / 2 * 0.02, rel=1e-6)
    assert term(norm.cdf(-4.01)) == 0


def test_squeezed_margins_never_reach_the_hinge():
    f, images = lookup([1 - 1e-12, 1e-12])
    of = procedure("macer-pacd", draws=2, weight=1.0)
    zeros = torch.zeros(1, 2, 1, 1, 1, dtype=torch.float64)
    term = float(
        of.loss(f, images, torch.tensor([0]), zeros)
        - procedure("macer-pacd", weight=0.0).loss(f, images, torch.tensor([0]), zeros)
    )
    assert term == pytest.approx(SIGMA / 2 * (8 - 2 * norm.ppf(0.999)), rel=1e-9)


def test_of_equal_classes_the_lower_one_is_on_top():
    draws = torch.tensor([[[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], [[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]]).double()
    margin, top = soft_margin(draws, inverse_temperature=100.0)
    assert top.tolist() == [1, 0]
    assert margin.tolist() == pytest.approx([0, 0], abs=1e-12)


# --- Consistency and SmoothMix


def test_where_all_copies_agree_consistency_is_cross_entropy_and_half_the_entropy():
    of, noise, _ = given("consistency", draws=2)
    f = with_weights(MODEL, WEIGHTS)
    same = noise[:, :1].expand(-1, 2, -1, -1, -1)
    p = f(IMAGES + noise[:, 0]).softmax(dim=1)
    expected = cross_entropy(f(IMAGES + noise[:, 0]), LABELS) - 0.5 * (p * p.log()).sum(dim=1).mean()
    assert float(of.loss(f, IMAGES, LABELS, same)) == pytest.approx(float(expected), rel=1e-12)


def test_consistency_is_its_formula_where_copies_differ():
    of, noise, _ = given("consistency", draws=3)
    f = with_weights(MODEL, WEIGHTS)
    total = 0.0
    for image, label, draws in zip(IMAGES, LABELS.tolist(), noise, strict=True):
        p = f(image + draws).softmax(dim=1).tolist()
        mean = [sum(column) / 3 for column in zip(*p, strict=True)]
        total += sum(-math.log(each[label]) for each in p) / 3
        total += 5 / 3 * sum(m * math.log(m / each[k]) for each in p for k, m in enumerate(mean))
        total -= 0.5 * sum(m * math.log(m) for m in mean)
    assert float(of.loss(f, IMAGES, LABELS, noise)) == pytest.approx(total / len(IMAGES), rel=1e-12)


def test_smoothmix_is_its_formula_with_a_target_that_fades_to_no_opinion():
    of = procedure("smoothmix", draws=2, weight=3.0, adversary_steps=2, adversary_size=0.5)
    noise = SIGMA * normal(len(IMAGES), 2, 1, 4, 4, name="noise")
    f = with_weights(MODEL, WEIGHTS)
    change, far = prepared(of, f, IMAGES, LABELS, noise)
    assert ((far > 0) & (far <= 0.5)).all()
    total = 0.0
    for image, label, draws, move, share in zip(IMAGES, LABELS.tolist(), noise, change, far.tolist(), strict=True):
        p = f(image + draws).softmax(dim=1)
        mean = p.mean(dim=0)
        target = (1 - share) * mean + share / K
        mixed = f((1 - share) * image + share * (image + move) + draws).softmax(dim=1)
        total -= float(p[:, label].log().mean())
        if int(mean.argmax()) == label:
            total += 3.0 * 0.5 * float((target * (target / mixed).log()).sum(dim=1).mean())
    found = of.loss(f, IMAGES, LABELS, noise, (change, far), strength=0.5)
    assert float(found) == pytest.approx(total / len(IMAGES), rel=1e-12)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_smoothmixs_steps_have_their_length_and_no_limit_but_the_range(strength):
    of = procedure("smoothmix", adversary_steps=3, adversary_size=0.1)
    change, _ = prepared(of, linear, GREY, ONE, ZERO, strength)
    assert torch.allclose(change, 0.3 * torch.stack([-W, W]) / 5, rtol=1e-9)


def test_how_far_smoothmix_goes_is_uniform_up_to_one_half():
    images = torch.zeros(4000, 1, 1, 1)
    noise = torch.zeros(4000, 1, 1, 1, 1)
    of = procedure("smoothmix", adversary_steps=0)
    _, far = prepared(of, lambda batch: batch.flatten(1), images, torch.zeros(4000, dtype=torch.int64), noise)
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(far.mean()) - 0.25) < 5 * 0.5 / math.sqrt(12 * 4000)
    assert abs(float((far < 0.125).double().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_the_mean_softmax_has_a_finite_logarithm_however_small():
    logits = torch.tensor([[[0.0, 200.0], [0.0, 300.0]], [[0.0, 1.0], [1.0, 0.0]]])
    found = log_mean_softmax(logits)
    assert float(found[0, 0]) == pytest.approx(-200 - math.log(2), rel=1e-6)
    assert found[1].exp().tolist() == pytest.approx([0.5, 0.5])
