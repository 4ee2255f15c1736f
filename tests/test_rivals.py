"""The rivals of PACD: all attacks from outside, and each by what it claims to do, on toys."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from engine import models
from engine.attacks import ATTACKS
from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.gradient_matching import mismatch_slope
from engine.attacks.pacd import MOST_RESTARTS, PerImage
from engine.attacks.patterns import FREQUENCIES
from engine.attacks.random_noise import random_noise
from engine.attacks.universal import Shared
from engine.attacks.watermark import OPACITY
from engine.config import AttackName, ProcedureConfig, with_overrides
from engine.costs import FIRST_ORDER, SECOND_ORDER, work_of_attack
from engine.data import LabelledImages
from engine.hypergradient import ApproxGrad, Loss, exact, gradient
from engine.presets import PRESETS
from engine.smoothing import gaussian_noise
from engine.solvers import Adam
from engine.streams import stream
from engine.threat import Poison, check
from engine.training import PROCEDURES, make
from engine.training.gaussian import Gaussian

SMALL = (
    *("attack.upper_steps=4", "attack.restart_every=3", "attack.warmup_steps=2", "attack.linear_steps=2"),
    *("attack.damping=0.1", "attack.clean_batch=15", "attack.poison_batch=6", "attack.upper_batch=8"),
    *("attack.upper_noise=4", "attack.weights_learning_rate=0.05", "attack.poison_learning_rate=0.05"),
)
QUICK = PRESETS["quick"].config
CONFIG = with_overrides(QUICK, [*SMALL]).attack.model_copy(update=dict(surrogate="tiny"))
TARGET, EPSILON, SIGMA = 2, 0.1, 0.25
GAUSSIAN = make(ProcedureConfig(name="gaussian"), sigma=SIGMA)
OPTIMISED = (*SECOND_ORDER, *FIRST_ORDER)


class Tiny(nn.Sequential):
    """A 64-6-3 softplus network for 8×8 images."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        pixels = math.prod(shape)
        super().__init__(nn.Flatten(), nn.Linear(pixels, 6), nn.Softplus(), nn.Linear(6, num_classes))


@pytest.fixture(scope="module", autouse=True)
def _tiny_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BUILDERS, "tiny", (Tiny, models.glorot_uniform))
        yield


def toy(count: int, name: str) -> LabelledImages:
    """Three classes of 8×8 images, by which column is bright; some pixels are exactly 0 or 1."""
    labels = torch.arange(count) % 3
    images = 0.5 * torch.rand(count, 1, 8, 8, generator=stream(0, name))
    images[torch.arange(count), 0, :, labels] += 0.5
    images[:, :, 0] = images[:, :, 0].round()
    return LabelledImages(images, labels, torch.arange(count))


TRAINING = toy(60, "training")
PROBLEM = AttackProblem(
    TRAINING,
    toy(30, "validation").of_class(TARGET),
    (TRAINING.labels == TARGET).nonzero().squeeze(1)[::2],
    epsilon=EPSILON,
    target_class=TARGET,
    num_classes=3,
    procedure=GAUSSIAN,
)


def attacked(name: str, problem: AttackProblem = PROBLEM, *, seed: int = 0, **changes) -> list[AttackRecord]:
    return list(ATTACKS[name](problem, CONFIG.model_copy(update=changes), seed))


MADE = [name for name in ATTACKS if name != "from-file"]  # of what the attacker has, not of a file

# --- all attacks, from outside


def test_every_attack_that_a_configuration_may_name_is_there():
    assert set(ATTACKS) == set(get_args(AttackName)) - {"none"}


@pytest.mark.parametrize("name", MADE)
@settings(deadline=None, derandomize=True, database=None, max_examples=8)
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_every_step_is_counted_and_holds_to_the_threat_model(name, epsilon, seed):
    before, labels = TRAINING.images.clone(), TRAINING.labels.clone()
    records = attacked(name, replace(PROBLEM, epsilon=epsilon), seed=seed)
    assert [record.step for record in records] == list(range(1, records[0].steps + 1))
    assert records[0].steps == (CONFIG.upper_steps if name in OPTIMISED else 1)
    for record in records:
        assert record.delta.dtype == torch.float32
        poison = Poison(record.delta, PROBLEM.indices, record.labels)
        check(poison, TRAINING, target_class=TARGET, epsilon=epsilon, clean_label=name != "label-flip")
    assert torch.equal(TRAINING.images, before)
    assert torch.equal(TRAINING.labels, labels)


