"""Victims' training: the loop and the procedures' losses."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from engine.choices import PROCEDURES as SETTINGS_OF
from engine.config import ProcedureConfig, TrainingConfig
from engine.data import LabelledImages
from engine.models import flat_weights
from engine.streams import stream
from engine.training import PROCEDURES, make
from engine.training.base import Batch, Procedure, TrainingRecord, fit, rate_at
from engine.training.optimiser import Optimiser

CONFIG = TrainingConfig(epochs=2, batch_size=8, learning_rate=0.01, schedule="linear")


def gaussian(draws: int = 1, sigma: float = 0.1) -> Procedure:
    return make(ProcedureConfig(name="gaussian", draws=draws), sigma=sigma)


def with_loss(loss: Callable[..., Tensor], *, draws: int = 1, sigma: float = 0.1, fixed_noise: bool = False):
    """A procedure of this loss(classifier, batch)."""

    class Given(Procedure):
        def loss(self, base_classifier, batch: Batch) -> Tensor:
            return loss(base_classifier, batch)

    Given.fixed_noise = fixed_noise
    return Given(ProcedureConfig(name="gaussian", draws=draws), sigma)


def toy(count: int = 40) -> LabelledImages:
    """Two classes of 4×4 images, bright on the left or on the right."""
    labels = torch.arange(count) % 2
    images = 0.1 * torch.rand(count, 1, 4, 4, generator=stream(0, "toy"))
    images[labels == 0, :, :, :2] += 0.8
    images[labels == 1, :, :, 2:] += 0.8
    return LabelledImages(images, labels, torch.arange(count))


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def trained(model: nn.Module, data: LabelledImages, **changes) -> list[TrainingRecord]:
    """`fit` of CONFIG; changes are its arguments, or fields of CONFIG."""
    config = CONFIG.model_copy(update={name: changes.pop(name) for name in CONFIG.model_dump() if name in changes})
    settings = dict(procedure=gaussian(), config=config, epochs=config.epochs, generator=stream(0, "fit")) | changes
    return list(fit(model, data, **settings))


def test_training_follows_from_its_generator_alone_and_leaves_the_global_one_untouched():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, before = linear(), torch.get_rng_state()
        records = trained(model, toy())
        assert torch.equal(torch.get_rng_state(), before)
        results.append((flat_weights(model), records))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    other = linear()
    trained(other, toy(), generator=stream(1, "fit"))
    assert not torch.equal(flat_weights(other), results[0][0])


def test_a_separable_problem_is_learnt():
    records = trained(linear(), toy(), epochs=20, learning_rate=0.05)
    assert records[-1].accuracy == 1.0
    losses = [record.loss for record in records if record.loss is not None]
    assert losses[-1] < losses[0] / 2


def test_every_step_is_recorded_and_every_epoch_has_its_loss_and_accuracy():
    records = trained(linear(), toy(), epochs=3, batch_size=10)
    assert [record.step for record in records] == list(range(1, 13))
    assert {record.steps for record in records} == {12}
    assert [record.epoch for record in records] == [1] * 4 + [2] * 4 + [3] * 4
    ends = [record.step for record in records if record.loss is not None and record.accuracy is not None]
    assert ends == [4, 8, 12]
    assert sum(record.loss is None and record.accuracy is None for record in records) == 9


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(40, 12, [12, 12, 12]), (40, 40, [40]), (5, 8, [5])])
def test_the_last_partial_batch_is_dropped_and_no_image_comes_twice_in_an_epoch(count, batch_size, sizes):
    seen = []

    def spy(classifier, batch: Batch) -> Tensor:
        seen.append(batch.images.flatten(1))
        assert batch.noise.shape == (len(batch.images), 1, 1, 4, 4)
        return cross_entropy(classifier(batch.images), batch.labels)

    trained(linear(), toy(count), procedure=with_loss(spy), batch_size=batch_size, epochs=2)
    assert [len(part) for part in seen] == 2 * sizes
    first, second = torch.cat(seen[: len(sizes)]), torch.cat(seen[len(sizes) :])
    assert len(first.unique(dim=0)) == len(first)
    assert not torch.equal(first, second)  # another order


SCHEDULES = {
    "linear": [1 - step / 30 for step in range(30)],
    "constant": [1.0] * 30,
    "step": [1.0] * 10 + [0.1] * 10 + [0.01] * 10,
}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_the_learning_rate_follows_its_schedule(schedule, optimiser):
    """With a constant gradient every step of Adam is as long as its learning rate, and so is SGD's but for momentum."""
    model = linear()

    def slope(_classifier, _batch: Batch) -> Tensor:
        return flat(model).sum()

    def flat(module: nn.Module) -> Tensor:
        return nn.utils.parameters_to_vector(module.parameters())

    config = CONFIG.model_copy(update=dict(schedule=schedule, optimiser=optimiser))
    where = [0.0]
    for _ in fit(model, toy(), procedure=with_loss(slope), config=config, epochs=6, generator=stream(0, "fit")):
        where.append(float(flat(model).detach().double().mean()))
    rates = [before - after for before, after in pairwise(where)]
    speed = 0.0
    for step, (rate, share) in enumerate(zip(rates, SCHEDULES[schedule], strict=True)):
        speed = 1.0 if optimiser == "adam" else 0.9 * speed + 1.0
        assert rate == pytest.approx(0.01 * share * speed, rel=1e-3), step


