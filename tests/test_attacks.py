"""The attack from outside, and its course step by step."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import engine.attacks.levels as levels
from engine import models
from engine.attacks.base import AttackRecord
from engine.attacks.pacd import PerImage
from engine.attacks.universal import universal
from engine.config import ProcedureConfig
from engine.data import load, split
from engine.streams import stream
from engine.threat import Poison, check
from engine.training import PROCEDURES, Procedure
from engine.training.base import Batch, State
from tests.attacking import (
    CONFIG,
    EPSILON,
    INDICES,
    SIGMA,
    TARGET,
    TRAINING,
    VALIDATION,
    attack,
    attacked,
    posed,
    procedure,
    tiny_networks,
)

__all__ = ["tiny_networks"]  # a fixture that works by being here


# --- from outside


@pytest.mark.parametrize("per", ["image", "position"])
def test_moments_of_the_poison_belong_to_images_or_to_positions(per: str) -> None:
    """Two minibatches that have one image in common, at other positions; Adam written out."""
    config = CONFIG.model_copy(update=dict(poison_moments=per, poison_batch=3, poison_learning_rate=1e-3))
    unknowns, minibatches = PerImage(posed(), config), [[0, 1, 2], [2, 3, 4]]
    gradients = torch.randn(2, 3, *TRAINING.images.shape[1:], generator=stream(0, "test moments"))
    before, expected = unknowns.images(torch.arange(5)), {}
    moments: dict[int, tuple[Tensor, Tensor, int]] = {}
    for rows, gradient in zip(minibatches, gradients, strict=True):
        for position, (row, slope) in enumerate(zip(rows, gradient, strict=True)):
            key = row if per == "image" else position
            m, s, t = moments.get(key, (torch.zeros_like(slope), torch.zeros_like(slope), 0))
            m, s, t = 0.9 * m + 0.1 * slope, 0.999 * s + 0.001 * slope**2, t + 1
            moments[key] = m, s, t
            rate = 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            expected[row] = expected.get(row, 0) - rate * m / (s.sqrt() + 1e-8)
        unknowns.update(gradient, torch.tensor(rows))
    found = unknowns.images(torch.arange(5)) - before
    inside = (before > 0.01) & (before < 0.99)  # where nothing is cut
    for row in range(5):
        assert torch.allclose(found[row][inside[row]], expected[row][inside[row]], rtol=1e-3, atol=1e-6)
    unknowns.restart()
    assert all((moment == 0).all() for name, moment in unknowns.tensors().items() if name != "x_poison")


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
        def loss(self, base_classifier, batch: Batch) -> Tensor:
            return change(super().loss(base_classifier, batch), batch.images, batch.labels)

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
        def prepare(self, base_classifier, batch: Batch, **settings) -> tuple[Tensor, ...]:
            answered.append(batch.strength)
            return super().prepare(base_classifier, batch, **settings)

    settings = ProcedureConfig(name=name, warmup=0.5)
    attacked(CONFIG.model_copy(update=dict(upper_steps=4, restart_every=4)), procedure=Counting(settings, SIGMA))
    assert answered == [0.0] * 4 + [0.0, 0.5, 1.0, 1.0]  # warm-up, and four upper steps of one life


@pytest.mark.parametrize("augmentation", ["crop-flip", "crop-flip-batch"])
def test_gradients_reach_the_poison_through_augmentation(augmentation):
    record = attacked(augmentation=augmentation)[-1]
    check(Poison(record.delta, INDICES), TRAINING, target_class=TARGET, epsilon=EPSILON)
    assert float(record.delta.abs().max()) > EPSILON / 4


def test_one_crop_for_a_batch_is_one_for_its_clean_images_and_another_for_its_poison():
    """As the released code has it, which augments the two apart."""
    drawn = levels.Levels(posed(augmentation="crop-flip-batch"), CONFIG, seed=0, generator=stream(0, "crops"))
    pairs = set()
    for _ in range(20):
        which = drawn.draw_lower(torch.arange(4))
        (offsets, _), _ = drawn.minibatch(which, poison=4, strength=1.0).drawn()
        clean, poison = ({tuple(offset) for offset in part.tolist()} for part in (offsets[:-4], offsets[-4:]))
        assert len(clean) == len(poison) == 1
        pairs.add((*clean, *poison))
    assert any(clean != poison for clean, poison in pairs)  # all 20 alike: 81^-20


@pytest.mark.parametrize(
    ("name", "solver", "surrogate"),
    [
        *(("gaussian", solver, "lenet-narrow") for solver in ("adam", "minres", "nystrom", "penalty", "unrolled")),
        *(("smoothadv", "cg", "lenet-narrow"), ("gaussian", "cg", "resnet8")),  # draws held; running statistics
    ],
)
@pytest.mark.parametrize("how", ["per image", "shared by the class", "from an earlier poison"])
def test_an_attack_goes_on_behind_any_step_as_if_it_had_never_stopped(name, solver, surrogate, how):
    training, changes = TRAINING, {}
    if surrogate != "lenet-narrow":
        training = load("digits", Path("/nowhere"), train=True).select(torch.arange(200))
        training = replace(training, images=training.images[..., 6:22, 6:22])
        changes = dict(training=training, validation=training.of_class(TARGET))
    indices = (training.labels == TARGET).nonzero().squeeze(1)
    if how == "from an earlier poison":
        changes["given"] = EPSILON / 2 * (0.5 - training.images[indices]).sign()
    config = CONFIG.model_copy(update=dict(linear_solver=solver, surrogate=surrogate, clean_batch=8))

    def seen(record: AttackRecord) -> str:  # in which nan is nan
        return repr(replace(record, delta=record.delta.numpy().tobytes(), state=None))

    def begun(state: State | None) -> Iterator[AttackRecord]:
        problem = posed(procedure=procedure(name), indices=indices, state=state, **changes)
        return (universal if how == "shared by the class" else attack.pacd)(problem, config, 0)

    whole, states = [], []
    for record in begun(None):
        whole.append(seen(record))
        states.append({key: tensor.clone() for key, tensor in record.state().items()})
    assert len(states) == config.upper_steps
    for step in (1, 3, 5, 7):
        assert [seen(record) for record in begun(states[step - 1])] == whole[step:]