@pytest.mark.parametrize("name", [name for name in MADE if name != "label-flip"])
def test_an_attack_uses_its_budget_and_without_one_changes_nothing_bit_for_bit(name):
    assert float(attacked(name)[-1].delta.abs().max()) == pytest.approx(EPSILON, rel=1e-5)
    assert all((record.delta == 0).all() for record in attacked(name, replace(PROBLEM, epsilon=0.0)))


@pytest.mark.parametrize("name", MADE)
def test_an_attack_follows_from_its_seed_and_leaves_the_global_generator_untouched(name):
    def digests(seed: int) -> list[str]:
        return [Poison(r.delta, PROBLEM.indices, r.labels).digest() for r in attacked(name, seed=seed)]

    before, first = torch.get_rng_state(), digests(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert digests(0) == first
    assert digests(1)[-1] != first[-1]


@pytest.mark.parametrize("name", MADE)
def test_without_images_to_change_there_is_nothing_to_do(name):
    assert attacked(name, replace(PROBLEM, indices=PROBLEM.indices[:0])) == []


@pytest.mark.parametrize("name", OPTIMISED)
@pytest.mark.parametrize("procedure", list(PROCEDURES))
def test_an_optimised_attack_takes_every_procedure(name, procedure):
    problem = replace(PROBLEM, procedure=make(ProcedureConfig(name=procedure), sigma=SIGMA))
    records = attacked(name, problem, upper_steps=2)
    assert all("diverged" not in str(record.event) and math.isfinite(record.lower_loss) for record in records)
    assert float(records[-1].delta.abs().max()) > 0


class Broken(Gaussian):
    def loss(self, *arguments, **settings) -> Tensor:
        return super().loss(*arguments, **settings) * math.nan


@pytest.mark.parametrize("name", OPTIMISED)
def test_surrogates_that_keep_diverging_are_reported_and_then_end_the_attack(name):
    records: list[AttackRecord] = []
    with pytest.raises(FloatingPointError, match="in a row diverged"):
        records.extend(ATTACKS[name](replace(PROBLEM, procedure=Broken(GAUSSIAN.settings, SIGMA)), CONFIG, 0))
    assert ["the surrogate diverged" in str(record.event) for record in records] == [True] * MOST_RESTARTS
    assert all((record.delta == 0).all() for record in records)


def test_an_attack_costs_what_it_differentiates():
    names = [name for name in get_args(AttackName) if name != "from-file"]
    work = {name: work_of_attack(with_overrides(QUICK, [f"attack.name={name}"])) for name in names}
    assert work["pacd"] == work["universal"] > work["gradient-matching"] > work["error-minimising"] > 0
    assert {name for name in names if work[name] > 0} == {*OPTIMISED}
    file = with_overrides(QUICK, ["attack.name=from-file", f"attack.file={'0' * 64}"])
    assert work_of_attack(file) == 0


def test_a_solver_costs_what_it_multiplies():
    def work(solver: str) -> float:
        return work_of_attack(with_overrides(QUICK, [f"attack.linear_solver={solver}", "attack.linear_steps=3"]))

    assert work("adam") > work("neumann") > work("cg") == work("minres") == work("nystrom") == work("gauss-newton-cg")
    assert work("cg") > work("unrolled") > work("one-step")
    assert work("penalty") > work("unrolled")
    assert work("one-step") == work_of_attack(with_overrides(QUICK, ["attack.name=gradient-matching"]))


# --- one change for the whole class


def shared_change(delta: Tensor, x_clean: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """The one [C, H, W] that gives delta [P, C, H, W] by adding it and cutting at the range, or an assertion fails."""
    uncut = ((x_clean + delta) > 0) & ((x_clean + delta) < 1)
    found = (delta * uncut).sum(dim=0) / uncut.sum(dim=0).clamp(min=1)
    cut_only = ~uncut.any(dim=0)  # pixels that are 0 or 1 in all images: any change that leads there will do
    found = torch.where(cut_only, delta.gather(0, delta.abs().argmax(dim=0, keepdim=True))[0], found)
    assert torch.allclose((x_clean + found).clamp(0, 1) - x_clean, delta, atol=1e-6)
    return found


@pytest.mark.parametrize("name", ["universal", "white-pattern", "low-frequency-pattern"])
def test_all_images_share_one_change_before_it_is_cut(name):
    for record in attacked(name):
        shared_change(record.delta, PROBLEM.x_clean)


def pattern(name: str, side: int = 28) -> Tensor:
    """The pattern [side, side] of a class of gray images, which nothing cuts."""
    gray = LabelledImages(torch.full((4, 1, side, side), 0.5), torch.tensor([2, 2, 2, 1]), torch.arange(4))
    (record,) = attacked(name, replace(PROBLEM, training=gray, indices=torch.arange(3)))
    return shared_change(record.delta, gray.images[:3])[0]


def test_a_white_pattern_has_balanced_independent_signs_of_full_size():
    signs = pattern("white-pattern", 100) / EPSILON
    assert torch.allclose(signs.abs(), torch.ones(()), atol=1e-5)
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(signs.sum())) < 5 * 100
    assert abs(float((signs[1:] * signs[:-1]).sum())) < 5 * 100


def test_a_low_frequency_pattern_is_of_full_size_and_changes_sign_seldom():
    """A sum of k cosines is a polynomial of degree k − 1 in cos: each row and column has at most k − 1 zeros."""
    signs = pattern("low-frequency-pattern")
    assert torch.allclose(signs.abs(), torch.tensor(EPSILON), atol=1e-6)
    for lines in (signs, signs.T):
        changes = (lines[:, 1:] * lines[:, :-1] < 0).sum(dim=1)
        assert int(changes.max()) <= FREQUENCIES - 1
    assert 0.1 < float((signs > 0).float().mean()) < 0.9


def test_the_shared_step_is_that_of_the_exact_hypergradient_which_sums_over_images():
    """Lower: ½ w·Hw − w·B Σx; upper: ½ |w − t|². Two steps of different length, as Adam's first knows no length."""
    draw = stream(0, "quadratic")
    root, mixing, target = (torch.randn(s, generator=draw) for s in ((3, 3), (3, 64), (3,)))
    hessian = root @ root.T + torch.eye(3)
    gray = replace(TRAINING, images=0.25 + 0.5 * TRAINING.images)  # nothing is cut
    problem = replace(PROBLEM, training=gray, epsilon=0.2)
    unknowns, adam = Shared(problem, CONFIG), Adam(torch.zeros(1, 1, 8, 8), learning_rate=CONFIG.poison_learning_rate)

    def lower(w: Tensor, x: Tensor) -> Tensor:
        return 0.5 * w @ hessian @ w - w @ (mixing @ x.flatten(1).sum(dim=0))

    expected = torch.zeros(1, 1, 8, 8)
    for rows, scale in ((torch.tensor([0, 1, 2]), 1.0), (torch.tensor([5, 3]), 7.0)):
        images = unknowns.images(rows)
        weights = torch.linalg.solve(hessian, mixing @ images.flatten(1).sum(dim=0))
        x_clean = problem.x_clean[rows]

        def upper(w: Tensor, _: Tensor, scale: float = scale) -> Tensor:
            return scale * 0.5 * (w - target).square().sum()

        def lower_of_shared(w: Tensor, change: Tensor, x_clean: Tensor = x_clean) -> Tensor:
            return lower(w, x_clean + change)

        expected = expected + adam.step(exact(lower_of_shared, upper, weights, expected))
        unknowns.update(exact(lower, upper, weights, images), rows)
        assert torch.allclose(unknowns.shared, expected, atol=1e-5)


def test_a_cut_pixel_counts_only_where_descent_leads_it_back():
    images = torch.tensor([0.5, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8).clone()
    rows = torch.arange(3)
    problem = replace(PROBLEM, training=LabelledImages(images, torch.full((3,), TARGET), rows), indices=rows)

    def change_after(gradient: list[float], start: float) -> float:
        unknowns = Shared(problem, CONFIG)
        unknowns.shared += start
        unknowns.update(torch.tensor(gradient).view(3, 1, 1, 1).expand(3, 1, 8, 8), rows)
        return float(unknowns.shared.mean()) - start

    assert change_after([0.0, 1.0, 0.0], start=-0.02) == pytest.approx(
        0, abs=1e-8
    )  # the black pixel is cut, and would go on down
    assert change_after([0.0, -1.0, 0.0], start=-0.02) > 0
    assert change_after([0.0, 0.0, -1.0], start=0.02) == pytest.approx(0, abs=1e-8)  # the white one likewise
    assert change_after([0.0, 0.0, 1.0], start=0.02) < 0
    assert change_after([0.0, 1.0, 0.0], start=0.0) < 0  # at the very edge it counts


# --- blending and flips


def test_a_watermark_is_a_faint_image_of_another_class_and_needs_one():
    (record,) = attacked("watermark", replace(PROBLEM, epsilon=1.0))
    others = TRAINING.images[TRAINING.labels != TARGET].flatten(1)
    shown = (record.delta / OPACITY + PROBLEM.x_clean).flatten(1)
    nearest = torch.cdist(shown, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert float(nearest.values.max()) < 1e-5
    assert len(nearest.indices.unique()) > 1
    (cut,) = attacked("watermark")
    assert torch.allclose(cut.delta, record.delta.clamp(-EPSILON, EPSILON), atol=1e-6)
    alone = replace(PROBLEM, training=TRAINING.of_class(TARGET), indices=torch.arange(5))
    with pytest.raises(ValueError, match="images of another class"):
        attacked("watermark", alone)


def test_a_label_flip_changes_no_pixel_and_no_other_label():
    (record,) = attacked("label-flip")
    found = Poison(record.delta, PROBLEM.indices, record.labels).apply(TRAINING)
    assert torch.equal(found.images, TRAINING.images)
    others = torch.ones(len(TRAINING), dtype=torch.bool)
    others[PROBLEM.indices] = False
    assert torch.equal(found.labels[others], TRAINING.labels[others])
    assert set(found.labels[PROBLEM.indices].tolist()) == {0, 1}


# --- noise made on a surrogate

LONG: dict[str, Any] = dict(upper_steps=30, restart_every=15, warmup_steps=30, poison_batch=10)


def at(weights: Tensor) -> ApproxGrad:
    """A surrogate with these weights; its linear solver is not used."""
    unused: dict[str, Any] = dict(linear_steps=1, damping=1.0, linear_learning_rate=1.0)
    return ApproxGrad(weights, linear_solver="cg", weights_learning_rate=0.05, generator=stream(0, "unused"), **unused)


@pytest.fixture(scope="module")
def judge() -> ApproxGrad:
    """A surrogate that no attack has seen, trained on clean data."""
    model = models.build("tiny", shape=(1, 8, 8), num_classes=3, generator=stream(7, "judge"))
    surrogate = at(models.flat_weights(model))
    noise = gaussian_noise((60, 1, 1, 8, 8), sigma=SIGMA, generator=stream(7, "noise"))
    surrogate.descend(lambda w, x: on(w, x, TRAINING.labels, noise), TRAINING.images, steps=20)
    return surrogate


def on(weights: Tensor, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """The Gaussian procedure's loss of a tiny network."""
    model = models.build("tiny", shape=(1, 8, 8), num_classes=3, generator=stream(0, "any"))
    return GAUSSIAN.loss(models.with_weights(model, weights), images, labels, noise)


def loss_of(judge: ApproxGrad, delta: Tensor) -> float:
    """The judge's loss of the poison images, averaged over 50 noise draws each."""
    noise = gaussian_noise((len(delta), 50, 1, 8, 8), sigma=SIGMA, generator=stream(8, "noise"))
    return float(on(judge.weights, PROBLEM.x_clean + delta, torch.full((len(delta),), TARGET), noise))


def random_change(index: int = 0) -> Tensor:
    return random_noise(PROBLEM.x_clean, epsilon=EPSILON, generator=stream(9, "random", index))


def test_error_minimising_lowers_and_error_maximising_raises_the_loss_beyond_any_random_noise(judge):
    noise = [loss_of(judge, random_change(index)) for index in range(20)]
    low, high = (loss_of(judge, attacked(name, **LONG)[-1].delta) for name in ("error-minimising", "error-maximising"))
    assert low < 0.8 * min(noise)
    assert high > 1.25 * max(noise)


class Spy(Gaussian):
    """Keeps the target-class images of every minibatch whose loss is asked for."""

    def loss(self, base_classifier, images, labels, *rest, **settings) -> Tensor:
        SEEN.append(images[labels == TARGET].detach())
        return super().loss(base_classifier, images, labels, *rest, **settings)


SEEN: list[Tensor] = []


@pytest.mark.parametrize(("name", "clean"), [("error-minimising", False), ("error-maximising", True)])
def test_only_error_maximising_surrogates_learn_from_clean_images(name, clean):
    SEEN.clear()
    attacked(name, replace(PROBLEM, procedure=Spy(GAUSSIAN.settings, SIGMA)), upper_steps=3, warmup_steps=0)
    known = {image.numpy().tobytes() for image in TRAINING.images}
    poison = SEEN[1::2]  # each evaluation has a clean part and one of the images that may change
    unchanged = [all(image.numpy().tobytes() in known for image in images) for images in poison]
    # a step: two lower steps, and the loss that the poison descends, at the poison
    learning, descended = [*unchanged[3::3], *unchanged[4::3]], unchanged[5::3]
    assert learning == [clean] * 4
    assert descended == [False] * 2


# --- gradient matching


def given_losses(dtype: torch.dtype) -> tuple[Loss, Loss]:
    """(lower, upper) of a linear 64-3 classifier, without any draw: cross-entropy, and minus the true class's logit."""
    clean, y = TRAINING.images[:9].to(dtype), TRAINING.labels[:9]

    def lower(w: Tensor, x: Tensor) -> Tensor:
        labels = torch.cat([y, torch.full((len(x),), TARGET)])
        return nn.functional.cross_entropy(torch.cat([clean, x]).flatten(1) @ w.view(64, 3), labels)

    def upper(w: Tensor, _: Tensor) -> Tensor:
        return (PROBLEM.validation.images.to(dtype).flatten(1) @ w.view(64, 3)).softmax(dim=1)[:, TARGET].mean()

    return lower, upper


def cosine(weights: Tensor, x: Tensor) -> Tensor:
    (_, found), (_, wanted) = (gradient(loss, weights, x) for loss in given_losses(x.dtype))
    return cosine_similarity(found, wanted, dim=0)


def test_the_mismatch_has_the_slope_of_central_differences():
    weights = torch.randn(192, generator=stream(0, "weights"), dtype=torch.float64)
    x = PROBLEM.x_clean[:2].double()
    found = mismatch_slope(at(weights), *given_losses(torch.float64), x)
    for pixel in (0, 5, 64, 127):
        step = torch.zeros_like(x)
        step.view(-1)[pixel] = 1e-5
        slope = -(cosine(weights, x + step) - cosine(weights, x - step)) / 2e-5
        assert float(found.gradient.view(-1)[pixel]) == pytest.approx(float(slope), rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_gradient_matching_raise_the_cosine(seed):
    weights = torch.randn(192, generator=stream(seed, "weights"))
    unknowns, rows = PerImage(PROBLEM, CONFIG.model_copy(update=dict(poison_learning_rate=0.01))), torch.arange(10)
    before = cosine(weights, unknowns.images(rows))
    for _ in range(20):
        found = mismatch_slope(at(weights), *given_losses(torch.float32), unknowns.images(rows))
        unknowns.update(found.gradient, rows)
    noise = cosine(weights, PROBLEM.x_clean + random_change())
    assert cosine(weights, unknowns.images(rows)) > before + 2 * (noise - before).abs()


def test_a_surrogate_that_gets_nothing_right_gives_no_direction():
    """The upper loss and its gradient are then 0, and so must the step be."""
    lower, _ = given_losses(torch.float32)
    found = mismatch_slope(at(torch.ones(192)), lower, lambda w, _: 0 * w.sum(), PROBLEM.x_clean)
    assert (found.gradient == 0).all()