def test_the_learning_rate_drops_at_the_thirds_of_any_number_of_epochs():
    """Thirds of 90 epochs are whole, and 3 · 30/90 must not fall short of 1 in floating point."""
    for epochs in range(3, 300, 3):
        third = epochs // 3
        assert [rate_at("step", epoch / epochs) for epoch in (0, third - 1, third, 2 * third - 1)] == [1, 1, 0.1, 0.1]
        assert rate_at("step", 2 * third / epochs) == pytest.approx(0.01)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_weight_decay_pulls_weights_towards_zero(optimiser):
    norms = []
    for decay in (0.0, 1.0):
        model = linear()
        trained(model, toy(), epochs=10, optimiser=optimiser, weight_decay=decay)
        norms.append(float(flat_weights(model).norm()))
    assert norms[1] < 0.8 * norms[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    def broken(classifier, batch: Batch) -> Tensor:
        return cross_entropy(classifier(batch.images), batch.labels) + value

    with pytest.raises(FloatingPointError, match="epoch 1 of 2"):
        trained(linear(), toy(), procedure=with_loss(broken))


def test_training_does_not_change_its_data():
    data = toy()
    trained(linear(), data)
    assert torch.equal(data.images, toy().images)
    assert torch.equal(data.labels, toy().labels)


@pytest.mark.parametrize("draws", [1, 3])
def test_without_noise_gaussian_augmentation_is_cross_entropy(draws):
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), toy(6)
    found = gaussian(draws).loss(model, Batch(data.images, data.labels, torch.zeros(6, draws, 1, 4, 4)))
    assert float(found.detach()) == pytest.approx(
        float(cross_entropy(model(data.images), data.labels).detach()), rel=1e-6
    )


def test_gaussian_augmentation_is_the_mean_cross_entropy_of_all_noisy_copies():
    data = toy(3)
    noise = torch.randn(3, 2, 1, 4, 4, generator=stream(0, "noise"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    terms = []
    for i in range(3):
        for j in range(2):
            z = model((data.images[i] + noise[i, j])[None])[0].tolist()
            terms.append(math.log(sum(map(math.exp, z))) - z[int(data.labels[i])])
    found = gaussian(2).loss(model, Batch(data.images, data.labels, noise))
    assert float(found.detach()) == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_standard_training_sees_no_noise():
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), toy(6)
    standard = make(ProcedureConfig(name="standard"), sigma=0.5)
    noise = standard.draw_noise(data.images, generator=stream(0, "noise"))
    assert noise.shape == (6, 0, 1, 4, 4)
    expected = cross_entropy(model(data.images), data.labels)
    assert torch.equal(standard.loss(model, Batch(data.images, data.labels, noise)), expected)
    loud = 100 * torch.randn(6, 4, 1, 4, 4, generator=stream(0, "noise"))
    assert torch.equal(standard.loss(model, Batch(data.images, data.labels, loud)), expected)


def test_noise_in_training_is_fresh_at_every_step_and_of_the_size_asked_for():
    seen = []

    def spy(classifier, batch: Batch) -> Tensor:
        seen.append(batch.noise)
        return cross_entropy(classifier(batch.images), batch.labels)

    trained(linear(), toy(), procedure=with_loss(spy, draws=50, sigma=0.3), batch_size=20)
    assert len(torch.cat(seen).flatten(2).flatten(0, 1).unique(dim=0)) == 4 * 20 * 50
    values = torch.cat(seen).double() / 0.3
    # 5 standard errors of the second moment: false alarm 5.7e-7
    assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt(2 / values.numel())


def test_fixed_noise_belongs_to_images_in_every_epoch():
    seen: dict[bytes, list[bytes]] = {}

    def spy(classifier, batch: Batch) -> Tensor:
        for image, draws in zip(batch.images, batch.noise, strict=True):
            seen.setdefault(image.numpy().tobytes(), []).append(draws.numpy().tobytes())
        return cross_entropy(classifier(batch.images), batch.labels)

    trained(linear(), toy(), procedure=with_loss(spy, fixed_noise=True), epochs=3)
    assert sorted({len(draws) for draws in seen.values()}) == [3]
    assert {len(set(draws)) for draws in seen.values()} == {1}
    assert len({draws[0] for draws in seen.values()}) == 40


def test_the_classifier_is_as_in_use_for_the_adversary_as_in_training_for_the_loss_and_as_in_use_at_the_end():
    model, modes = linear(), []

    class Spy(Procedure):
        def prepare(self, base_classifier, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, ...]:
            modes.append(("prepare", model.training))
            return (batch.images + batch.strength,)

        def loss(self, base_classifier, batch: Batch) -> Tensor:
            modes.append(("loss", model.training))
            assert torch.equal(batch.constants[0], batch.images + batch.strength)
            return cross_entropy(base_classifier(batch.images), batch.labels)

    trained(model, toy(), procedure=Spy(ProcedureConfig(name="gaussian"), 0.1), batch_size=20)
    assert modes == [("prepare", False), ("loss", True)] * 4
    assert not model.training


def test_the_warm_up_grows_from_epoch_to_epoch_until_it_is_whole():
    seen = []

    class Spy(Procedure):
        def loss(self, base_classifier, batch: Batch) -> Tensor:
            seen.append(batch.strength)
            return cross_entropy(base_classifier(batch.images), batch.labels)

    procedure = Spy(ProcedureConfig(name="smoothadv", draws=1, warmup=0.4), 0.1)
    trained(linear(), toy(), procedure=procedure, epochs=10, batch_size=40)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])
    assert seen[4] == 1.0
    assert make(ProcedureConfig(name="macer-pacd"), sigma=0.1).strength(0.0) == 1.0


