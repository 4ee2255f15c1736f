"""The attack and its controls: from outside, and step by step against a second derivation of the method."""

import importlib
import math
from collections import defaultdict, deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import engine.attacks.levels as levels
from engine import models
from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.random_noise import random_noise, random_signs
from engine.attacks.shuffled_signs import shuffled_signs
from engine.config import AttackConfig, ProcedureConfig
from engine.data import LabelledImages, load, split
from engine.streams import stream
from engine.threat import Poison, check
from engine.training import PROCEDURES, Procedure, make

attack = importlib.import_module("engine.attacks.pacd")  # in its package this name is the function
CONFIG = AttackConfig(
    surrogate="lenet-narrow",
    upper_steps=7,
    restart_every=3,
    warmup_steps=4,
    lower_steps=2,
    linear_steps=2,
    linear_solver="cg",
    damping=0.1,
    clean_batch=15,
    poison_batch=6,
    upper_batch=8,
    upper_noise=4,
    weights_learning_rate=0.05,
    linear_learning_rate=0.01,
    poison_learning_rate=0.05,
)
TARGET, EPSILON = 2, 0.1
SIGMA = 0.25


def procedure(name: str = "gaussian", *, sigma: float = SIGMA) -> Procedure:
    return make(ProcedureConfig(name=name), sigma=sigma)


def tiny(dtype: torch.dtype = torch.float32):
    """A builder of a 16-6-10 softplus network for 4×4 images, and how its weights begin."""

    def builder(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * shape[0], 6, dtype=dtype),
            nn.Softplus(),
            nn.Linear(6, num_classes, dtype=dtype),
        )

    return builder, models.glorot_uniform


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch):
    """Surrogates of 4×4 images are tiny, whatever the configuration says."""
    build = models.build

    def build_tiny(architecture: str, *, shape: tuple[int, ...], **settings) -> nn.Module:
        return build("tiny" if shape[1:] == (4, 4) else architecture, shape=shape, **settings)

    monkeypatch.setitem(models.BUILDERS, "tiny", tiny())
    monkeypatch.setitem(models.SMALLEST_SIDE, "tiny", 4)
    monkeypatch.setattr(attack, "build", build_tiny)


def toy(count: int, name: str) -> LabelledImages:
    """Three classes of 4×4 images, by which column is bright; some pixels are exactly 0 or 1."""
    labels = torch.arange(count) % 3
    images = 0.5 * torch.rand(count, 1, 4, 4, generator=stream(0, name))
    images[torch.arange(count), 0, :, labels] += 0.5
    images[:, :, 0] = images[:, :, 0].round()
    return LabelledImages(images, labels, torch.arange(count))


TRAINING, VALIDATION = toy(60, "training"), toy(30, "validation").of_class(TARGET)
INDICES = (TRAINING.labels == TARGET).nonzero().squeeze(1)[::2]


def attacked(config: AttackConfig = CONFIG, seed: int = 0, **changes) -> list[AttackRecord]:
    """All records; changes are fields of the problem."""
    return list(attack.pacd(posed(**changes), config, seed))


def posed(**changes) -> AttackProblem:
    settings = dict(
        training=TRAINING,
        validation=VALIDATION,
        indices=INDICES,
        epsilon=EPSILON,
        target_class=TARGET,
        num_classes=10,
        procedure=procedure(),
    )
    return AttackProblem(**settings | changes)


# --- from outside


@pytest.mark.parametrize(
    ("name", "solver"),
    [(name, solver) for name in PROCEDURES for solver in ("cg", "adam", "gauss-newton-cg")]
    + [("gaussian", solver) for solver in ("minres", "neumann", "nystrom", "one-step", "unrolled", "penalty")],
)
def test_after_every_step_the_poison_is_clean_label_within_its_budget_and_in_range(name, solver):
    before = TRAINING.images.clone()
    config = CONFIG.model_copy(update=dict(linear_solver=solver))
    records = attacked(config, procedure=procedure(name))
    assert [record.step for record in records] == list(range(1, 8))
    assert {record.steps for record in records} == {7}
    for record in records:
        poison = Poison(record.delta, INDICES)
        check(poison, TRAINING, target_class=TARGET, epsilon=EPSILON)
        assert torch.equal(poison.apply(TRAINING).labels, TRAINING.labels)
        assert record.event is None or (name == "macer-pacd" and "gets no held-out image right" in record.event)
        assert math.isfinite(record.lower_loss)
        assert 0 <= record.upper_loss <= 0.25 * norm.ppf(0.999) * (1 + 1e-5)
    assert torch.equal(TRAINING.images, before)
    assert float(records[-1].delta.abs().max()) == pytest.approx(EPSILON, rel=1e-3)


