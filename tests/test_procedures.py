"""All training procedures: derivatives in float64, and training that is reproducible and learns."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from engine.config import TrainingConfig
from engine.data import LabelledImages
from engine.models import flat_weights, with_weights
from engine.streams import stream
from engine.training import PROCEDURES
from engine.training.base import Batch, fit
from tests.procedures import IMAGES, LABELS, MODEL, WEIGHTS, K, given, network, prepared, procedure


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_losses_are_differentiable_twice_in_weights_and_images(name):
    of, batch = given(name)

    def loss(weights: Tensor, images: Tensor) -> Tensor:
        return of.loss(with_weights(MODEL, weights), batch._replace(images=images))

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
        of, batch = given(name)
        results.append((of.loss(with_weights(MODEL, WEIGHTS), batch), *batch.constants))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("name", list(PROCEDURES))
def test_a_module_and_a_function_of_weights_give_the_same_and_prepare_leaves_no_gradients(name):
    model = network()
    nn.utils.vector_to_parameters(WEIGHTS.clone(), model.parameters())
    of, batch = given(name)
    found = prepared(of, model, batch)
    assert all(torch.equal(one, other) for one, other in zip(found.constants, batch.constants, strict=True))
    assert not any(constant.requires_grad for constant in batch.constants)
    assert all(parameter.grad is None for parameter in model.parameters())
    one, other = (of.loss(f, found) for f in (model, with_weights(MODEL, WEIGHTS)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", list(PROCEDURES))
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_no_gradient_is_lost_to_logits_of_any_size(name, scale, strength):
    """In float32, where softmax reaches 0 and 1 exactly; first and second derivatives in weights and images."""
    of, batch = given(name)
    images, noise = IMAGES.float(), batch.noise.float()
    model = network().float()

    def f(weights: Tensor):
        return lambda images: scale * with_weights(model, weights)(images)

    weights, x = WEIGHTS.float().requires_grad_(), images.clone().requires_grad_()
    batch = prepared(of, f(weights.detach()), Batch(images, LABELS, noise, strength=strength))
    loss = of.loss(f(weights), batch._replace(images=x))
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
        batch = prepared(measure, model, Batch(data.images, data.labels, noise))
        return float(measure.loss(model, batch).detach())

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