def test_augmented_images_are_what_a_procedure_sees():
    seen = []

    def spy(classifier, batch: Batch) -> Tensor:
        seen.append(batch.images)
        return cross_entropy(classifier(batch.images), batch.labels)

    trained(linear(), toy(), procedure=with_loss(spy), batch_size=40, epochs=1, augmentation="crop-flip")
    assert seen[0].shape == (40, 1, 4, 4)
    whole = {image.numpy().tobytes() for image in toy().images}
    assert sum(image.numpy().tobytes() in whole for image in seen[0]) < 10


def test_the_configuration_knows_every_procedure():
    assert list(SETTINGS_OF) == list(PROCEDURES)
    for name, procedure in PROCEDURES.items():
        assert type(make(ProcedureConfig(name=name), sigma=0.5)) is procedure


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("fixed_noise", [False, True])
def test_a_training_goes_on_from_any_epoch_as_if_it_had_never_stopped(optimiser, fixed_noise):
    """Batch normalisation's statistics, moments and generators included; the state that it starts from is not moved."""

    def loss(classifier, batch: Batch) -> Tensor:
        return cross_entropy(classifier((batch.images.unsqueeze(1) + batch.noise).flatten(0, 1)), batch.labels)

    def begun(model: nn.Module, **more):
        config = CONFIG.model_copy(update={"optimiser": optimiser, "weight_decay": 0.01})
        settings = dict(procedure=with_loss(loss, fixed_noise=fixed_noise), config=config, epochs=4)
        return fit(model, toy(), generator=stream(0, "fit"), **settings, **more)

    def normalised() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(1), linear())

    whole, records, states = normalised(), [], {}
    for record in begun(whole):
        records.append(record)
        if record.state is not None:
            states[record.epoch] = {name: tensor.clone() for name, tensor in record.state().items()}
    assert list(states) == [1, 2, 3, 4]
    for epoch in (1, 3, 4, 3):
        other = normalised()
        assert list(begun(other, state=states[epoch])) == records[5 * epoch :]
        for name, tensor in whole.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_steps_are_those_of_torchs_own_optimisers_whatever_a_gradients_layout(optimiser):
    mine, theirs = linear(), linear()
    config = CONFIG.model_copy(update=dict(optimiser=optimiser, weight_decay=0.1))
    weights = list(mine.parameters())
    ours, generator = Optimiser(weights, config), stream(0, "gradients")
    how = dict(lr=0.0, weight_decay=0.1, fused=True)
    torchs = torch.optim.Adam(theirs.parameters(), **how) if optimiser == "adam" else None
    torchs = torchs or torch.optim.SGD(theirs.parameters(), momentum=0.9, **how)
    for rate in (0.1, 0.03, 0.01):
        gradients = [torch.randn(w.shape[::-1], generator=generator).permute(*range(w.ndim)[::-1]) for w in weights]
        ours.step(gradients, torch.tensor(rate, dtype=torch.float64))
        torchs.param_groups[0]["lr"] = rate
        for weight, gradient in zip(theirs.parameters(), gradients, strict=True):
            weight.grad = gradient.contiguous()
        torchs.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, theirs.parameters(), strict=True))
    assert not torch.equal(weights[0], next(linear().parameters()))
