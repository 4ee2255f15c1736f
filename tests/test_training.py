"""Victims' training: the loop and the procedures' losses."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from engine.config import Config
from engine.data import LabelledImages
from engine.models import flat_weights
from engine.streams import stream
from engine.training import PROCEDURES, gaussian, standard
from engine.training.base import Procedure, TrainingRecord, fit

SETTINGS = dict(sigma=0.1, epochs=2, batch_size=8, learning_rate=0.01, decay=True)


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
    settings = dict(procedure=PROCEDURES["gaussian"], generator=stream(0, "fit")) | SETTINGS | changes
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

    def spy(classifier, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        seen.append(images.flatten(1))
        assert noise.shape == (len(images), 1, 1, 4, 4)
        return cross_entropy(classifier(images), labels)

    trained(linear(), toy(count), procedure=Procedure(spy, n_noise=1), batch_size=batch_size, epochs=2)
    assert [len(part) for part in seen] == 2 * sizes
    first, second = torch.cat(seen[: len(sizes)]), torch.cat(seen[len(sizes) :])
    assert len(first.unique(dim=0)) == len(first)
    assert not torch.equal(first, second)  # another order


@pytest.mark.parametrize("decay", [True, False])
def test_the_learning_rate_falls_linearly_to_zero_or_stays(decay):
    """With a constant gradient every step of Adam is as long as its learning rate."""
    model = linear()

    def slope(_classifier, _images: Tensor, _labels: Tensor, _noise: Tensor) -> Tensor:
        return flat(model).sum()

    def flat(module: nn.Module) -> Tensor:
        return nn.utils.parameters_to_vector(module.parameters())

    where = [0.0]
    for _ in fit(
        model,
        toy(),
        procedure=Procedure(slope, n_noise=1),
        **SETTINGS | dict(decay=decay, epochs=5),
        generator=stream(0, "fit"),
    ):
        where.append(float(flat(model).detach().double().mean()))
    rates = [before - after for before, after in pairwise(where)]
    expected = [0.01 * (1 - step / 25) if decay else 0.01 for step in range(25)]
    assert rates == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    def broken(classifier, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        return cross_entropy(classifier(images), labels) + value

    with pytest.raises(FloatingPointError, match="epoch 1 of 2"):
        trained(linear(), toy(), procedure=Procedure(broken, n_noise=1))


def test_training_does_not_change_its_data():
    data = toy()
    trained(linear(), data)
    assert torch.equal(data.images, toy().images)
    assert torch.equal(data.labels, toy().labels)


@pytest.mark.parametrize("n_noise", [1, 3])
def test_without_noise_gaussian_augmentation_is_cross_entropy(n_noise):
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), toy(6)
    found = gaussian.loss(model, data.images, data.labels, torch.zeros(6, n_noise, 1, 4, 4))
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
    found = gaussian.loss(model, data.images, data.labels, noise)
    assert float(found.detach()) == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_standard_training_sees_no_noise():
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), toy(6)
    noise = PROCEDURES["standard"].draw_noise(data.images, sigma=0.5, generator=stream(0, "noise"))
    assert noise.shape == (6, 0, 1, 4, 4)
    expected = cross_entropy(model(data.images), data.labels)
    assert torch.equal(standard.loss(model, data.images, data.labels, noise), expected)
    loud = 100 * torch.randn(6, 4, 1, 4, 4, generator=stream(0, "noise"))
    assert torch.equal(standard.loss(model, data.images, data.labels, loud), expected)


def test_noise_in_training_is_fresh_at_every_step_and_of_the_size_asked_for():
    seen = []

    def spy(classifier, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        seen.append(noise)
        return cross_entropy(classifier(images), labels)

    procedure = replace(PROCEDURES["gaussian"], loss=spy, n_noise=50)
    trained(linear(), toy(), procedure=procedure, sigma=0.3, batch_size=20)
    assert len(torch.cat(seen).flatten(2).flatten(0, 1).unique(dim=0)) == 4 * 20 * 50
    values = torch.cat(seen).double() / 0.3
    # 5 standard errors of the second moment: false alarm 5.7e-7
    assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt(2 / values.numel())


def test_the_configuration_knows_every_procedure():
    assert set(Config.model_fields["procedure"].annotation.__args__) == set(PROCEDURES)