def test_a_record_keeps_the_poison_of_its_own_step():
    records = attacked()
    assert len({record.delta.numpy().tobytes() for record in records}) == 7


def test_on_images_of_28_by_28_pixels_too_the_threat_model_holds():
    training, validation = split(
        load("digits", Path("/nowhere"), train=True), train_size=300, validation_size=200, seed=0
    )
    indices = (training.labels == 8).nonzero().squeeze(1)
    records = attacked(
        training=training,
        validation=validation.of_class(8),
        indices=indices,
        target_class=8,
        config=CONFIG.model_copy(update=dict(upper_steps=2)),
    )
    check(Poison(records[-1].delta, indices), training, target_class=8, epsilon=EPSILON)
    assert records[-1].delta.dtype == torch.float32
    assert float(records[-1].delta.abs().max()) > 0


def test_without_a_budget_nothing_changes_bit_for_bit():
    for record in attacked(epsilon=0.0):
        assert (record.delta == 0).all()


def test_without_images_to_change_there_is_nothing_to_do():
    assert attacked(indices=INDICES[:0]) == []


def test_without_validation_images_there_is_nothing_to_lower():
    with pytest.raises(ValueError, match="validation must have images of the target class"):
        attacked(validation=VALIDATION.select(VALIDATION.labels < 0))


def test_the_attack_follows_from_its_seed_and_leaves_the_global_generator_untouched():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        records = attacked()
        assert torch.equal(torch.get_rng_state(), before)
        results.append([replace(record, delta=record.delta.numpy().tobytes()) for record in records])
    assert results[0] == results[1]
    assert attacked(seed=1)[-1].delta.numpy().tobytes() != results[0][-1].delta


def test_images_that_no_minibatch_held_stay_as_they_are():
    one_step = CONFIG.model_copy(update=dict(upper_steps=1))
    (record,) = attacked(one_step)
    assert int((record.delta.flatten(1).abs().amax(dim=1) > 0).sum()) == CONFIG.poison_batch


# --- its course


def with_loss(name: str, change) -> Procedure:
    """A procedure whose loss is change(its own loss, images, labels)."""

    class Changed(PROCEDURES[name]):
        def loss(self, base_classifier, images, labels, noise, constants=(), *, strength=1.0) -> Tensor:
            value = super().loss(base_classifier, images, labels, noise, constants, strength=strength)
            return change(value, images, labels)

    return Changed(ProcedureConfig(name=name), SIGMA)


def counting(name: str = "gaussian") -> tuple[Procedure, list[tuple[int, int]]]:
    """The procedure, and the list of (images, those of the target class) in the parts that it will have seen."""
    seen: list[tuple[int, int]] = []

    def change(value: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        seen.append((len(images), int((labels == TARGET).sum())))
        return value

    return with_loss(name, change), seen


def count_builds(monkeypatch) -> list[Tensor]:
    """The initial weights of every surrogate that will have been built."""
    built, build = [], attack.build

    def counted(*arguments, **settings) -> nn.Module:
        model = build(*arguments, **settings)
        built.append(models.flat_weights(model))
        return model

    monkeypatch.setattr(attack, "build", counted)
    return built


def test_each_life_begins_with_new_weights_and_a_warm_up(monkeypatch):
    built = count_builds(monkeypatch)
    spied, seen = counting()
    attacked(procedure=spied)
    assert len(built) == 3  # steps 1, 4 and 7
    assert not torch.equal(built[0], built[1])
    # per life 4 of warm-up; per step 2 lower steps, one Hessian of conjugate gradients, one cross term
    clean, poison = ([part for part in seen if part[0] == size] for size in (15, 6))
    assert len(poison) == 3 * 4 + 7 * (2 + 1 + 1)
    assert len(clean) == 3 * 4 + 7 * (2 + 1)  # the cross term is of the poison alone
    assert len(clean) + len(poison) == len(seen)
    assert {of_class for _, of_class in poison} == {6}


def test_adam_on_the_linear_system_draws_a_system_for_every_step():
    spied, seen = counting()
    attacked(procedure=spied, config=CONFIG.model_copy(update=dict(linear_solver="adam", linear_steps=5)))
    assert seen.count((6, 6)) == 3 * 4 + 7 * (2 + 5 + 1)


def test_noise_is_fresh_at_every_evaluation_of_both_levels(monkeypatch):
    drawn: list[Tensor] = []
    original = levels.gaussian_noise

    def keep(shape, *, sigma: float, generator: torch.Generator) -> Tensor:
        assert sigma == SIGMA
        drawn.append(original(shape, sigma=sigma, generator=generator))
        return drawn[-1]

    monkeypatch.setattr(levels, "gaussian_noise", keep)
    monkeypatch.setattr("engine.training.base.gaussian_noise", keep)
    attacked(config=CONFIG.model_copy(update=dict(linear_solver="adam")))
    assert len(drawn) == 3 * 4 + 7 * (2 + 2 + 1) + 7 * 2  # warm-up; lower, Hessians and cross term; upper
    images = torch.cat([noise.flatten(0, 1).flatten(1) for noise in drawn])
    assert len(images.unique(dim=0)) == len(images)


def failing(when) -> Procedure:
    """Gaussian augmentation whose loss of the poison is nan at those of its calls for which when(call) is true."""
    calls = []

    def change(value: Tensor, images: Tensor, _labels: Tensor) -> Tensor:
        if len(images) != CONFIG.poison_batch:
            return value
        calls.append(1)
        return value * math.nan if when(len(calls)) else value

    return with_loss("gaussian", change)


def test_surrogates_that_keep_diverging_are_reported_and_then_end_the_attack():
    records = []
    with pytest.raises(FloatingPointError, match=r"4 surrogates in a row diverged\. step 4: the surrogate diverged"):
        records.extend(attack.pacd(posed(procedure=failing(lambda call: True)), CONFIG, 0))
    assert [record.event for record in records] == [
        f"step {number}: the surrogate diverged (lower loss nan); it starts again" for number in (1, 2, 3)
    ]
    assert all((record.delta == 0).all() for record in records)


def test_a_learning_rate_that_explodes_is_such_a_divergence():
    config = CONFIG.model_copy(update=dict(weights_learning_rate=1e30, upper_steps=20))
    with pytest.raises(FloatingPointError, match="in a row diverged"):
        attacked(config)


def test_one_divergence_costs_one_surrogate_and_leaves_no_trace_in_the_poison(monkeypatch):
    built = count_builds(monkeypatch)
    records = attacked(procedure=failing(lambda call: call == 4 + 4 + 1))  # the first call of step 2
    assert [record.event is not None for record in records] == [False, True, False, False, False, False, False]
    assert torch.equal(records[1].delta, records[0].delta)
    assert not torch.equal(records[2].delta, records[1].delta)
    assert len(built) == 3  # steps 1, 3 and 6
    assert all(record.delta.isfinite().all() for record in records)


def test_divergences_that_are_not_in_a_row_do_not_end_the_attack():
    per_step = CONFIG.lower_steps + 2
    config = CONFIG.model_copy(update=dict(upper_steps=12, warmup_steps=0))
    records = attacked(config=config, procedure=failing(lambda call: (call - 1) % (2 * per_step) == 0))
    assert [record.event is not None for record in records] == [True, False] * 6


@pytest.mark.parametrize("name", ["smoothadv", "smoothmix"])
def test_an_adversary_answers_once_in_every_minibatch(name):
    answered = []

    class Counting(PROCEDURES[name]):
        def prepare(self, *arguments, **settings) -> tuple[Tensor, ...]:
            answered.append(settings["strength"])
            return super().prepare(*arguments, **settings)

    settings = ProcedureConfig(name=name, warmup=0.5)
    attacked(CONFIG.model_copy(update=dict(upper_steps=4, restart_every=4)), procedure=Counting(settings, SIGMA))
    assert answered == [0.0] * 4 + [0.0, 0.5, 1.0, 1.0]  # warm-up, and four upper steps of one life


@pytest.mark.parametrize("augmentation", ["crop-flip", "crop-flip-batch"])
def test_gradients_reach_the_poison_through_augmentation(augmentation):
    record = attacked(augmentation=augmentation)[-1]
    check(Poison(record.delta, INDICES), TRAINING, target_class=TARGET, epsilon=EPSILON)
    assert float(record.delta.abs().max()) > EPSILON / 4


# --- against a second derivation, in float64, from the method's formulas

STEPS = 3
DOUBLE = CONFIG.model_copy(
    update=dict(
        upper_steps=STEPS,
        restart_every=STEPS,
        warmup_steps=1,
        linear_solver="adam",
        linear_steps=3,
        clean_batch=40,
        poison_batch=20,
        upper_batch=10,
        poison_learning_rate=0.02,
    )
)
SECOND_SIGMA = 0.3


def second_logits(v: Tensor, x: Tensor) -> Tensor:
    """16-6-10 with softplus, from the weight vector."""
    first, bias, second, last = v[:96].view(6, 16), v[96:102], v[102:162].view(10, 6), v[162:]
    return torch.log(1 + torch.exp(x.flatten(1) @ first.T + bias)) @ second.T + last


def second_lower(v: Tensor, u: Tensor, clean: LabelledImages, labels: Tensor, noise: Tensor) -> Tensor:
    """g: the sum of cross-entropies of clean and poison images with noise, divided by their number."""
    z = second_logits(v, torch.cat([clean.images, u]) + noise[:, 0])
    y = torch.cat([clean.labels, labels])
    return (torch.log(torch.exp(z).sum(dim=1)) - z[torch.arange(len(y)), y]).sum() / len(y)


def second_upper(v: Tensor, held_out: LabelledImages, noise: Tensor) -> Tensor:
    """f: sigma / 2 / n times the sum, over images whose top class is right, of q(p_A) − q(p_B)."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y, draws in zip(held_out.images, held_out.labels, noise, strict=True):
        z = 16 * second_logits(v, x + draws)
        p = (torch.exp(z) / torch.exp(z).sum(dim=1, keepdim=True)).mean(dim=0)
        order = p.argsort(descending=True)
        if order[0] == y:
            quantiles = [math.sqrt(2) * torch.erfinv(2 * (0.998 * p[i] + 0.001) - 1) for i in order[:2]]
            total = total + quantiles[0] - quantiles[1]
    return SECOND_SIGMA / 2 * total / len(held_out)


def second_lower_along_p(u: Tensor, v: Tensor, p: Tensor, clean: LabelledImages, labels: Tensor, noise: Tensor):
    """g_v . p by a central difference in the weights, in place of a second derivative."""
    ahead, behind = (second_lower(v + step * p, u, clean, labels, noise) for step in (1e-4, -1e-4))
    return (ahead - behind) / 2e-4


def slope(loss, at: Tensor, *given) -> Tensor:
    """The derivative in the first argument."""
    return torch.autograd.functional.jacobian(lambda z: loss(z, *given), at)


def dense_hessian(loss, at: Tensor, *given) -> Tensor:
    return torch.autograd.functional.hessian(lambda z: loss(z, *given), at)


class SecondAdam:
    def __init__(self, learning_rate: float) -> None:
        self.m, self.v, self.t, self.learning_rate = 0.0, 0.0, 0, learning_rate

    def step(self, g: Tensor) -> Tensor:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        rate = self.learning_rate * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        return rate * self.m / (self.v**0.5 + 1e-8)


def test_upper_steps_are_those_of_the_method_with_the_same_noise(monkeypatch):
    """Warm-up, lower steps, p and u, with all Adam states and p carried over three upper steps of one life."""
    monkeypatch.setitem(models.BUILDERS, "tiny", tiny(torch.float64))
    for module in (attack, levels):
        monkeypatch.setattr(module, "sample", lambda population, size, *, generator: torch.arange(population)[:size])
    drawn: dict[tuple[int, ...], deque[Tensor]] = defaultdict(deque)
    source = stream(0, "given noise")

    def given_noise(shape, *, sigma: float, generator: torch.Generator) -> Tensor:
        assert sigma == SECOND_SIGMA
        noise = sigma * torch.randn(shape, generator=source, dtype=torch.float64)
        drawn[tuple(shape)].append(noise)
        return noise

    monkeypatch.setattr(levels, "gaussian_noise", given_noise)
    monkeypatch.setattr("engine.training.base.gaussian_noise", given_noise)

    v = models.flat_weights(models.build("tiny", shape=(1, 4, 4), generator=stream(0, "surrogate", 0)))
    training, validation = (replace(part, images=part.images.double()) for part in (TRAINING, VALIDATION))
    # relabel, so that the untrained surrogate is right about most validation images, and wrong about some
    answers = second_logits(v, validation.images).argmax(dim=1)
    target = int(answers.mode().values)
    validation = replace(validation, labels=torch.full((10,), target))
    training = replace(training, labels=torch.where(training.labels == TARGET, target, (training.labels + 1) % 3 + 5))
    indices = (training.labels == target).nonzero().squeeze(1)
    assert len(indices) == 20

    records = attacked(
        DOUBLE,
        training=training,
        validation=validation,
        indices=indices,
        epsilon=0.03,
        procedure=procedure(sigma=SECOND_SIGMA),
    )

    lower_noise, upper_noise = drawn[60, 1, 1, 4, 4], drawn[10, 4, 1, 4, 4]
    clean = training.select(training.labels != target)
    u_clean, labels = training.images[indices], training.labels[indices]
    u, p = u_clean.clone(), torch.zeros_like(v)
    adam_v, adam_p, adam_u = SecondAdam(0.05), SecondAdam(0.01), SecondAdam(0.02)

    v = v - adam_v.step(slope(second_lower, v, u, clean, labels, lower_noise.popleft()))
    upper_values = []
    for record in records:
        for _ in range(2):
            noise = lower_noise.popleft()
            lower_value = float(second_lower(v, u, clean, labels, noise))
            v = v - adam_v.step(slope(second_lower, v, u, clean, labels, noise))
        for _ in range(3):
            noise = upper_noise.popleft()
            f, f_v = float(second_upper(v, validation, noise)), slope(second_upper, v, validation, noise)
            h = dense_hessian(second_lower, v, u, clean, labels, lower_noise.popleft())
            damped = h + 0.1 * torch.eye(len(v), dtype=torch.float64)
            p = p - adam_p.step(2 * damped @ (damped @ p - f_v))
        g_uv_p = slope(second_lower_along_p, u, v, p, clean, labels, lower_noise.popleft())
        u = (u + adam_u.step(g_uv_p)).clamp(0, 1)
        u = u_clean + (u - u_clean).clamp(-0.03, 0.03)

        assert torch.allclose(record.delta, u - u_clean, rtol=0, atol=1e-6)
        assert record.lower_loss == pytest.approx(lower_value, rel=1e-9)
        assert record.upper_loss == pytest.approx(f, rel=1e-9)
        assert record.relative_residual == pytest.approx(float((damped @ p - f_v).norm() / f_v.norm()), rel=1e-9)
        upper_values.append(f)
    assert not lower_noise  # as many draws as the method makes, and no more
    assert not upper_noise
    assert min(upper_values) > 0
    assert (records[0].delta.abs() > 0.019).any()  # steps of Adam in full
    assert (records[-1].delta.abs() > 0.0299).any()  # and stopped by the budget


def test_the_upper_loss_is_the_mean_soft_radius_with_wrong_images_counted_as_zero():
    p = torch.tensor([[0.9, 0.06, 0.04], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], dtype=torch.float64)
    images, labels = torch.arange(3.0).reshape(3, 1, 1, 1), torch.tensor([0, 0, 0])

    def classifier(noisy: Tensor) -> Tensor:
        return p[noisy.flatten().round().long()].log() / 16

    def q(t: float) -> float:
        return norm.ppf(0.998 * t + 0.001)

    found = levels.upper_loss(classifier, images, labels, torch.zeros(3, 5, 1, 1, 1), sigma=0.5)
    expected = 0.25 / 3 * (q(0.9) - q(0.06) + q(0.6) - q(0.3))
    assert float(found) == pytest.approx(expected, rel=1e-9)


# --- controls


def clean_images(count: int = 200) -> Tensor:
    """With many pixels at 0, at 1, and near both."""
    return (1.4 * torch.rand(count, 1, 28, 28, generator=stream(0, "clean")) - 0.2).clamp(0, 1)


def test_random_noise_uses_its_whole_budget_where_the_pixel_range_allows():
    x, epsilon = clean_images(), 0.1
    delta = random_noise(x, epsilon=epsilon, generator=stream(0, "noise"))
    check_control(x, delta, epsilon)
    inside = (x >= epsilon) & (x <= 1 - epsilon)
    assert torch.allclose(delta[inside].abs(), torch.tensor(epsilon), atol=1e-6)
    room = torch.where(delta > 0, 1 - x, x)  # elsewhere it is cut at the range, or falls to the side without room
    assert torch.allclose(
        delta.abs()[~inside & (delta != 0)], room.clamp(max=epsilon)[~inside & (delta != 0)], atol=1e-6
    )
    assert ((x == 0) | (x == 1))[delta == 0].all()


def test_shuffled_signs_keep_every_size_where_the_pixel_range_allows():
    x, epsilon = clean_images(), 0.1
    poison = random_noise(x, epsilon=epsilon, generator=stream(0, "noise"))
    poison = poison * torch.rand(x.shape, generator=stream(0, "sizes"))
    delta = shuffled_signs(x, poison, epsilon=epsilon, generator=stream(1, "signs"))
    check_control(x, delta, epsilon)
    size = poison.abs()
    allowed = (x >= size) & (x <= 1 - size)
    assert torch.allclose(delta.abs()[allowed], size[allowed], atol=1e-6)
    assert (delta.abs() <= size + 1e-6).all()
    changed = allowed & (size > 1e-3)
    n = int(changed.sum())
    # half of the signs turn; 5 standard errors: false alarm 5.7e-7
    assert abs(int((delta.sign() != poison.sign())[changed].sum()) - n / 2) < 5 * math.sqrt(n) / 2


def check_control(x: Tensor, delta: Tensor, epsilon: float) -> None:
    images = LabelledImages(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)))
    check(Poison(delta, torch.arange(len(x))), images, target_class=0, epsilon=epsilon)


def test_controls_without_a_budget_change_nothing():
    x = clean_images(3)
    assert (random_noise(x, epsilon=0.0, generator=stream(0, "noise")) == 0).all()
    assert (shuffled_signs(x, torch.zeros_like(x), epsilon=0.1, generator=stream(0, "noise")) == 0).all()


def test_controls_follow_from_their_generator():
    x = clean_images(3)
    one, same, other = (random_noise(x, epsilon=0.1, generator=stream(seed, "noise")) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_random_signs_are_balanced_and_independent_of_their_neighbours():
    signs = random_signs(torch.empty(400, 500), generator=stream(0, "signs")).double()
    n = signs.numel()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # 5 standard errors each: false alarm 5.7e-7
    assert abs(float(signs.sum())) < 5 * math.sqrt(n)
    assert abs(float((signs[:, 1:] * signs[:, :-1]).sum())) < 5 * math.sqrt(n)
    assert abs(float((signs[1:] * signs[:-1]).sum())) < 5 * math.sqrt(n)
